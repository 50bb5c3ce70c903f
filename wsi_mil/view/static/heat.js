// The heatmap: raw values per patch, their scale, their colours, and which patch lies where.
// Values are those of the file; colours are made here, so that every switch is instant and every edge sharp.

const FAINTEST = 1 / 3;     // opacity of the lowest value as a part of that of the highest, as in overlay.jpg
const MOST_RASTER = 4096;   // cells a side, where patches overlap or lie on no grid
const SIGNED = new Set(["evidence"]);

export class Heat {
  // about: an item of info.heatmaps. palettes: quantity -> 256 [r, g, b].
  constructor(base, about, size, palettes) {
    Object.assign(this, { base: `${base}/heat/${encodeURIComponent(about.name)}`, about, size, palettes });
    this.values = new Map();
  }

  async load(quantity) {
    const bytes = async (name) => {
      const answer = await fetch(`${this.base}/${name}`);
      if (!answer.ok) throw new Error((await answer.json()).error);
      return answer.arrayBuffer();
    };
    this.coords ??= new Int32Array(await bytes("coords"));
    if (!this.values.has(quantity)) this.values.set(quantity, new Float32Array(await bytes(encodeURIComponent(quantity))));
  }

  get count() { return this.about.patches; }                       // the bag
  get all() { return this.about.patches + this.about.dense; }      // and what was embedded between

  // The values of one output, dense ones last; null where they are not loaded.
  row(quantity, output) {
    const values = this.values.get(quantity), k = this.about.outputs.indexOf(output);
    return values && k >= 0 ? values.subarray(k * this.all, (k + 1) * this.all) : null;
  }

  // Make the raster of colours for what is to be shown. Returns {low, high}, the ends of the legend.
  paint(quantity, output, how) {
    const values = this.row(quantity, output);
    this.ends = null;
    if (!values || !values.length) return null;
    const scaled = scale(values, this.count, how, quantity);
    this.raster = this.spread(scaled.shades, this.palettes[quantity] ?? this.palettes.attention, SIGNED.has(quantity));
    this.ends = scaled;
    return scaled;
  }

