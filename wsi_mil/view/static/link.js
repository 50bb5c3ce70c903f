// What a link restores: the slide, the place, and what is shown. Comes in and goes out: the address after '#'.

const NUMBERS = { x: 1, y: 1, z: 4, opacity: 2, patch: 0 };     // decimals
const TEXTS = ["slide", "model", "quantity", "output", "normalize"];
const FLAGS = ["heat", "outline"];

// Returns the fields that the address has; what makes no sense is left out.
export function read(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, "")), found = {};
  for (const name of TEXTS) if (given.get(name)) found[name] = given.get(name);
  for (const name of Object.keys(NUMBERS)) {
    const value = Number.parseFloat(given.get(name));
    if (Number.isFinite(value)) found[name] = value;
  }
  for (const name of FLAGS) if (given.has(name)) found[name] = given.get(name) !== "0";
  return found;
}

// z is the logarithm (base 2) of css pixels per level-0 pixel.
export function write(state) {
  const out = new URLSearchParams();
  for (const name of TEXTS) if (state[name]) out.set(name, state[name]);
  for (const [name, decimals] of Object.entries(NUMBERS))
    if (Number.isFinite(state[name]) && !(name === "patch" && state.patch < 0)) out.set(name, Number(state[name].toFixed(decimals)));
  for (const name of FLAGS) if (!state[name]) out.set(name, "0");
  return `#${out}`;
}
