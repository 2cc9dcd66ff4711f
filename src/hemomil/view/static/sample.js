// One sample: what is said of it, its images or mosaic, the plane, the lists, the chosen cell.

import { drawField, fit, onChoose, reveal, showField, zoomBy } from "./field.js";
import { MOSAIC, redress, showLists, showMarked, showMosaic } from "./lists.js";
import { neighbour, sampleAddress } from "./list.js";
import { showCell, startMarks } from "./marks.js";
import { find, fixed, hideTip, make, show } from "./page.js";
import { drawPlane, hasPlane, onChoosePoint } from "./plane.js";
import { askSample } from "./server.js";
import { isShown, modes, ranked, quantileOf, state } from "./state.js";
import { onChooseThumb } from "./thumbs.js";

const ZOOM = 1.4;
const NO_IMAGES = "This run has no images: its features were brought along.";
const NO_CELLS = "No cell was found in this sample.";

export function startSample() {
  startMarks(() => {
    state.list.marks[state.sample.index] = Object.keys(state.sample.marks).length;
    showMarked();
    redraw();
  });
  for (const listen of [onChoose, onChoosePoint]) listen(choose);
  onChooseThumb(async (cell) => {
    await choose(cell);
    find("cell").scrollIntoView({ block: "nearest" }); // on a narrow page the lists are far from it
  });
  find("threshold").addEventListener("input", () => setThreshold(Number(find("threshold").value)));
  find("boxes").addEventListener("change", () => {
    state.boxes = find("boxes").checked;
    drawField();
  });
  find("image-before").addEventListener("click", () => turnImage(-1));
  find("image-after").addEventListener("click", () => turnImage(1));
  find("zoom-in").addEventListener("click", () => zoomBy(ZOOM));
  find("zoom-out").addEventListener("click", () => zoomBy(1 / ZOOM));
  find("zoom-fit").addEventListener("click", fit);
  find("sample-before").addEventListener("click", () => turnSample(-1));
  find("sample-after").addEventListener("click", () => turnSample(1));
}

export async function showSample(index, place) {
  const sample = await askSample(index);
  state.sample = sample;
  state.chosen = -1;
  find("sample-name").textContent = sample.sample;
  document.title = `${sample.sample} – ${state.run.title}`;
  find("sample-before").disabled = neighbour(index, -1) === undefined;
  find("sample-after").disabled = neighbour(index, 1) === undefined;
  showReading();
  showModes();
  show("plane-card", hasPlane());
  showCell();
  showLists();
  await showImage(Math.min(place, pages() - 1));
  redraw();
}

function showReading() {
  const { sample, run } = state;
  const tags = [sample.patient && `patient ${sample.patient}`, `${sample.n} cells`].filter(Boolean);
  const shown = tags.map((text) => make("span", { className: "quiet" }, text));
  if (!run.blind) shown.push(agreementTag());
  find("tags").replaceChildren(...shown);
  show("reading", !run.blind);
  if (run.blind) return;
  find("verdict").textContent = sample.verdict;
  find("remarks").textContent = sample.remarks;
  const bars = sample.probabilities.flatMap(([name, probability]) => {
    const fill = make("span", { className: "fill" });
    fill.style.width = `${100 * probability}%`;
    const track = make("span", { className: "track" }, fill);
    return [make("span", {}, name), track, make("span", {}, fixed(probability, 2))];
  });
  find("probabilities").replaceChildren(...bars);
}

function agreementTag() {
  const { label, predicted } = state.sample;
  if (!predicted) return make("span", { className: "tag" }, "no prediction");
  if (!label) return make("span", { className: "tag" }, "class not known");
  if (label === predicted) return make("span", { className: "tag" }, `✓ known class ${label}: agrees`);
  return make("span", { className: "tag differs" }, `≠ known class ${label}: differs`);
}

// Colouring

function showModes() {
  const offered = modes();
  show("colouring", offered.length > 0);
  show("threshold-row", offered.length > 0);
  find("colours").replaceChildren(...offered.map(({ key, title, explanation }) => {
    const button = make("button", { type: "button", title: explanation }, title);
    button.dataset.mode = key;
    button.addEventListener("click", () => setMode(key));
    return button;
  }));
  const kept = offered.some(({ key }) => key === state.mode);
  setMode(kept ? state.mode : offered[0]?.key ?? "");
}

