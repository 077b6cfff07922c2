// The page: a picture, words, and the service that says which pixels are what.
// Nothing here asks any server but the one that the page came from; its headers forbid it too.

import { Stage } from "./canvas.js";
import { Words } from "./words.js";

const LARGEST_PX = 2048;
const TRIES = 6;
const $ = (id) => document.getElementById(id);

const stage = new Stage();
const words = new Words(() => changed());
let limits = { max_image_mib: 16, max_image_mpx: 24 };
let picture = null; // { name, blob, note }
let answer = null;
let asking = null;
let later = 0;
let takes = 0;
// What a header can hold. Where there is no storage, the key lasts as long as the page.
const KEY = /^[!-~]+$/;
let key = "";
let keptKey = "";
let askingKey = null;
try {
  keptKey = sessionStorage.getItem("lseg-key") || "";
  key = KEY.test(keptKey) ? keptKey : "";
} catch {
  key = "";
}

function percent(share) {
  const value = 100 * share;
  return value >= 9.95 ? `${value.toFixed(0)} %` : value >= 0.1 ? `${value.toFixed(1)} %` : "<0.1 %";
}

function say(text) {
  $("status").textContent = text;
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
  if (text) say("");
}

// ---- The service

async function ask(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    const tried = key;
    const headers = tried ? { Authorization: `Bearer ${tried}` } : {};
    const response = await fetch(path, { ...options, headers });
    if (response.ok) {
      keepKey(tried);
      return response;
    }
    const message = await response.json().then((body) => body.error.message, () => `status ${response.status}`);
    if (response.status === 401) {
      // Another request may have asked for it meanwhile.
      if (tried === key) await (askingKey ??= askKey(tried ? "The key is wrong." : ""));
    } else if (response.status === 429 && attempt < TRIES) {
      say("The service is busy; trying again.");
      const wait = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * wait));
      options.signal?.throwIfAborted();
    } else {
      throw new Error(message);
    }
  }
}

// Only a key that the service has taken is kept.
function keepKey(right) {
  if (!right || right === keptKey) return;
  keptKey = right;
  try {
    sessionStorage.setItem("lseg-key", right);
  } catch {
    // It lasts as long as the page.
  }
}

function askKey(complaint) {
  const dialog = $("ask-key");
  $("key").value = "";
  $("key-error").textContent = "";
  dialog.returnValue = "";
  dialog.showModal();
  $("key-error").textContent = complaint;
  return new Promise((done, refuse) => {
    dialog.addEventListener("close", () => {
      askingKey = null;
      key = dialog.returnValue ? $("key").value.trim() : "";
      $("key").value = "";
      if (key) done();
      else refuse(new Error("This service answers with its key only: load the page again to give it."));
    }, { once: true });
  });
}

$("ask-key").firstElementChild.addEventListener("submit", (event) => {
  if (KEY.test($("key").value.trim())) return;
  event.preventDefault();
  $("key-error").textContent = "A key holds letters of A to Z, digits and signs, and no spaces.";
});
$("no-key").addEventListener("click", () => $("ask-key").close(""));

function other() {
  const kind = document.querySelector("input[name=other]:checked").value;
  if (kind === "words") return $("other-words").value.trim() || "other";
  if (kind === "sure") return String(Math.min(99, Math.max(1, Number($("sure").value) || 40)) / 100);
  return "none";
}

function showOther(value) {
  const sure = Number(value);
  const kind = value === "none" ? "none" : sure > 0 && sure < 1 ? "sure" : "words";
  document.querySelector(`input[name=other][value=${kind}]`).checked = true;
  if (kind === "words") $("other-words").value = value;
  if (kind === "sure") $("sure").value = Math.round(100 * sure);
}

// Asks soon: someone who types several words asks once.
function changed() {
  writeLink();
  clearTimeout(later);
  later = setTimeout(segment, 250);
}

async function segment() {
  clearTimeout(later);
  if (!picture) return;
  asking?.abort();
  const mine = (asking = new AbortController());
  complain("");
  say("Looking …");
  $("work").hidden = false;
  const form = new FormData();
  form.append("image", picture.blob, "picture");
  for (const word of words.list) form.append("labels", word);
  form.append("other", other());
  form.append("mask", "true");
  const began = performance.now();
  try {
    const response = await ask("/v1/segment", { method: "POST", body: form, signal: mine.signal });
    const found = await response.json();
    if (mine !== asking) return;
    answer = found;
    stage.result(answer);
    showShares();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    say(`${picture.note}Done in ${seconds} s.`);
  } catch (error) {
    if (mine !== asking || error.name === "AbortError") return;
    answer = null;
    stage.forget();
    $("result").hidden = true;
    complain(error instanceof TypeError ? "The service does not answer. Is it still running?" : error.message);
  } finally {
    if (mine === asking) $("work").hidden = true;
  }
}

// ---- What was found

function showShares() {
  const rows = answer.labels
    .map((label, i) => ({ label, share: answer.shares[i], colour: answer.colours[i], id: i }))
    .filter((row) => row.share > 0);
  if (answer.no_label_share > 0) {
    rows.push({ label: "none of these", share: answer.no_label_share, colour: answer.no_label_colour, id: -1 });
  }
  rows.sort((a, b) => b.share - a.share);
  $("shares").tBodies[0].replaceChildren(...rows.map(shareRow));
  const missing = answer.labels.filter((_, i) => answer.shares[i] === 0);
  $("missing").textContent = !missing.length
    ? ""
    : missing.length > 12
      ? `Not found: ${missing.slice(0, 12).join(", ")} and ${missing.length - 12} more.`
      : `Not found: ${missing.join(", ")}.`;
  $("made").textContent = `By ${answer.model}.`;
  $("result").hidden = false;
  const said = rows.slice(0, 6).map((row) => `${row.label} ${percent(row.share)}`);
  $("shown").setAttribute("aria-label", `The picture: ${said.join(", ")}`);
}

