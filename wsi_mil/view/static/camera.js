// Which part of the slide the canvas shows. Points: _l0 level-0 pixels of the slide, _css pixels of the page.
// Comes in: pointers, wheel, keys. Goes out: x, y (level-0 of the canvas's middle) and scale (css pixels per
// level-0 pixel). It draws nothing and knows no slide but its size.

const CLOSEST = 8;          // css pixels per level-0 pixel
const CLICK = 5;            // css pixels that a pointer may move and still click
const FLIGHT_MS = 450;

export class Camera {
  constructor(canvas, { changed, clicked }) {
    Object.assign(this, { canvas, changed, clicked, x: 0, y: 0, scale: 1, width: 1, height: 1 });
    this.pointers = new Map();
    this.flight = 0;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoom(2, ...this.css(event), true));
  }

  // Size of the canvas in css pixels.
  get size() { return [this.canvas.clientWidth || 1, this.canvas.clientHeight || 1]; }

  css(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  toSlide(cx, cy) {
    const [w, h] = this.size;
    return [this.x + (cx - w / 2) / this.scale, this.y + (cy - h / 2) / this.scale];
  }

  toCss(x, y) {
    const [w, h] = this.size;
    return [(x - this.x) * this.scale + w / 2, (y - this.y) * this.scale + h / 2];
  }

  // The scale at which the whole slide is seen.
  get whole() {
    const [w, h] = this.size;
    return Math.min(w / this.width, h / this.height) * 0.96;
  }

  show(width, height) {
    Object.assign(this, { width, height });
    this.all();
  }

  // Show the whole slide, and go on doing so when the canvas changes its size, until something moves.
  all(flying = false) {
    this.go(this.width / 2, this.height / 2, this.whole, flying);
    this.fitted = true;
  }

  resized() {
    if (this.fitted) this.all();
    else this.changed();
  }

  // Put level-0 (x, y) into the middle. Beyond the edges and too far or too close is not allowed.
  go(x, y, scale, flying = false) {
    const limit = (value, low, high) => Math.min(Math.max(value, low), high);
    scale = limit(scale, Math.min(this.whole, CLOSEST) * 0.5, CLOSEST);
    [x, y] = [limit(x, 0, this.width), limit(y, 0, this.height)];
    cancelAnimationFrame(this.flight);
    this.fitted = false;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (flying && !still) return this.fly(x, y, scale);
    Object.assign(this, { x, y, scale });
    this.changed();
  }

  // Straight in the logarithm of the scale; the target comes to the middle as it comes closer.
  fly(x, y, scale) {
    const from = { x: this.x, y: this.y, scale: this.scale }, start = performance.now();
    const step = (now) => {
      const t = Math.min(1, (now - start) / FLIGHT_MS), ease = t * t * (3 - 2 * t);
      this.scale = from.scale * (scale / from.scale) ** ease;
      this.x = from.x + (x - from.x) * ease;
      this.y = from.y + (y - from.y) * ease;
      if (t < 1) this.flight = requestAnimationFrame(step);
      else Object.assign(this, { x, y, scale });
      this.changed();
    };
    this.flight = requestAnimationFrame(step);
  }

  // Zoom by a factor about a point of the canvas, which stays where it is.
  zoom(factor, cx, cy, flying = false) {
    const [w, h] = this.size;
    [cx, cy] = [cx ?? w / 2, cy ?? h / 2];
    const scale = Math.min(Math.max(this.scale * factor, Math.min(this.whole, CLOSEST) * 0.5), CLOSEST);
    const [x, y] = this.toSlide(cx, cy);
    this.go(x - (cx - w / 2) / scale, y - (cy - h / 2) / scale, scale, flying);
  }

  pan(dx, dy) { this.go(this.x - dx / this.scale, this.y - dy / this.scale, this.scale); }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    this.zoom(2 ** (-Math.max(-400, Math.min(400, event.deltaY * lines)) / 240), ...this.css(event));
  }

  down(event) {
    if (event.button > 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    cancelAnimationFrame(this.flight);
    this.pointers.set(event.pointerId, this.css(event));
    this.travelled = this.pointers.size > 1 ? Infinity : 0;
    this.canvas.classList.add("held");
  }

  // One pointer pans; two pinch: their middle pans, their distance zooms.
  move(event) {
    if (!this.pointers.has(event.pointerId)) return;
    const before = [...this.pointers.values()];
    this.pointers.set(event.pointerId, this.css(event));
    const after = [...this.pointers.values()];
    const middle = (points) => [0, 1].map((axis) => points.reduce((sum, p) => sum + p[axis], 0) / points.length);
    const [a, b] = [middle(before), middle(after)];
    this.travelled += Math.hypot(b[0] - a[0], b[1] - a[1]);
    if (this.travelled < CLICK) return;
    this.pan(b[0] - a[0], b[1] - a[1]);
    if (before.length > 1) {
      const apart = ([p, q]) => Math.hypot(p[0] - q[0], p[1] - q[1]) || 1;
      this.zoom(apart(after) / apart(before), ...b);
    }
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (!this.pointers.size) this.canvas.classList.remove("held");
    if (event.type === "pointerup" && this.travelled < CLICK) this.clicked(...this.toSlide(...this.css(event)));
  }

  // Returns whether the key was one of its own.
  key(name) {
    const [w, h] = this.size, step = Math.min(w, h) / 5;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[name]) this.pan(...moves[name]);
    else if (name === "+" || name === "=") this.zoom(1.5);
    else if (name === "-" || name === "_") this.zoom(1 / 1.5);
    else if (name === "0" || name === "Home") this.all(true);
    else if (name === "1") this.go(this.x, this.y, 1 / devicePixelRatio, true);
    else return false;
    return true;
  }
}