  // Returns a canvas of cells of side `step` level-0 pixels from (0, 0); a cell shows the mean of its patches.
  spread(shades, palette, signed) {
    const { cells, step } = this.layout();
    const [columns, rows] = [this.columns, this.rows];
    const sums = new Float64Array(columns * rows), counts = new Uint16Array(columns * rows);
    for (let i = 0; i < shades.length; i++) {
      const [x, y] = [cells.at[2 * i], cells.at[2 * i + 1]];
      for (let r = Math.max(0, y); r < Math.min(rows, y + cells.side); r++)
        for (let c = Math.max(0, x); c < Math.min(columns, x + cells.side); c++) {
          sums[r * columns + c] += shades[i];
          counts[r * columns + c]++;
        }
    }
    const canvas = new OffscreenCanvas(columns, rows), context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let i = 0; i < sums.length; i++) {
      if (!counts[i]) continue;
      const shade = Math.min(1, Math.max(0, sums[i] / counts[i]));
      const strength = signed ? Math.abs(2 * shade - 1) : shade;
      image.data.set(palette[Math.round(shade * 255)], 4 * i);
      image.data[4 * i + 3] = Math.round(255 * (FAINTEST + (1 - FAINTEST) * strength));
    }
    context.putImageData(image, 0, 0);
    return { canvas, step };
  }

  // How patches become cells: one each, where they lie on the grid side by side; else `side` x `side` small ones,
  // as few as fit, at worst eighths of a patch.
  layout() {
    if (this.laidOut) return this.laidOut;
    const { size, stride, on_grid: onGrid } = this.about;
    const fits = (step) => this.coords.every((value) => Math.abs(value - Math.round(value / step) * step) <= 1);
    let side = 1, step = stride;
    if (!(onGrid && !this.about.dense && size <= stride + 1)) {
      side = [1, 2, 3, 4, 6].find((n) => fits(size / n)) ?? 8;
      while (side > 1 && Math.max(...this.size) / (size / side) > MOST_RASTER) side--;
      step = size / side;
    }
    const at = this.coords.map((value) => Math.round(value / step));
    const extent = (axis) => at.reduce((most, value, i) => (i % 2 === axis ? Math.max(most, value) : most), 0) + side;
    [this.columns, this.rows] = [extent(0), extent(1)];
    this.laidOut = { cells: { at, side }, step };
    return this.laidOut;
  }

  // Draw over the slide; frame as for squares. The cells keep sharp edges.
  draw(context, { left, top, density, box }, opacity) {
    if (!this.ends) return;
    const { canvas, step } = this.raster;
    // Only the cells that are seen: scaling all of a large raster far up loses precision.
    const first = (value) => Math.max(0, Math.floor(value / step) - 1);
    const [c0, r0] = [first(box[0]), first(box[1])];
    const [c1, r1] = [Math.min(this.columns, Math.ceil(box[2] / step) + 1), Math.min(this.rows, Math.ceil(box[3] / step) + 1)];
    if (c1 <= c0 || r1 <= r0) return;
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, c0, r0, c1 - c0, r1 - r0, (c0 * step - left) * density, (r0 * step - top) * density,
      (c1 - c0) * step * density, (r1 - r0) * step * density);
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = true;
  }

  // Corner (level-0) of a patch.
  corner(i) { return [this.coords[2 * i], this.coords[2 * i + 1]]; }

  // The patch at a point; of several the one whose middle is nearest; -1 where there is none.
  at(x, y) {
    const { size } = this.about;
    let found = -1, nearest = Infinity;
    for (let i = 0; i < this.all; i++) {
      const [dx, dy] = [x - this.coords[2 * i], y - this.coords[2 * i + 1]];
      if (dx < 0 || dy < 0 || dx >= size || dy >= size) continue;
      const far = Math.hypot(dx - size / 2, dy - size / 2);
      if (far < nearest) [found, nearest] = [i, far];
    }
    return found;
  }

  // The nearest patch in each of the eight directions, in rows from the upper left; -1 where there is none.
  around(i) {
    const { stride } = this.about, [x, y] = this.corner(i);
    const found = new Array(9).fill(-1), nearest = new Array(9).fill(Infinity);
    found[4] = i;
    for (let j = 0; j < this.all; j++) {
      const [dx, dy] = [(this.coords[2 * j] - x) / stride, (this.coords[2 * j + 1] - y) / stride];
      if (j === i || Math.abs(dx) > 1.5 || Math.abs(dy) > 1.5) continue;
      const k = 3 * (Math.sign(Math.round(dy)) + 1) + Math.sign(Math.round(dx)) + 1;
      const far = Math.hypot(dx, dy);
      if (k !== 4 && far < nearest[k]) [found[k], nearest[k]] = [j, far];
    }
    return found;
  }

  // Numbers of the bag's patches, highest value first (or lowest); equal ones in their order.
  ranked(quantity, output, lowest = false) {
    const values = this.row(quantity, output), sign = lowest ? 1 : -1;
    return Array.from({ length: this.count }, (_, i) => i).sort((a, b) => sign * (values[a] - values[b]) || a - b);
  }

  // {rank from 1, percentile 0..100 (ties half)} of a patch of the bag.
  standing(i, quantity, output) {
    const values = this.row(quantity, output).subarray(0, this.count);
    let [above, below] = [0, 0];
    for (const value of values) {
      if (value > values[i]) above++;
      else if (value < values[i]) below++;
    }
    const n = values.length, ties = n - 1 - above - below;
    return { rank: above + 1, percentile: n > 1 ? (100 * (below + ties / 2)) / (n - 1) : 50 };
  }
}

// Returns {shades (0..1 each), low, high: the raw values (or percentiles) at 0 and 1, unit}. The ends are those of
// the first n values; others may lie beyond. Equal values are 0.5 all: none stands out. Of signed quantities 0.5 is
// zero, in every way. The same formulas as those of the overlay (wsi_mil/heatmap/scores.py).
export function scale(values, n, how, quantity) {
  const bag = values.subarray(0, n), signed = SIGNED.has(quantity);
  if (how === "percentile") return percentiles(values, bag, signed);
  let [low, high] = [Infinity, -Infinity];
  for (const value of bag) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (signed) {
    high = Math.max(Math.abs(low), Math.abs(high)) || 1;
    low = -high;
  } else if (how === "none") {
    low = Math.min(0, low);
    if ((high > 0.5 && high <= 1) || high <= low) high = 1;
  }
  return { shades: values.map((value) => (high > low ? (value - low) / (high - low) : 0.5)), low, high, unit: "" };
}

// The share of the bag's other values that are lower, ties counted half; of signed ones the rank of the magnitude.
function percentiles(values, bag, signed) {
  const n = bag.length, order = (signed ? bag.map(Math.abs) : bag.slice()).sort();
  const before = (value, ties) => {    // how many are below, or (ties) not above
    let [low, high] = [0, n];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (order[middle] < value || (ties && order[middle] === value)) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const rank = (value) => (before(value, false) + before(value, true) + 1) / 2;    // from 1, the mean of equal ones
  const limit = (value) => Math.min(1, Math.max(0, value));
  const share = (value) => (n > 1 ? limit((rank(value) - 1) / (n - 1)) : 0.5);
  const signedShare = (value) => 0.5 + 0.5 * Math.sign(value) * limit((rank(Math.abs(value)) - 0.5) / n);
  if (signed) return { shades: values.map(signedShare), low: -100, high: 100, unit: "th percentile of magnitude" };
  return { shades: values.map(share), low: 0, high: 100, unit: "th percentile" };
}
