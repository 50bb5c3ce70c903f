"use strict";
// The report's page: sort and filter the table and the cards, and look at one slide closely. It reads what the
// page holds (data-* attributes and pictures) and asks nobody. Without it the page is whole, but still.

const byId = (id) => document.getElementById(id);
const all = (css, from = document) => [...from.querySelectorAll(css)];
const cards = all("article[data-id]");
const number = (value) => (Math.abs(value) >= 1e-3 || value === 0 ? String(Number(value.toPrecision(3))) : value.toExponential(2));

// ---- table and cards: one order and one filter for both

const rows = all("#cohort tbody tr");
for (const row of rows) {
  const picture = cards[row.dataset.card].querySelector(".plate .slide");
  const small = row.querySelector(".small");
  if (picture) small.append(Object.assign(new Image(), { src: picture.src, alt: "", loading: "lazy" }));
  small.addEventListener("click", () => show(Number(row.dataset.card)));
}

function sortBy(head) {
  const column = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
  for (const each of all("#cohort thead th")) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");       // what has no value comes last, both ways
    const numbers = x !== "" && y !== "" && !Number.isNaN(Number(x)) && !Number.isNaN(Number(y));
    return (down ? -1 : 1) * (numbers ? x - y : x.localeCompare(y, undefined, { numeric: true }));
  };
  rows.sort(compare);
  byId("cohort").tBodies[0].append(...rows);
  const order = [...new Set(rows.map((row) => Number(row.dataset.card)))];
  byId("cards").append(...order.map((i) => cards[i]));
}

function filter() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean), kind = byId("kind").value;
  const fits = cards.map((card) => words.every((word) => card.dataset.text.includes(word)) && (!kind || card.dataset[kind] === "yes"));
  cards.forEach((card, i) => (card.hidden = !fits[i]));
  for (const row of rows) row.hidden = !fits[row.dataset.card];
  byId("found").textContent = `${fits.filter(Boolean).length} of ${cards.length} slides`;
}

for (const head of all("#cohort thead th")) head.querySelector("button")?.addEventListener("click", () => sortBy(head));
byId("search")?.addEventListener("input", filter);
byId("kind")?.addEventListener("change", filter);

// ---- layers: which one every plate shows

const chosen = { model: "", quantity: "", output: "", heat: true };

// Show the layer of a plate that fits the choice best; its first where none does.
function layerOf(plate) {
  const layers = all(".heat", plate);
  const score = (each) => ["model", "quantity", "output"].reduce((sum, name, i) => sum + (each.dataset[name] === chosen[name] ? 4 >> i : 0), 0);
  const best = layers.reduce((best, each) => (!best || score(each) > score(best) ? each : best), null);
  for (const each of layers) each.hidden = each !== best || !chosen.heat;
  return best;
}

function opacity(percent) {
  document.documentElement.style.setProperty("--opacity", percent / 100);
  for (const each of all(".opacity")) each.value = percent;
  for (const each of all(".opacity-text")) each.textContent = `${Math.round(percent)} %`;
}

function choose(changes) {
  Object.assign(chosen, changes);
  for (const plate of all(".plate")) {
    const layer = layerOf(plate), words = plate.closest("figure")?.querySelector(".what");
    if (layer && words) words.textContent = `${layer.dataset.quantity} for ${layer.dataset.output} (${layer.dataset.model})`;
  }
  for (const name of ["model", "quantity", "output"])
    for (const select of all(`select.${name}`)) if ([...select.options].some((each) => each.value === chosen[name])) select.value = chosen[name];
  for (const each of all(".heat-shown")) each.checked = chosen.heat;
  legend();
}

for (const name of ["model", "quantity", "output"])
  for (const select of all(`select.${name}`)) {
    chosen[name] ||= select.value;
    select.addEventListener("change", () => choose({ [name]: select.value }));
  }
for (const each of all(".opacity")) each.addEventListener("input", () => opacity(Number(each.value)));
for (const each of all(".heat-shown")) each.addEventListener("change", () => choose({ heat: each.checked }));

// ---- one slide closely

const dialog = byId("viewer"), stage = byId("stage");
let current = -1, plate = null, view = { x: 0, y: 0, scale: 1 }, least = 1;

function show(i) {
  const source = cards[i]?.querySelector(".plate");
  if (!source) return;
  current = i;
  plate?.remove();
  plate = source.cloneNode(true);
  stage.prepend(plate);
  const card = cards[i];
  byId("viewer-title").textContent = card.dataset.id;
  byId("viewer-words").textContent = card.dataset.words;
  if (!dialog.open) dialog.showModal();
  choose({});
  fit();
  stage.focus();
  history.replaceState(null, "", `#slide=${encodeURIComponent(card.dataset.id)}`);
}

// A plate is 1000 units wide; view.scale is css pixels per unit, view.x and view.y its corner on the stage.
const size = () => [1000, 1000 / Number(plate.dataset.ratio)];

function fit() {
  const [w, h] = [stage.clientWidth, stage.clientHeight], [pw, ph] = size();
  Object.assign(plate.style, { width: `${pw}px`, height: `${ph}px` });
  least = Math.min(w / pw, h / ph) * 0.97;
  go((w - pw * least) / 2, (h - ph * least) / 2, least);
}

