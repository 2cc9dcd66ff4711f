// What is looked at: the run, one of its samples, how its cells are coloured, and which cell is chosen.

export const state = {
  run: null,
  list: null, // columns of all samples
  sample: null,
  mode: "", // what colours the cells: the key of a scale, or "class"; "" without scores
  threshold: 0, // per cent of the run's cells, the lowest by the score that colours
  boxes: true,
  chosen: -1,
  place: 0, // image of the sample that is shown
};

const QUANTILES = {
  anomaly: "strange",
  attention_ratio: "q_attention_ratio",
  contribution: "q_contribution",
  class: "q_looks_sure",
};
const PLAIN = { colour: "#1f5f8b", width: 1.5, dash: [], letters: "" };
const MISSING = { colour: "#6b7680", width: 1, dash: [2, 3], letters: "" };

// The ways to colour this sample's cells: { key, title, explanation, scale }.
export function modes() {
  const { run, sample } = state;
  if (run.blind) return [];
  const known = (name) => sample.numbers[name].some((value) => !Number.isNaN(value));
  const scored = run.scales.filter((scale) => known(scale.key)).map((scale) => ({
    key: scale.key,
    title: scale.title,
    explanation: scale.explanation,
    scale,
  }));
  if (!known("looks_sure")) return scored;
  return [...scored, { key: "class", title: "class", explanation: run.class_explanation, scale: null }];
}

export function quantileOf(cell) {
  return state.mode ? state.sample.numbers[QUANTILES[state.mode]][cell] : NaN;
}

export function isShown(cell) {
  return state.threshold === 0 || quantileOf(cell) >= state.threshold / 100;
}

// Colour, line width, dash and letters of a cell.
export function styleOf(cell) {
  const { run, sample, mode } = state;
  if (!mode) return PLAIN;
  if (mode === "class") {
    const mark = run.class_marks[sample.numbers.looks_like[cell]];
    if (!mark) return MISSING;
    const dash = mark.dash === "none" ? [] : mark.dash.split(" ").map(Number);
    return { colour: mark.colour, width: 2.5, dash, letters: mark.letters };
  }
  const scale = run.scales.find((one) => one.key === mode);
  const value = sample.numbers[mode][cell];
  if (Number.isNaN(value)) return MISSING;
  const steps = scale.colours.length;
  const step = Math.floor(((value - scale.low) / Math.max(scale.high - scale.low, 1e-12)) * steps);
  const bounded = Math.min(steps - 1, Math.max(0, step));
  return { colour: scale.colours[bounded], width: scale.widths[bounded], dash: [], letters: "" };
}

// "counted", "ignored" or "": what an expert calls a strange cell.
export function groupOf(cell) {
  const { strange, counted } = state.sample.numbers;
  if (!(strange[cell] >= state.run.top)) return "";
  if (counted[cell] >= state.run.top) return "counted";
  return counted[cell] < state.run.ignored ? "ignored" : "";
}

// Cells of the sample for which `wanted` holds, the highest `value` first; cells without a value are left out.
export function ranked(wanted, value) {
  const cells = [];
  for (let i = 0; i < state.sample.n; i++) if (wanted(i) && !Number.isNaN(value(i))) cells.push(i);
  return cells.sort((a, b) => value(b) - value(a) || a - b);
}

// What the mark of a cell says, in short; empty without a mark.
export function markText(cell) {
  const said = state.sample.marks[cell];
  if (!said) return "";
  return said.mark === "class" ? said.label : said.mark;
}
