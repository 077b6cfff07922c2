"use strict";
const canvases = [...document.querySelectorAll("canvas[data-mask]")];
const cards = [...document.querySelectorAll("figure[data-classes]")];
const buttons = [...document.querySelectorAll("button[data-class]")];
let chosen = null; // the name of a class: ids of different label spaces do not mix

// The colour of each class, from its line in the histogram or its chip.
const colourOf = (section) => {
  const colours = new Map();
  for (const button of section.querySelectorAll("button[data-class]")) {
    const rgb = getComputedStyle(button.querySelector("i")).backgroundColor.match(/\d+/g).map(Number);
    colours.set(Number(button.dataset.class), [rgb, button.dataset.name]);
  }
  return colours;
};
const palettes = new Map();
for (const section of document.querySelectorAll("section")) palettes.set(section, colourOf(section));

function paint(canvas) {
  const colours = palettes.get(canvas.closest("section"));
  const runs = Uint8Array.from(atob(canvas.dataset.mask), (c) => c.charCodeAt(0));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const words = new Uint32Array(pixels.data.buffer); // little-endian: ABGR
  let at = 0;
  for (let i = 0; i < runs.length; i += 2) {
    const end = at + runs[i + 1] + 1;
    const found = colours.get(runs[i]);
    let word = 0; // unlabelled: the picture itself
    if (chosen !== null && (!found || found[1] !== chosen)) word = 0xcc000000; // darkened
    else if (found) word = (255 << 24) | (found[0][2] << 16) | (found[0][1] << 8) | found[0][0];
    words.fill(word >>> 0, at, end);
    at = end;
  }
  context.putImageData(pixels, 0, 0);
}

function choose(name) {
  chosen = name;
  for (const button of buttons) button.classList.toggle("chosen", button.dataset.name === name);
  for (const card of cards) {
    const names = [...card.querySelectorAll("button[data-class]")].map((b) => b.dataset.name);
    card.hidden = name !== null && !names.includes(name);
  }
  for (const section of document.querySelectorAll("section")) {
    const left = section.querySelector("figure[data-classes]:not([hidden])");
    section.querySelector(".empty").hidden = left !== null;
  }
  document.getElementById("filter").hidden = name === null;
  document.getElementById("filter-name").textContent = name ?? "";
  canvases.filter((c) => !c.closest("figure").hidden).forEach(paint);
  // Only the fragment: a page opened from a file may change nothing else of its address.
  history.replaceState(null, "", name === null ? "#" : "#class=" + encodeURIComponent(name));
}

for (const button of buttons) {
  button.addEventListener("click", () =>
    choose(chosen === button.dataset.name ? null : button.dataset.name));
}
document.getElementById("filter-clear").addEventListener("click", () => choose(null));
document.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(null); });
document.getElementById("opacity").addEventListener("input", (event) => {
  for (const canvas of canvases) canvas.style.opacity = event.target.value / 100;
});
for (const search of document.querySelectorAll(".search")) {
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const line of search.parentElement.querySelectorAll("li")) {
      const name = line.querySelector("button").dataset.name.toLowerCase();
      line.hidden = !name.includes(wanted);
    }
  });
}
const asked = new URLSearchParams(location.hash.slice(1)).get("class");
const known = buttons.some((button) => button.dataset.name === asked);
if (known) choose(asked); else canvases.forEach(paint);
