// Keyboard shortcuts, and the list of them. They rest while something is typed.

import { fit, zoomBy } from "./field.js";
import { mark } from "./marks.js";
import { find, make, show } from "./page.js";
import { nextCell, nextMode, setThreshold, turnImage, turnSample, unchoose } from "./sample.js";
import { state } from "./state.js";

const KEYS = [
  { keys: ["j"], words: "next cell, by the score that colours", act: () => nextCell(1) },
  { keys: ["k"], words: "the cell before", act: () => nextCell(-1) },
  { keys: ["a"], words: "mark the chosen cell: artefact", act: () => mark("artefact") },
  { keys: ["u"], words: "mark: unsure", act: () => mark("unsure") },
  { keys: ["0"], words: "take the mark back", act: () => mark("none") },
  { keys: ["m"], words: "write a note", act: () => find("note").focus() },
  { keys: ["Escape"], words: "choose no cell", act: unchoose },
  { keys: ["n"], words: "next image", act: () => turnImage(1) },
  { keys: ["p"], words: "previous image", act: () => turnImage(-1) },
  { keys: ["]"], words: "next sample", act: () => turnSample(1) },
  { keys: ["["], words: "previous sample", act: () => turnSample(-1) },
  { keys: ["c"], words: "other colouring", act: nextMode },
  { keys: ["b"], words: "boxes shown or hidden", act: () => find("boxes").click() },
  { keys: [".", ","], words: "threshold 5 % higher, lower", act: moveThreshold },
  { keys: ["+", "-"], words: "larger, smaller", act: (key) => zoomBy(key === "+" ? 1.4 : 1 / 1.4) },
  { keys: ["f"], words: "fit the image", act: fit },
];
const TYPED = ["INPUT", "TEXTAREA", "SELECT"];

export function startKeys() {
  const classes = state.run.classes.slice(0, 9);
  const numbered = classes.map((name, i) => ({
    keys: [String(i + 1)],
    words: `mark: ${name}`,
    act: () => mark("class", name),
  }));
  const all = [...numbered, ...KEYS];
  find("keys").replaceChildren(...[...all, { keys: ["?"], words: "these keys" }].flatMap(({ keys, words }) => [
    make("dt", {}, ...keys.map((key) => make("kbd", {}, key))),
    make("dd", {}, words),
  ]));
  const glossary = Object.entries(state.run.glossary ?? {});
  show("words-title", glossary.length > 0);
  find("words").replaceChildren(
    ...glossary.flatMap(([word, text]) => [make("dt", {}, word), make("dd", {}, text)]),
  );
  find("open-help").addEventListener("click", () => find("help").showModal());
  find("close-help").addEventListener("click", () => find("help").close());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
    if (TYPED.includes(event.target.tagName) && !["range", "checkbox"].includes(event.target.type)) return;
    if (event.key === "?") find("help").showModal();
    if (find("sample").hidden) return;
    const found = all.find(({ keys }) => keys.includes(event.key));
    if (!found) return;
    event.preventDefault();
    found.act(event.key);
  });
}

function moveThreshold(key) {
  setThreshold(state.threshold + (key === "." ? 5 : -5));
}
