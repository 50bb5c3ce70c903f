// The page: what is chosen, and who is told. Comes in: clicks, keys, the address. Goes out: a picture on the canvas.

import { Camera } from "./camera.js";
import { Heat } from "./heat.js";
import * as link from "./link.js";
import * as panel from "./panel.js";
import { Squares } from "./squares.js";
import { byId, make } from "./panel.js";

const state = { slide: "", model: "", quantity: "", output: "", normalize: "", heat: true, outline: true, opacity: 0.6, patch: -1 };
const canvas = byId("stage"), context = canvas.getContext("2d");
const NORMALIZE = ["minmax", "percentile", "none"];
let rows = [], palettes = {}, info = null, squares = null, heat = null, scaled = null, lowest = false, turn = 0;
let pending = 0, linking = 0;

const base = (id) => `slides/${encodeURIComponent(id)}`;
const camera = new Camera(canvas, { changed: () => draw(), clicked: (x, y) => pick(heat?.coords ? heat.at(x, y) : -1, false) });

async function json(address) {
  const answer = await fetch(address), content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function say(words) {
  byId("message").textContent = words;
  byId("message").hidden = !words;
}

// Draw once before the next picture of the screen, however often it is asked for.
function draw() {
  if (!pending) pending = requestAnimationFrame(paint);
}

function paint() {
  pending = 0;
  const ratio = devicePixelRatio || 1, [w, h] = camera.size;
  const size = [Math.round(w * ratio), Math.round(h * ratio)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  context.fillStyle = "#e9ecee";
  context.fillRect(0, 0, ...size);
  if (!info) return;
  const [left, top] = camera.toSlide(0, 0), [right, bottom] = camera.toSlide(w, h), density = camera.scale * ratio;
  const frame = { left, top, density, box: [left, top, right, bottom] };
  const place = (x, y) => [(x - left) * density, (y - top) * density];
  context.save();
  context.beginPath();
  context.rect(...place(0, 0), info.width * density, info.height * density);
  context.clip();
  context.fillStyle = info.problem ? "#c8cdd0" : "#f4f5f5";
  context.fillRect(0, 0, ...size);
  context.imageSmoothingQuality = "high";
  squares?.draw(context, frame);
  if (state.heat) heat?.draw(context, frame, state.opacity);
  if (state.outline) outline(place, ratio);
  context.restore();
  if (state.patch >= 0 && heat?.coords) frameOf(place, density, ratio);
  scale();
  trouble();
  remember();
  // What tests wait for: the picture is complete, and of which place it is.
  canvas.dataset.idle = String(!squares || squares.idle);
  Object.assign(canvas.dataset, { x: camera.x, y: camera.y, scale: camera.scale });
}

function outline(place, ratio) {
  context.lineWidth = 2 * ratio;
  context.strokeStyle = "#1f6feb";
  context.beginPath();
  for (const ring of info.outline) {
    ring.forEach(([x, y], i) => (i ? context.lineTo(...place(x, y)) : context.moveTo(...place(x, y))));
    context.closePath();
  }
  context.stroke();
}

function frameOf(place, density, ratio) {
  const side = heat.about.size * density, [x, y] = place(...heat.corner(state.patch));
  for (const [colour, width] of [["#ffffff", 5], ["#d6336c", 2.5]]) {
    Object.assign(context, { strokeStyle: colour, lineWidth: width * ratio });
    context.strokeRect(x, y, side, side);
  }
}

function scale() {
  const bar = panel.scaleBar(info.mpp / camera.scale);
  byId("scale-bar").style.width = `${bar.width}px`;
  byId("scale-text").textContent = bar.text;
  byId("scale-mpp").textContent = `${Number((info.mpp / camera.scale / (devicePixelRatio || 1)).toPrecision(3))} µm per screen pixel`;
}

function trouble() {
  if (info.problem) say(`Shown without its picture: ${info.problem}`);
  else if (squares.tooFar) say("The slide's file has no small copies of itself: come closer to see it.");
  else if (squares.failed.size) say([...squares.failed.values()][0]);
  else say("");
}

// The address follows the view, not faster than browsers allow.
function remember() {
  clearTimeout(linking);
  linking = setTimeout(() => history.replaceState(null, "", here()), 150);
}

const here = () => link.write({ ...state, x: camera.x, y: camera.y, z: Math.log2(camera.scale) });

// Open a slide; `wanted` are fields of a link.
async function open(id, wanted = {}) {
  const mine = ++turn;
  squares?.close();
  [info, squares, heat, scaled, state.slide, state.patch] = [null, null, null, null, id, -1];
  byId("title").textContent = id;
  byId("subtitle").textContent = "opening …";
  document.title = `${id}: wsi-mil view`;
  mark();
  draw();
  let found;
  try {
    found = await json(`${base(id)}/info.json`);
  } catch (error) {
    if (mine === turn) [byId("subtitle").textContent] = [""], say(error.message);
    return;
  }
  if (mine !== turn) return;
  info = found;
  squares = info.problem ? null : new Squares(base(id), info, draw);
  camera.show(info.width, info.height);
  if (Number.isFinite(wanted.x) && Number.isFinite(wanted.y)) camera.go(wanted.x, wanted.y, 2 ** (wanted.z ?? 0));
  subtitle();
  for (const name of ["heat", "outline", "opacity"]) if (name in wanted) state[name] = wanted[name];
  state.opacity = Math.min(1, Math.max(0, state.opacity));
  await choose(wanted);
  if (mine === turn && heat?.coords && wanted.patch >= 0 && wanted.patch < heat.all) pick(wanted.patch, false);
}

function subtitle() {
  const verdicts = rows.find((row) => row.id === state.slide)?.verdicts ?? {};
  byId("subtitle").textContent = Object.entries(verdicts)
    .map(([name, { label, predicted }]) => `${label ? `label ${label}, ` : ""}predicted ${predicted} (${name})`).join(" · ");
}

// Take model, quantity, class and normalisation as far as the slide has them, load what they need, and draw.
async function choose(wanted = {}) {
  const mine = turn, usable = info.heatmaps.filter((each) => !each.problem);
  const problem = info.heatmaps.find((each) => each.problem)?.problem;
  byId("heat-controls").hidden = !usable.length;
  byId("strip-box").hidden = !usable.length;
  byId("no-heat").hidden = Boolean(usable.length);
  byId("no-heat").textContent = problem ?? "This slide has no heatmap: wsi-mil heatmap draws it.";
  const about = usable.find((each) => each.name === (wanted.model ?? state.model)) ?? usable[0];
  panel.facts(info, about);
  controls();
  if (!about) return draw();
  const changed = heat?.about.name !== about.name;
  if (changed) {
    heat = new Heat(base(info.id), about, [info.width, info.height], palettes);
    pick(-1);
  }
  const fresh = (name, first) => wanted[name] || state[name] || first;
  state.model = panel.options(byId("model"), usable.map((each) => each.name), about.name);
  state.quantity = panel.options(byId("quantity"), about.quantities, fresh("quantity", about.shown.quantity), panel.nameOf);
  state.output = panel.options(byId("output"), about.outputs, fresh("output", about.shown.output));
  state.normalize = fresh("normalize", about.normalize);
  if (!NORMALIZE.includes(state.normalize)) state.normalize = "minmax";
  byId("normalize").value = state.normalize;
  try {
    await heat.load(state.quantity);
  } catch (error) {
    return say(error.message);
  }
  if (mine !== turn) return;
  scaled = heat.paint(state.quantity, state.output, state.normalize);
  panel.legend(heat, scaled, state, about.facts);
  panel.strip(heat, state, lowest, picture, flyTo);
  if (state.patch >= 0) pick(state.patch, false);
  draw();
}

function controls() {
  byId("heat").checked = state.heat;
  byId("outline").checked = state.outline;
  byId("opacity").value = Math.round(state.opacity * 100);
  byId("opacity-text").textContent = `${Math.round(state.opacity * 100)} %`;
}

const picture = (i, px = 176) => (info.problem || i >= heat.count ? "" : `${base(info.id)}/patch/${encodeURIComponent(heat.about.name)}/${i}/${px}`);

// Show a patch, and fly to it unless it was clicked where it lies.
async function pick(i, flying = true) {
  const mine = turn;
  state.patch = i;
  byId("patch-hint").hidden = i >= 0;
  byId("patch-body").hidden = i < 0;
  draw();
  if (i < 0) return;
  const [x, y] = heat.corner(i), { size } = heat.about, middle = [x + size / 2, y + size / 2];
  if (flying && !seen(...middle)) camera.go(...middle, Math.max(camera.scale, 160 / size), true);
  await Promise.all(heat.about.quantities.map((each) => heat.load(each).catch(() => {})));
  if (mine !== turn || state.patch !== i) return;
  const um = (px) => `${Math.round(px * info.mpp)} µm`;
  byId("patch-place").textContent = `patch ${i} at x ${x}, y ${y} (level 0); ${um(x)} from the left, ${um(y)} from the top; ${um(size)} wide`;
  const shown = byId("patch-picture");
  shown.hidden = !picture(i);
  if (picture(i)) [shown.src, shown.alt] = [picture(i, 256), `patch ${i}`];
  panel.values(heat, i, state);
  panel.neighbours(heat, i, state, scaled.shades, (j) => pick(j));
}

// Whether a point of the slide is seen at a size where a patch is one.
function seen(x, y) {
  const [cx, cy] = camera.toCss(x, y), [w, h] = camera.size;
  return camera.scale * heat.about.size > 40 && cx > 0 && cy > 0 && cx < w && cy < h;
}

function flyTo(i) {
  const [x, y] = heat.corner(i), { size } = heat.about;
  camera.go(x + size / 2, y + size / 2, Math.max(camera.scale, 160 / size), true);
  pick(i, false);
}

function mark() {
  for (const each of byId("slides").querySelectorAll("button")) {
    const current = each.dataset.id === state.slide;
    each.setAttribute("aria-current", String(current));
    if (current) each.scrollIntoView({ block: "nearest" });
  }
}

function list() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = rows.filter((row) => words.every((word) => row.text.includes(word)));
  byId("count").textContent = kept.length === rows.length ? `${rows.length} in the run` : `${kept.length} of ${rows.length}`;
  byId("slides").replaceChildren(...kept.map((row) => {
    const verdict = Object.values(row.verdicts)[0], wrong = verdict?.label && verdict.label !== verdict.predicted;
    const below = verdict ? `${verdict.label ? `${verdict.label} → ` : ""}${verdict.predicted}` : row.heatmaps.length ? "" : "no heatmap";
    const button = make("button", { type: "button", className: wrong ? "wrong" : "" }, make("b", { textContent: row.id }), make("span", { textContent: below + (wrong ? " (wrong)" : "") }));
    button.dataset.id = row.id;
    button.addEventListener("click", () => open(row.id));
    return make("li", {}, button);
  }));
  mark();
}

function step(by) {
  const shown = [...byId("slides").querySelectorAll("button")].map((each) => each.dataset.id);
  if (!shown.length) return;
  const at = shown.indexOf(state.slide);
  open(shown[(at + by + shown.length) % shown.length]);
}

function cycle(select) {
  if (select.options.length < 2) return;
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  select.dispatchEvent(new Event("change"));
}

function toggle(id, button) {
  const open = document.body.classList.toggle(`no-${id}`) === false;
  byId(button).setAttribute("aria-expanded", String(open));
  draw();
}

function order() {
  lowest = !lowest;
  byId("strip-order").setAttribute("aria-pressed", String(lowest));
  byId("strip-order").textContent = lowest ? "show highest" : "show lowest";
  if (heat && scaled) panel.strip(heat, state, lowest, picture, flyTo);
}

function opacity(value) {
  state.opacity = Math.min(1, Math.max(0, value));
  controls();
  draw();
}

function flag(name) {
  state[name] = !state[name];
  controls();
  draw();
}

const KEYS = {
  h: () => flag("heat"), o: () => flag("outline"), "[": () => opacity(state.opacity - 0.1), "]": () => opacity(state.opacity + 0.1),
  q: () => cycle(byId("quantity")), c: () => cycle(byId("output")), m: () => cycle(byId("normalize")), t: order,
  n: () => step(1), p: () => step(-1), l: () => toggle("list", "toggle-list"), s: () => toggle("panel", "toggle-panel"),
  Escape: () => pick(-1), "?": () => byId("help").showModal(),
};

function wire() {
  const typing = (target) => target.matches("input:not([type=checkbox]), select, textarea");
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || byId("help").open) return;
    const arrows = event.key.startsWith("Arrow") && event.target !== canvas && event.target !== document.body;
    if (!info && "hoq[]cmt0".includes(event.key)) return;
    if (KEYS[event.key]) KEYS[event.key]();
    else if (arrows || !info || !camera.key(event.key)) return;
    event.preventDefault();
  });
  for (const name of ["model", "quantity", "output", "normalize"])
    byId(name).addEventListener("change", (event) => choose({ [name]: event.target.value }));
  for (const name of ["heat", "outline"]) byId(name).addEventListener("change", () => flag(name));
  const on = (id, what, does) => byId(id).addEventListener(what, does);
  on("opacity", "input", (event) => opacity(event.target.value / 100));
  on("search", "input", list);
  on("strip-order", "click", order);
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  on("zoom-in", "click", () => camera.zoom(1.5));
  on("zoom-out", "click", () => camera.zoom(1 / 1.5));
  on("zoom-all", "click", () => camera.all(true));
  on("toggle-list", "click", () => toggle("list", "toggle-list"));
  on("toggle-panel", "click", () => toggle("panel", "toggle-panel"));
  on("link", "click", async () => {
    history.replaceState(null, "", here());
    await navigator.clipboard.writeText(location.href);
    byId("link").textContent = "Copied";
    setTimeout(() => (byId("link").textContent = "Copy a link to this view"), 1500);
  });
  new ResizeObserver(() => camera.resized()).observe(canvas);
  addEventListener("hashchange", () => start());
}

function start() {
  const wanted = link.read(location.hash);
  const id = rows.some((row) => row.id === wanted.slide) ? wanted.slide : (rows.find((row) => row.heatmaps.length) ?? rows[0]).id;
  if (wanted.slide && id !== wanted.slide) say(`The run has no slide ${wanted.slide}.`);
  return open(id, wanted.slide && id !== wanted.slide ? {} : wanted);
}

try {
  [rows, palettes] = await Promise.all([json("slides.json"), json("palettes.json")]);
  for (const row of rows)
    row.text = [row.id, ...Object.values(row.verdicts).flatMap(({ label, predicted }) => [label, predicted])].join(" ").toLowerCase();
  if (innerWidth < 900) document.body.classList.add("no-list", "no-panel");
  wire();
  list();
  await start();
} catch (error) {
  say(error.message);
}
