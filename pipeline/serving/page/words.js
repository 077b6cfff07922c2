// Words as chips, with suggestions from the labels of the training.

const MOST_SHOWN = 40;

export class Words {
  // `changed` is called with nothing whenever the words are others than before.
  constructor(changed) {
    this.changed = changed;
    this.list = [];
    this.known = [];
    this.input = document.getElementById("word");
    this.chips = document.getElementById("chips");
    this.found = document.getElementById("found");
    this.at = -1;
    this.input.addEventListener("input", () => this.typed());
    this.input.addEventListener("keydown", (event) => this.pressed(event));
    this.input.addEventListener("focus", () => this.suggest());
    this.input.addEventListener("blur", () => {
      this.close();
      this.add(this.input.value);
    });
    this.found.addEventListener("pointerdown", (event) => {
      const option = event.target.closest("li");
      event.preventDefault();
      if (option) this.add(option.textContent);
    });
    document.getElementById("words").addEventListener("click", (event) => {
      if (event.target.id === "words") this.input.focus();
    });
  }

  // Replaces all words.
  set(words) {
    this.list = [];
    for (const word of words.flatMap((each) => each.split(","))) this.take(word);
    this.show();
  }

  take(text) {
    const word = text.split(/\s+/).filter(Boolean).join(" ");
    if (!word || this.list.includes(word)) return false;
    this.list.push(word);
    return true;
  }

  add(text) {
    const before = this.list.length;
    for (const part of text.split(/[,\n]/)) this.take(part);
    this.input.value = "";
    if (document.activeElement === this.input) this.suggest();
    if (this.list.length === before) return;
    this.show();
    this.changed();
  }

  remove(word) {
    this.list = this.list.filter((each) => each !== word);
    this.show();
    this.input.focus();
    this.changed();
  }

  show() {
    this.chips.replaceChildren(
      ...this.list.map((word) => {
        const chip = document.createElement("li");
        const text = document.createElement("span");
        text.textContent = word;
        text.title = word;
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = "×";
        button.setAttribute("aria-label", `Remove ${word}`);
        button.addEventListener("click", () => this.remove(word));
        chip.append(text, button);
        return chip;
      }),
    );
  }

  typed() {
    if (/[,\n]/.test(this.input.value)) this.add(this.input.value);
    else this.suggest();
  }

  suggest() {
    const typed = this.input.value.trim().toLowerCase();
    const left = this.known.filter((label) => !this.list.includes(label));
    const begins = left.filter((label) => label.toLowerCase().startsWith(typed));
    const holds = left.filter((label) => label.toLowerCase().includes(typed) && !begins.includes(label));
    const shown = typed ? [...begins, ...holds].slice(0, MOST_SHOWN) : [];
    this.at = -1;
    this.found.replaceChildren(
      ...shown.map((label, number) => {
        const option = document.createElement("li");
        option.id = `found-${number}`;
        option.setAttribute("role", "option");
        option.setAttribute("aria-selected", "false");
        option.textContent = label;
        return option;
      }),
    );
    this.found.hidden = !shown.length;
    this.input.setAttribute("aria-expanded", String(!this.found.hidden));
    this.input.removeAttribute("aria-activedescendant");
  }

  close() {
    this.found.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
  }

  pressed(event) {
    const options = [...this.found.children];
    if (event.key === "Enter") {
      event.preventDefault();
      this.add(this.at >= 0 && !this.found.hidden ? options[this.at].textContent : this.input.value);
    } else if (event.key === "Escape") {
      this.close();
    } else if (event.key === "Backspace" && !this.input.value && this.list.length) {
      this.remove(this.list.at(-1));
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && options.length && !this.found.hidden) {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      this.at = (this.at + step + options.length) % options.length;
      options.forEach((option, number) => option.setAttribute("aria-selected", String(number === this.at)));
      this.input.setAttribute("aria-activedescendant", options[this.at].id);
      options[this.at].scrollIntoView({ block: "nearest" });
    }
  }
}
