// Words and small pictures beside the slide: legend, patch with its values and neighbours, strip of top patches.
// Comes in: a Heat and what is chosen. Goes out: elements. All text from outside is set as text, never as HTML.

export const STRIP = 12;
const NAMES = { attention: "attention", evidence: "class evidence (signed)", probability: "probability of the patch alone" };

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);
export const nameOf = (quantity) => NAMES[quantity] ?? quantity;

export function number(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

export function options(select, values, chosen, words = (value) => value) {
  select.replaceChildren(...values.map((value) => make("option", { value, textContent: words(value) })));
  select.value = values.includes(chosen) ? chosen : values[0] ?? "";
  return select.value;
}

export function legend(heat, scaled, { quantity, output, model, normalize }, facts) {
  const bar = byId("legend-bar"), context = bar.getContext("2d"), image = context.createImageData(256, 1);
  const palette = heat.palettes[quantity] ?? heat.palettes.attention;
  palette.forEach((colour, i) => image.data.set([...colour, 255], 4 * i));
  context.putImageData(image, 0, 0);
  const [low, high] = scaled ? [scaled.low, scaled.high] : [NaN, NaN];
  byId("legend-low").textContent = number(low);
  byId("legend-high").textContent = number(high) + (scaled?.unit ? ` ${scaled.unit}` : "");
  const way = { minmax: "lowest to highest value of the slide", percentile: "percentiles within the slide", none: "values as they are" };
  const text = `${nameOf(quantity)} for ${output}, model ${model}; ${way[normalize]}`;
  byId("legend-text").textContent = text + (facts?.drawn_by ? `; ${facts.drawn_by}` : "");
  byId("legend").setAttribute("aria-label", `Colours from ${number(low)} to ${number(high)}: ${text}`);
}

// Fill the table of a patch: a row for each quantity and output, that of the map marked.
export function values(heat, i, chosen) {
  const head = make("tr", {}, ...["", "value", "percentile", "rank"].map((textContent) => make("th", { textContent, scope: "col" })));
  const rows = [];
  for (const quantity of heat.about.quantities)
    for (const output of heat.about.outputs) {
      const all = heat.row(quantity, output);
      if (!all) continue;
      const inBag = i < heat.count, { rank, percentile } = inBag ? heat.standing(i, quantity, output) : {};
      const cells = [number(all[i]), inBag ? percentile.toFixed(0) : "", inBag ? `${rank} of ${heat.count}` : "between"];
      const name = heat.about.outputs.length > 1 ? `${quantity}, ${output}` : quantity;
      rows.push(make("tr", { className: quantity === chosen.quantity && output === chosen.output ? "chosen" : "" },
        make("th", { textContent: name, scope: "row" }), ...cells.map((textContent) => make("td", { textContent }))));
    }
  byId("patch-values").replaceChildren(head, ...rows);
}

// The nine places around a patch as buttons, coloured as the map is; pick(i) is called for the one that is taken.
export function neighbours(heat, i, chosen, shades, pick) {
  const row = heat.row(chosen.quantity, chosen.output);
  const palette = heat.palettes[chosen.quantity] ?? heat.palettes.attention;
  byId("neighbours").replaceChildren(...heat.around(i).map((j, place) => {
    if (j < 0) return make("span", { className: "empty", title: "no patch there" });
    const [r, g, b] = palette[Math.round(Math.min(1, Math.max(0, shades[j])) * 255)];
    const dark = 0.299 * r + 0.587 * g + 0.114 * b < 140;
    const button = make("button", { type: "button", textContent: number(row[j]), disabled: place === 4, title: place === 4 ? "this patch" : `patch ${j}` });
    Object.assign(button.style, { background: `rgb(${r} ${g} ${b})`, color: dark ? "#fff" : "#111" });
    button.addEventListener("click", () => pick(j));
    return button;
  }));
}

// The strip: pictures of the first patches of an order. picture(i) is an address, or "" where there is no slide.
export function strip(heat, chosen, lowest, picture, pick) {
  const row = heat.row(chosen.quantity, chosen.output);
  const numbers = heat.ranked(chosen.quantity, chosen.output, lowest).slice(0, STRIP);
  byId("strip").replaceChildren(...numbers.map((i, rank) => {
    const words = `${rank + 1}. ${number(row[i])}`, address = picture(i);
    const shown = address ? make("img", { src: address, alt: "", width: 88, height: 88, loading: "lazy" }) : make("span", { className: "grey" });
    const button = make("button", { type: "button", title: `patch ${i}: fly there` }, shown, make("span", { textContent: words }));
    button.dataset.patch = i;
    button.addEventListener("click", () => pick(i));
    return make("li", {}, button);
  }));
  byId("strip-title").textContent = `${lowest ? "Lowest" : "Highest"} ${numbers.length} of ${heat.count} patches: ${nameOf(chosen.quantity)} for ${chosen.output}`;
}

// A round length that is at most `most` css pixels wide: {width, text}.
export function scaleBar(umPerCss, most = 180) {
  const longest = most * umPerCss, power = 10 ** Math.floor(Math.log10(longest));
  const length = [5, 2, 1].map((n) => n * power).find((each) => each <= longest) ?? power;
  return { width: length / umPerCss, text: length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm` };
}

export function facts(info, about) {
  const size = (px) => `${((px * info.mpp) / 1000).toFixed(2)} mm`;
  const rows = [
    ["slide", `${info.width} × ${info.height} px, ${size(info.width)} × ${size(info.height)}`],
    ["resolution", `${Number(info.mpp.toPrecision(4))} µm per pixel`],
    ["patches", `${info.patch.px} px at ${info.patch.mpp} µm per pixel`],
  ];
  if (info.note) rows.push(["note", info.note]);
  if (about) {
    rows.push(["in the heatmap", `${about.patches}${about.dense ? ` and ${about.dense} between` : ""}`]);
    for (const [name, value] of Object.entries(about.facts)) {
      if (value === null) continue;
      const text = typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k} ${typeof v === "number" ? number(v) : v}`).join(", ") : String(value);
      rows.push([name.replaceAll("_", " "), text]);
    }
  }
  byId("facts").replaceChildren(...rows.flatMap(([name, text]) => [make("dt", { textContent: name }), make("dd", { textContent: text })]));
}
