"use strict";
document.documentElement.classList.add("scripts");
const field = id => document.getElementById(id), read = id => JSON.parse(field(id).textContent);
const make = (tag, text = "", kind = "") => {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};

// The text of a mark, beside the pointer: at once, and in the page's own look.
const tip = field("tip");
let shown = null;
function show(event) {
  const title = event.target.querySelector ? event.target.querySelector(":scope > title") : null;
  if (!title && event.target !== shown) { hide(); return; }
  if (title) {
    hide();
    shown = event.target;
    tip.textContent = title.textContent;
    shown.dataset.tip = title.textContent;
    title.remove();  // or the browser shows its own, too
    tip.hidden = false;
  }
  const left = Math.min(event.pageX + 12, window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(0, left) + "px";
  tip.style.top = event.pageY + 16 + "px";
}
function hide() {
  if (!shown) return;
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = shown.dataset.tip;
  shown.append(title);
  delete shown.dataset.tip;
  shown = null;
  tip.hidden = true;
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerleave", hide);

for (const button of document.querySelectorAll(".copy"))
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "copied"; }
    catch { window.getSelection().selectAllChildren(code); button.textContent = "selected"; }
  });
