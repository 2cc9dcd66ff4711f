// Lists of the cells that an expert looks at first, and the mosaic of a sample of single-cell images.

import { hasPlane } from "./plane.js";
import { find, fixed, make } from "./page.js";
import { dress, makeThumb } from "./thumbs.js";
import { groupOf, isShown, ranked, state } from "./state.js";

const LISTED = 10;
export const MOSAIC = 120;

export function showLists() {
  const parts = state.run.blind ? [] : [...corners(), ...ends()];
  find("lists").replaceChildren(...parts, make("div", { id: "marked" }));
  showMarked();
}

// The two corners of the plane; an empty one is said to be so.
function corners() {
  if (!hasPlane()) return [];
  const { strange, counted } = state.sample.numbers;
  const name = state.run.counted;
  return [
    list(
      "Counted and strange",
      `High in both anomaly and ${name}: what the reading rests on, and unlike healthy cells.`,
      ranked((i) => groupOf(i) === "counted", (i) => Math.min(strange[i], counted[i])),
    ),
    list(
      "Strange but ignored",
      `Unlike healthy cells, but low in ${name}: artefacts, or what the model does not know.`,
      ranked((i) => groupOf(i) === "ignored", (i) => strange[i] - counted[i]),
    ),
  ];
}

function ends() {
  const { anomaly } = state.sample.numbers;
  const strangest = ranked(() => true, (i) => anomaly[i]);
  if (!strangest.length) return [];
  const words = "Least like the cells of healthy donors. Dirt and overlaps are strange too: judge by eye.";
  return [
    list("Strangest cells", words, strangest),
    list("Most typical cells", "Most like the cells of healthy donors.", [...strangest].reverse()),
  ];
}

function list(title, words, cells) {
  const { anomaly } = state.sample.numbers;
  const none = cells.length ? "" : " There is none in this sample.";
  const more = cells.length > LISTED ? ` The first ${LISTED} of ${cells.length} are shown.` : "";
  const shown = cells.slice(0, LISTED);
  const thumbs = shown.map((cell) => makeThumb(cell, `anomaly ${fixed(anomaly[cell], 1)}`));
  return make(
    "div",
    {},
    make("h2", {}, title),
    make("p", { className: "quiet" }, words + none + more),
    make("div", { className: "thumbs" }, ...thumbs),
  );
}

// The marked cells, each with its note.
export function showMarked() {
  const { marks } = state.sample;
  const thumbs = Object.keys(marks).map((cell) => makeThumb(Number(cell), marks[cell].note));
  const none = make("p", { className: "quiet" }, "None yet.");
  find("marked").replaceChildren(
    make("h2", {}, `Marked cells (${thumbs.length})`),
    thumbs.length ? make("div", { className: "thumbs" }, ...thumbs) : none,
  );
}

// One page of a mosaic, in the order of the table.
export function showMosaic(page) {
  const cells = [];
  for (let i = page * MOSAIC; i < Math.min(state.sample.n, (page + 1) * MOSAIC); i++) cells.push(i);
  find("mosaic").replaceChildren(...cells.map((cell) => makeThumb(cell, "")));
  redress();
}

// All thumbs as the colouring, threshold, choice and marks now say.
export function redress() {
  for (const thumb of document.querySelectorAll(".thumb")) dress(thumb);
  for (const thumb of find("mosaic").children) thumb.hidden = !isShown(Number(thumb.dataset.cell));
}

export function markedText() {
  const count = Object.keys(state.sample.marks).length;
  return `${count} of ${state.sample.n} cells of this sample marked`;
}

