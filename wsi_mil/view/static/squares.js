// The slide's picture: squares at several depths, fetched as they are needed and kept while there is room.
// At depth k a square shows side * 2^k level-0 pixels. Coarser ones stand in for those that are on their way.

const MOST_KEPT = 600;      // pictures of 256 x 256: about 160 MB at worst
const AT_ONCE = 6;
const MOST_WANTED = 400;    // more in one view: the slide has no small levels, and would be read whole

export class Squares {
  constructor(base, info, changed) {
    Object.assign(this, { base, info, changed });
    this.kept = new Map();      // name -> ImageBitmap, in the order of their last use
    this.busy = new Map();      // name -> AbortController
    this.failed = new Map();    // name -> why
    this.wanted = [];
    this.tooFar = false;
  }

  // Fetch nothing more and forget all.
  close() {
    for (const each of this.busy.values()) each.abort();
    for (const each of this.kept.values()) each.close();
    this.kept.clear();
    this.wanted = [];
    this.closed = true;
  }

  // The depth for a number of device pixels per level-0 pixel: a little finer than these.
  depth(density) {
    const k = Math.floor(Math.log2(1 / density) + 0.25);
    return Math.min(Math.max(k, 0), this.info.coarsest);
  }

  // Names [k, column, row] of the squares of a depth that touch the box (left, top, right, bottom; level-0).
  inside(k, [left, top, right, bottom]) {
    const step = this.info.side * 2 ** k;
    const last = (size) => Math.ceil(size / step) - 1;
    const names = [];
    for (let row = Math.max(0, Math.floor(top / step)); row <= Math.min(last(this.info.height), Math.floor(bottom / step)); row++)
      for (let column = Math.max(0, Math.floor(left / step)); column <= Math.min(last(this.info.width), Math.floor(right / step)); column++)
        names.push([k, column, row]);
    return names;
  }

  // Draw what lies in the box of a frame {left, top (level-0), density (device pixels per level-0 pixel), box}.
  draw(context, frame) {
    const { box, density } = frame, wanted = this.depth(density), here = this.inside(wanted, box);
    this.tooFar = here.length > MOST_WANTED;
    const names = this.tooFar ? [] : here;
    const missing = names.filter((name) => !this.kept.has(name.join("/")));
    if (missing.length || this.tooFar) {
      for (let k = this.info.coarsest; k > wanted; k--) this.paint(context, frame, this.inside(k, box));
      if (wanted > 0) this.paint(context, frame, this.inside(wanted - 1, box).slice(0, MOST_WANTED));
    }
    this.paint(context, frame, names);
    const [cx, cy] = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], step = this.info.side * 2 ** wanted;
    const far = ([, column, row]) => Math.hypot((column + 0.5) * step - cx, (row + 0.5) * step - cy);
    this.wanted = missing.filter((name) => !this.failed.has(name.join("/"))).sort((a, b) => far(a) - far(b));
    const still = new Set(this.wanted.map((name) => name.join("/")));
    for (const [name, control] of this.busy) if (!still.has(name)) control.abort();
    this.fetchNext();
  }

  // Edges are rounded to device pixels, each in one way only, so that no seam shows between two squares.
  paint(context, { left, top, density }, names) {
    for (const [k, column, row] of names) {
      const key = `${k}/${column}/${row}`, bitmap = this.kept.get(key);
      if (!bitmap) continue;
      this.kept.delete(key);
      this.kept.set(key, bitmap);
      const step = this.info.side * 2 ** k;
      const x = (n) => Math.round((n * step - left) * density), y = (n) => Math.round((n * step - top) * density);
      context.drawImage(bitmap, x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
    }
  }

  fetchNext() {
    while (this.busy.size < AT_ONCE) {
      const next = this.wanted.find((name) => !this.busy.has(name.join("/")) && !this.kept.has(name.join("/")));
      if (!next) return;
      this.fetch(next.join("/"));
    }
  }

  async fetch(key) {
    const control = new AbortController();
    this.busy.set(key, control);
    try {
      const answer = await fetch(`${this.base}/square/${key}`, { signal: control.signal });
      if (!answer.ok) throw new Error((await answer.json()).error);
      const bitmap = await createImageBitmap(await answer.blob());
      if (this.closed) return bitmap.close();
      this.kept.set(key, bitmap);
      while (this.kept.size > MOST_KEPT) {
        const [oldest, old] = this.kept.entries().next().value;
        old.close();
        this.kept.delete(oldest);
      }
    } catch (error) {
      if (error.name !== "AbortError") this.failed.set(key, error.message);
    } finally {
      this.busy.delete(key);
      if (!this.closed) this.changed();
    }
  }

  // Whether all that is to be seen is there.
  get idle() { return !this.busy.size && !this.wanted.some((name) => !this.kept.has(name.join("/"))); }
}
