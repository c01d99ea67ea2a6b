"use strict";
// Sends the chosen image to this machine, and shows what it answers.

const file = document.getElementById("file");
const method = document.getElementById("method"); // null without networks
const status = document.getElementById("status");
const maxBytes = Number(document.body.dataset.maxBytes);
const asked = {}; // by section: how often, so that a late answer does not overwrite a newer one

async function show(section, path) {
  const turn = (asked[section] = (asked[section] ?? 0) + 1);
  const place = document.getElementById(section);
  place.setAttribute("aria-busy", "true");
  const answer = await ask(path);
  if (turn !== asked[section]) return;
  place.replaceChildren(...answer);
  place.removeAttribute("aria-busy");
}

async function ask(path) {
  const image = file.files[0];
  if (image.size > maxBytes) return refusal(`a file may have ${maxBytes / 2 ** 20} MiB; take a smaller one.`);
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    const response = await fetch(path, { method: "POST", headers, body: image });
    return new DOMParser().parseFromString(await response.text(), "text/html").body.children;
  } catch {
    return refusal("no answer; is the file still there, and downmix playground still running?");
  }
}

function refusal(sentence) {
  const paragraph = document.createElement("p");
  paragraph.className = "error";
  paragraph.setAttribute("role", "alert");
  paragraph.textContent = sentence;
  return [paragraph];
}

async function work(...shown) {
  if (!file.files.length) return;
  const start = performance.now();
  status.textContent = `Working on ${file.files[0].name} …`;
  await Promise.all(shown);
  if (!document.querySelector("[aria-busy]")) {
    status.textContent = `${file.files[0].name}: ${((performance.now() - start) / 1000).toFixed(1)} s.`;
  }
}

const networks = () => (method ? [show("networks", `networks?method=${encodeURIComponent(method.value)}`)] : []);
const all = () => file.files.length && work(...networks(), show("pools", "pools"));

file.addEventListener("change", all);
method?.addEventListener("change", () => file.files.length && work(...networks()));

// The whole page takes what is dropped; else the browser would leave it for the file.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (!event.dataTransfer.files.length) return;
  file.files = event.dataTransfer.files;
  all();
});