function go(x, y, scale) {
  const [w, h] = [stage.clientWidth, stage.clientHeight], [pw, ph] = size();
  scale = Math.min(Math.max(scale, least * 0.5), least * 60);
  // the middle of the stage stays on the slide
  view = { scale, x: Math.min(w / 2, Math.max(w / 2 - pw * scale, x)), y: Math.min(h / 2, Math.max(h / 2 - ph * scale, y)) };
  plate.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  Object.assign(stage.dataset, view);
  const um = Number(plate.dataset.um) / pw / view.scale;       // per css pixel
  const most = 180 * um, power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((n) => n * power).find((each) => each <= most) ?? power;
  byId("scale").hidden = !(um > 0);
  byId("scale-bar").style.width = `${length / um}px`;
  byId("scale-text").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(Math.max(view.scale * factor, least * 0.5), least * 60), k = scale / view.scale;
  go(x - (x - view.x) * k, y - (y - view.y) * k, scale);
}

function legend() {
  if (!plate) return;
  const layer = layerOf(plate), box = byId("legend");
  // hidden without a change of layout: the stage keeps its size
  for (const each of [box, byId("legend-words")]) each.style.visibility = layer && chosen.heat ? "visible" : "hidden";
  if (!layer) return;
  const { model, quantity, output, low, high } = layer.dataset;
  byId("legend-low").textContent = number(Number(low));
  byId("legend-high").textContent = number(Number(high));
  byId("legend-bar").style.background = byId(`colours-${quantity}`)?.dataset.colours ?? "";
  byId("legend-words").textContent = `${quantity === "evidence" ? "signed class evidence" : quantity} for ${output}, ${model}; lowest to highest value of the slide`;
}

// The next card that is to be seen, in the order of the page.
function step(by) {
  const shown = all("#cards article").filter((card) => !card.hidden && card.querySelector(".plate")).map((card) => cards.indexOf(card));
  if (shown.length) show(shown[(shown.indexOf(current) + by + shown.length) % shown.length]);
}

function cycle(name) {
  const select = dialog.querySelector(`select.${name}`);
  if (!select || select.options.length < 2) return;
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  choose({ [name]: select.value });
}

const pointers = new Map();
const css = (event) => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, css(event));
  stage.classList.add("held");
});
stage.addEventListener("pointermove", (event) => {
  if (!pointers.has(event.pointerId)) return;
  const middle = (points) => [0, 1].map((axis) => points.reduce((sum, p) => sum + p[axis], 0) / points.length);
  const before = [...pointers.values()];
  pointers.set(event.pointerId, css(event));
  const after = [...pointers.values()], [a, b] = [middle(before), middle(after)];
  go(view.x + b[0] - a[0], view.y + b[1] - a[1], view.scale);
  if (before.length > 1) {
    const apart = ([p, q]) => Math.hypot(p[0] - q[0], p[1] - q[1]) || 1;
    zoom(apart(after) / apart(before), ...b);
  }
});
for (const name of ["pointerup", "pointercancel"])
  stage.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    if (!pointers.size) stage.classList.remove("held");
  });
stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(2 ** (-Math.max(-400, Math.min(400, event.deltaY * (event.deltaMode === 1 ? 16 : 1))) / 240), ...css(event));
}, { passive: false });
stage.addEventListener("dblclick", (event) => zoom(2, ...css(event)));

const move = (dx, dy) => go(view.x + dx, view.y + dy, view.scale);
const KEYS = {
  ArrowLeft: () => move(90, 0), ArrowRight: () => move(-90, 0), ArrowUp: () => move(0, 90), ArrowDown: () => move(0, -90),
  "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit, n: () => step(1), p: () => step(-1),
  h: () => choose({ heat: !chosen.heat }), q: () => cycle("quantity"), c: () => cycle("output"),
  "[": () => opacity(Math.max(0, dialog.querySelector(".opacity").value - 10)),
  "]": () => opacity(Math.min(100, Number(dialog.querySelector(".opacity").value) + 10)),
};
dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  if (event.target.matches("input, select") && event.key.startsWith("Arrow")) return;
  KEYS[event.key]();
  event.preventDefault();
});
for (const [id, does] of Object.entries({
  closer: () => zoom(1.5), farther: () => zoom(1 / 1.5), whole: fit, next: () => step(1), previous: () => step(-1), close: () => dialog.close(),
})) byId(id).addEventListener("click", does);
dialog.addEventListener("close", () => {
  history.replaceState(null, "", "#slides");
  cards[current]?.querySelector(".open")?.focus();
});
addEventListener("resize", () => dialog.open && fit());
cards.forEach((card, i) => card.querySelector(".open")?.addEventListener("click", () => show(i)));

function follow() {
  const id = new URLSearchParams(location.hash.slice(1)).get("slide");
  const i = cards.findIndex((card) => card.dataset.id === id);
  if (i >= 0) show(i);
}
addEventListener("hashchange", follow);
for (const each of all(".needs-script")) each.hidden = false;
choose({});
opacity(60);
follow();