export function nextMode() {
  const keys = modes().map(({ key }) => key);
  if (keys.length) setMode(keys[(keys.indexOf(state.mode) + 1) % keys.length]);
}

function setMode(key) {
  state.mode = key;
  for (const button of find("colours").children) {
    button.setAttribute("aria-pressed", String(button.dataset.mode === key));
  }
  showLegend();
  redraw();
}

function showLegend() {
  const mode = modes().find(({ key }) => key === state.mode);
  if (!mode) return;
  if (mode.scale) {
    const ramp = mode.scale.colours.map((colour) => {
      const step = make("i");
      step.style.backgroundColor = colour;
      return step;
    });
    const { low_text: low, high_text: high } = mode.scale;
    find("legend").replaceChildren(low, make("span", { className: "ramp" }, ...ramp), high);
    return;
  }
  const swatches = state.run.class_marks.map(({ name, letters, colour, dash }) => {
    const sign = make("i", {}, letters);
    sign.style.borderColor = colour;
    sign.style.borderStyle = dash === "none" ? "solid" : "dashed";
    return make("span", { className: "swatch" }, sign, name);
  });
  find("legend").replaceChildren("by itself the cell looks like ", ...swatches);
}

export function setThreshold(percent) {
  state.threshold = Math.min(99, Math.max(0, percent));
  find("threshold").value = state.threshold;
  redraw();
}

function modeTitle() {
  if (state.mode === "class") return "how sure the class is";
  return modes().find(({ key }) => key === state.mode)?.title ?? "";
}

// Everything that colour, threshold, marks and choice change.
function redraw() {
  const { sample, threshold } = state;
  const left = Array.from({ length: sample.n }, (_, i) => i).filter(isShown).length;
  find("threshold-text").textContent = `Hide the lowest ${threshold} % by ${modeTitle()}`;
  find("left").textContent = threshold
    ? `${left} of ${sample.n} cells left. The per cent are of all cells of the run.`
    : "";
  hideTip();
  drawField();
  if (hasPlane()) drawPlane();
  redress();
}

// Images, or pages of a mosaic

function pages() {
  const { sample } = state;
  return sample.one_cell_per_image ? Math.ceil(sample.n / MOSAIC) : sample.images.length;
}

export async function turnImage(step) {
  const place = state.place + step;
  if (place < 0 || place >= pages()) return;
  await showImage(place);
}

async function showImage(place) {
  const { sample } = state;
  state.place = Math.max(0, place);
  history.replaceState(null, "", `${sampleAddress(sample.index)}/${state.place + 1}`);
  const count = pages();
  const mosaic = sample.one_cell_per_image;
  const what = mosaic ? "page" : "image";
  find("image-here").textContent = count > (mosaic ? 1 : 0) ? `${what} ${state.place + 1} of ${count}` : "";
  find("image-name").textContent = mosaic || !count ? "" : sample.image_names[state.place];
  show("image-before", count > 1);
  show("image-after", count > 1);
  find("image-before").disabled = state.place === 0;
  find("image-after").disabled = state.place >= count - 1;
  show("mosaic", mosaic);
  for (const id of ["field", "zooming", "field-hint", "boxes-row"]) show(id, !mosaic && count > 0);
  show("no-image", !count);
  if (!count) find("no-image").textContent = sample.n ? NO_IMAGES : NO_CELLS;
  else if (mosaic) showMosaic(state.place);
  else await showField(state.place);
}

// Choosing

export async function choose(cell) {
  const { sample } = state;
  state.chosen = cell;
  showCell();
  const place = sample.one_cell_per_image ? Math.floor(cell / MOSAIC) : sample.image_of[cell];
  if (place >= 0 && place !== state.place) await showImage(place);
  if (!sample.one_cell_per_image) reveal(cell);
  redraw();
}

// From cell to cell: by the score that colours, the highest first; without scores as they lie in the table.
export async function nextCell(step) {
  const order = ranked(isShown, state.mode ? (i) => quantileOf(i) || 0 : (i) => -i);
  if (!order.length) return;
  const at = order.indexOf(state.chosen);
  const next = at < 0 ? 0 : at + step;
  if (next >= 0 && next < order.length) await choose(order[next]);
}

export function unchoose() {
  state.chosen = -1;
  showCell();
  redraw();
}

export function turnSample(step) {
  const next = neighbour(state.sample.index, step);
  if (next !== undefined) location.hash = sampleAddress(next);
}

