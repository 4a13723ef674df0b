// All text enters the page through textContent and setAttribute: nothing of an attempt is ever parsed as HTML.
const TURNING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
// Marks that turn the direction of text are written out: no proof can look like another one.
const plain = (text) => String(text).replace(TURNING, (mark) => `⟨U+${mark.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = plain(value); else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : plain(child))));
  return node;
};
const svg = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = plain(text);
  return node;
};
const byId = (id) => document.getElementById(id);
const paint = (node, property, value) => { node.style.setProperty(property, value); return node; };
const colour = (index) => `var(--s${index % 6})`;
const count = (n) => n.toLocaleString("en-US");
const words = (name) => name.replaceAll("_", " ");
const number = (x, unit) => {
  if (unit === "share") return `${(100 * x).toFixed(1)}%`;
  const size = Math.abs(x);
  if (size >= 1e9) return x.toExponential(1).replace("e+", "e");
  if (size >= 1e6) return `${(x / 1e6).toFixed(1)}M`;
  if (size >= 1e4) return `${(x / 1e3).toFixed(0)}k`;
  if (size >= 100 || Number.isInteger(x)) return x.toFixed(0);
  return size !== 0 && size < 1e-3 ? x.toExponential(1) : Number(x.toPrecision(3)).toString();
};
const signed = (x) => (Math.abs(x) < 0.005 ? "0.00" : `${x > 0 ? "+" : "−"}${Math.abs(x).toFixed(2)}`);
const verdictClass = (kind) => (kind === "proved" ? "proved" : kind === "failed" ? "failed" : "odd");
const outcomeClass = (outcome) => (outcome.startsWith("dropped") ? "odd" : "");

const tip = byId("tip");
document.addEventListener("pointerover", (event) => {
  const { delta, choices } = event.target.dataset ?? {};
  tip.hidden = delta === undefined;
  if (delta === undefined) return;
  tip.textContent = plain(`${signed(Number(delta))} nats${choices ? `; the teacher would write ${choices}` : ""}`);
  const box = event.target.getBoundingClientRect();
  paint(tip, "left", `${Math.max(2, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`);
  paint(tip, "top", `${Math.max(box.top - 28, 2)}px`);
});

