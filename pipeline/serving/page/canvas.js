// The picture, the colours above it, and the name under the pointer.

// Label of each pixel, -1 for none, from the service's run lengths.
export function decoded(answer) {
  const ids = new Int32Array(answer.width * answer.height);
  let at = 0;
  for (let i = 0; i < answer.runs.length; i += 2) {
    ids.fill(answer.runs[i], at, at + answer.runs[i + 1]);
    at += answer.runs[i + 1];
  }
  return ids;
}

export class Stage {
  constructor() {
    this.stage = document.getElementById("stage");
    this.shown = document.getElementById("shown");
    this.labels = document.getElementById("labels");
    this.under = document.getElementById("under");
    this.answer = null;
    for (const kind of ["pointermove", "pointerdown"]) {
      this.stage.addEventListener(kind, (event) => this.point(event));
    }
    this.stage.addEventListener("pointerleave", () => (this.under.hidden = true));
  }

  picture(bitmap) {
    this.answer = null;
    this.under.hidden = true;
    this.stage.style.setProperty("--ratio", bitmap.width / bitmap.height);
    for (const canvas of [this.shown, this.labels]) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    this.shown.getContext("2d").drawImage(bitmap, 0, 0);
    this.shown.style.imageRendering = bitmap.width < 320 ? "pixelated" : "auto";
  }

  result(answer) {
    this.answer = answer;
    this.ids = decoded(answer);
    this.labels.width = answer.width;
    this.labels.height = answer.height;
    this.paint(null);
  }

  forget() {
    this.answer = null;
    this.under.hidden = true;
    this.labels.getContext("2d").clearRect(0, 0, this.labels.width, this.labels.height);
  }

  opacity(share) {
    this.labels.style.opacity = share;
  }

  // Paints the labels; with `only`, that one alone.
  paint(only) {
    const { width, height, colours, no_label_colour: none } = this.answer;
    const image = new ImageData(width, height);
    const packed = new Uint32Array(image.data.buffer);
    const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
    const pack = ([r, g, b], a) =>
      (little ? (a << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | a) >>> 0;
    const table = [none, ...colours].map((colour, i) =>
      pack(colour, only === null || only === i - 1 ? 255 : 40));
    for (let i = 0; i < packed.length; i++) packed[i] = table[this.ids[i] + 1];
    this.labels.getContext("2d").putImageData(image, 0, 0);
  }

  point(event) {
    if (!this.answer) return;
    const box = this.stage.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * this.answer.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * this.answer.height);
    if (x < 0 || y < 0 || x >= this.answer.width || y >= this.answer.height) return;
    const id = this.ids[y * this.answer.width + x];
    this.under.textContent = id < 0 ? "none of these" : this.answer.labels[id];
    this.under.hidden = false;
    const left = event.clientX - box.left + 14;
    const top = event.clientY - box.top + 14;
    this.under.style.left = `${Math.max(4, Math.min(left, box.width - this.under.offsetWidth - 4))}px`;
    this.under.style.top = `${Math.max(4, Math.min(top, box.height - this.under.offsetHeight - 4))}px`;
  }

  // The picture with the colours above it, as it is seen.
  overlay() {
    const canvas = document.createElement("canvas");
    canvas.width = this.shown.width;
    canvas.height = this.shown.height;
    const context = canvas.getContext("2d");
    context.drawImage(this.shown, 0, 0);
    context.globalAlpha = Number(this.labels.style.opacity || 1);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.labels, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
}