function shareRow({ label, share, colour, id }) {
  const row = document.createElement("tr");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${colour.join(" ")})`;
  const first = document.createElement("td");
  first.append(swatch);
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = label;
  const value = document.createElement("td");
  value.textContent = percent(share);
  row.append(first, name, value);
  row.addEventListener("pointerenter", () => answer && stage.paint(id));
  row.addEventListener("pointerleave", () => answer && stage.paint(null));
  return row;
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${picture.name}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function saveMask() {
  const bytes = Uint8Array.from(atob(answer.mask), (letter) => letter.charCodeAt(0));
  save(new Blob([bytes], { type: "image/png" }), "mask.png");
}

function saveJson() {
  const { mask, ...kept } = answer;
  save(new Blob([JSON.stringify({ image: picture.name, ...kept })], { type: "application/json" }), "json");
}

// ---- The picture

async function take(file, name, itsWords = null) {
  // Of two pictures taken quickly the newest stays, whichever is ready first.
  const mine = ++takes;
  complain("");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    if (mine !== takes) return;
    complain(`${name || "This"} is not a picture that this browser can read: choose a JPEG, PNG, WebP or GIF.`);
    return;
  }
  let blob = file;
  let note = "";
  const long = Math.max(bitmap.width, bitmap.height);
  const isLarge = bitmap.width * bitmap.height > 1e6 * limits.max_image_mpx || file.size > limits.max_image_mib * 2 ** 20;
  // Beyond this a screen shows no more, and a phone would wait for nothing.
  if (long > LARGEST_PX || isLarge) {
    const scale = Math.min(1, LARGEST_PX / long, Math.sqrt((0.9e6 * limits.max_image_mpx) / (bitmap.width * bitmap.height)));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
    bitmap = canvas;
    note = `Shrunk to ${canvas.width} × ${canvas.height} pixels. `;
  }
  if (mine !== takes) return;
  picture = { name: (name || "picture").replace(/\.[^.]*$/, "") || "picture", blob, note };
  answer = null;
  stage.picture(bitmap);
  $("drop").hidden = true;
  $("stage").hidden = false;
  $("tools").hidden = false;
  $("result").hidden = true;
  if (itsWords) {
    words.set(itsWords);
    writeLink();
  }
  await segment();
}

async function showExamples() {
  const list = await (await ask("/examples")).json();
  $("row").replaceChildren(
    ...list.map((example, number) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      const image = document.createElement("img");
      image.alt = example.name;
      button.type = "button";
      button.title = example.words.join(", ") || example.name;
      button.append(image);
      item.append(button);
      // An address in an image would be asked without the key.
      ask(`/examples/${number}`).then((response) => response.blob()).then((blob) => {
        image.src = URL.createObjectURL(blob);
        button.addEventListener("click", () => take(blob, example.name, example.words.length ? example.words : null));
      }).catch(() => item.remove());
      return item;
    }),
  );
  $("examples").hidden = !list.length;
}

// ---- A link that carries the words: behind the #, which no browser sends to a server

function writeLink() {
  const parts = [];
  if (words.list.length) parts.push(`words=${words.list.map(encodeURIComponent).join(",")}`);
  if (other() !== "none") parts.push(`other=${encodeURIComponent(other())}`);
  history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname);
}

function readLink() {
  showOther("none"); // What a link does not name is as it is without one.
  for (const part of location.hash.slice(1).split("&")) {
    const [name, value = ""] = part.split("=");
    try {
      if (name === "words") words.set(value.split(",").map(decodeURIComponent));
      if (name === "other") showOther(decodeURIComponent(value));
    } catch {
      complain("The link is damaged: its words cannot be read.");
    }
  }
}

async function copyLink() {
  writeLink();
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    window.prompt("The link", location.href); // Browsers copy on safe addresses only.
  }
}

// ---- Events

for (const id of ["file", "camera"]) {
  $(id).addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) take(file, file.name);
    event.target.value = "";
  });
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file, file.name);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  take(file, file.name);
});
$("opacity").addEventListener("input", (event) => {
  $("percent").textContent = `${event.target.value} %`;
  stage.opacity(event.target.value / 100);
});
for (const input of document.querySelectorAll("#policy input")) {
  input.addEventListener("change", () => {
    if (input.id === "other-words") document.querySelector("input[value=words]").checked = true;
    if (input.id === "sure") document.querySelector("input[value=sure]").checked = true;
    changed();
  });
}
$("clear").addEventListener("click", () => {
  words.set([]);
  changed();
});
$("link").addEventListener("click", copyLink);
$("save-mask").addEventListener("click", saveMask);
$("save-json").addEventListener("click", saveJson);
$("save-overlay").addEventListener("click", async () => save(await stage.overlay(), "overlay.png"));
window.addEventListener("hashchange", () => {
  readLink();
  segment();
});

async function begin() {
  stage.opacity(0.6);
  $("host").textContent = location.hostname === "127.0.0.1" || location.hostname === "localhost" ? "this machine" : location.hostname;
  readLink();
  try {
    await showExamples();
    const about = await (await ask("/v1/labels")).json();
    limits = about.limits;
    words.known = about.labels;
    $("model").textContent = about.model;
    const number = about.labels.length;
    $("words-help").textContent = number
      ? `Any words. Enter or a comma ends one. Without any, the ${number} of the training are asked.`
      : "Any words. Enter or a comma ends one.";
  } catch (error) {
    complain(error instanceof TypeError ? "The service does not answer. Is it still running?" : error.message);
  }
}

begin();
