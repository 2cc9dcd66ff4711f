// One image with the boxes of its cells, on a canvas: zoom, move, point, choose.

import { drawBoxes, outline } from "./boxes.js";
import { factsLine } from "./facts.js";
import { find, hideTip, sharpen, show, tip } from "./page.js";
import { ask } from "./server.js";
import { isShown, state } from "./state.js";

const OVERVIEW = 2048; // pixels across; of a larger image, what is looked at closely is asked for again
const CLOSEST = 16;

const canvas = find("field");
let image = null; // { number, width, height, picture, detail }
let cells = []; // of this image, those drawn last on top
let view = { scale: 1, x: 0, y: 0 }; // screen = (image - [x, y]) * scale
let least = 1;
let hovered = -1;
let waiting = 0;
let whenChosen = () => {};

export function onChoose(handler) {
  whenChosen = handler;
}

// Show an image of the sample by its place; says what is wrong where it cannot be read.
export async function showField(place) {
  const number = state.sample.images[place];
  const name = state.sample.image_names[place];
  const size = await ask(`api/images/${number}`);
  if (state.sample.images[state.place] !== number) return; // another was asked for meanwhile
  image = null;
  hovered = -1;
  show("field", !("problem" in size));
  show("no-image", "problem" in size);
  show("zooming", !("problem" in size));
  if ("problem" in size) {
    find("no-image").textContent = `This image cannot be shown. ${size.problem}`;
    return;
  }
  image = { number, ...size, picture: null, detail: null };
  canvas.setAttribute("aria-label", `${name}, with the boxes of its cells`);
  collect(place);
  fit();
  image.picture = await part(image, 0, 0, size.width, size.height, OVERVIEW);
  drawField();
}

function collect(place) {
  const { sample } = state;
  const { x0 } = sample.numbers;
  cells = [];
  for (let i = 0; i < sample.n; i++) {
    if (sample.image_of[i] === place && !Number.isNaN(x0[i])) cells.push(i);
  }
}

function part(of, x0, y0, x1, y1, width) {
  const picture = new Image();
  picture.src = `${state.run.pictures.slice(1)}/images/${of.number}/${x0},${y0},${x1},${y1}/${width}`;
  return picture.decode().then(() => picture, () => null);
}

// The part that holds the boxes, with half a cell more, as the report shows it.
function around() {
  const { x0, y0, x1, y1 } = state.sample.numbers;
  if (!cells.length) return [0, 0, image.width, image.height];
  const widths = cells.map((i) => Math.max(x1[i] - x0[i], y1[i] - y0[i])).sort((a, b) => a - b);
  const margin = widths[widths.length >> 1] / 2;
  const least = (values) => cells.reduce((low, i) => Math.min(low, values[i]), Infinity);
  const most = (values) => cells.reduce((high, i) => Math.max(high, values[i]), -Infinity);
  return [
    Math.max(0, least(x0) - margin),
    Math.max(0, least(y0) - margin),
    Math.min(image.width, most(x1) + margin),
    Math.min(image.height, most(y1) + margin),
  ];
}

export function fit() {
  if (!image) return;
  const [left, top, right, bottom] = around();
  const width = canvas.getBoundingClientRect().width;
  const height = Math.min((width * (bottom - top)) / (right - left), 0.72 * window.innerHeight);
  canvas.style.height = `${Math.round(Math.max(240, height))}px`;
  const box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width / (right - left), box.height / (bottom - top));
  least = Math.min(scale, box.width / image.width, box.height / image.height);
  view = {
    scale,
    x: (left + right - box.width / scale) / 2,
    y: (top + bottom - box.height / scale) / 2,
  };
  canvas.classList.remove("zoomed");
  drawField();
}

export function zoomBy(factor, at = null) {
  if (!image) return;
  const box = canvas.getBoundingClientRect();
  const [sx, sy] = at ?? [box.width / 2, box.height / 2];
  const scale = Math.min(CLOSEST, Math.max(least, view.scale * factor));
  view.x += sx / view.scale - sx / scale;
  view.y += sy / view.scale - sy / scale;
  view.scale = scale;
  canvas.classList.add("zoomed");
  drawField();
  lookCloser();
}

// Bring a cell into sight, if it is not.
export function reveal(cell) {
  if (!image) return;
  const { x0, y0, x1, y1 } = state.sample.numbers;
  const box = canvas.getBoundingClientRect();
  const [x, y] = [(x0[cell] + x1[cell]) / 2, (y0[cell] + y1[cell]) / 2];
  const [sx, sy] = [(x - view.x) * view.scale, (y - view.y) * view.scale];
  if (sx < 0 || sy < 0 || sx > box.width || sy > box.height) {
    view.x = x - box.width / 2 / view.scale;
    view.y = y - box.height / 2 / view.scale;
    lookCloser();
  }
  drawField();
}

// Where the screen has more pixels than the overview, ask for what is in sight.
function lookCloser() {
  clearTimeout(waiting);
  const of = image;
  waiting = setTimeout(async () => {
    const ratio = window.devicePixelRatio || 1;
    if (of !== image || of.width <= OVERVIEW || view.scale * ratio <= OVERVIEW / of.width) return;
    const box = canvas.getBoundingClientRect();
    const x0 = Math.floor(Math.max(0, view.x));
    const y0 = Math.floor(Math.max(0, view.y));
    const x1 = Math.ceil(Math.min(of.width, view.x + box.width / view.scale));
    const y1 = Math.ceil(Math.min(of.height, view.y + box.height / view.scale));
    if (x1 <= x0 || y1 <= y0) return;
    const picture = await part(of, x0, y0, x1, y1, Math.min(4096, Math.ceil(box.width * ratio)));
    if (of !== image || !picture) return;
    of.detail = { picture, x0, y0, x1, y1 };
    drawField();
  }, 150);
}

export function drawField() {
  if (!image || canvas.hidden) return;
  const context = sharpen(canvas);
  const { width, height } = canvas.getBoundingClientRect();
  context.fillStyle = "#eceff1";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = view.scale < 4;
  place(context, image.picture, 0, 0, image.width, image.height);
  if (image.detail) {
    const { picture, x0, y0, x1, y1 } = image.detail;
    place(context, picture, x0, y0, x1, y1);
  }
  if (state.boxes) drawBoxes(context, cells, rectangle);
  for (const cell of [hovered, state.chosen]) {
    if (cells.includes(cell)) outline(context, rectangle(cell), cell === state.chosen);
  }
}

function place(context, picture, x0, y0, x1, y1) {
  if (!picture) return;
  const { scale, x, y } = view;
  context.drawImage(picture, (x0 - x) * scale, (y0 - y) * scale, (x1 - x0) * scale, (y1 - y0) * scale);
}

function rectangle(cell) {
  const { x0, y0, x1, y1 } = state.sample.numbers;
  const { scale, x, y } = view;
  const [left, top, right, bottom] = [x0[cell] - x, y0[cell] - y, x1[cell] - x, y1[cell] - y];
  return [left * scale, top * scale, (right - left) * scale, (bottom - top) * scale];
}

// The smallest box under the pointer, as a cell in a clump has others round it.
function under(event) {
  const frame = canvas.getBoundingClientRect();
  const [sx, sy] = [event.clientX - frame.left, event.clientY - frame.top];
  let found = -1;
  let smallest = Infinity;
  for (const cell of cells) {
    const [x, y, width, height] = rectangle(cell);
    const inside = sx >= x && sy >= y && sx <= x + width && sy <= y + height;
    if (inside && width * height < smallest && isShown(cell)) {
      found = cell;
      smallest = width * height;
    }
  }
  return found;
}

let pressed = null; // { x, y, moved }

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  pressed = { x: event.clientX, y: event.clientY, moved: false };
  canvas.setPointerCapture(event.pointerId);
});

canvas.addEventListener("pointermove", (event) => {
  if (!image) return;
  if (pressed) {
    const [dx, dy] = [event.clientX - pressed.x, event.clientY - pressed.y];
    if (!pressed.moved && Math.hypot(dx, dy) < 4) return;
    pressed = { x: event.clientX, y: event.clientY, moved: true };
    view.x -= dx / view.scale;
    view.y -= dy / view.scale;
    hideTip();
    drawField();
    lookCloser();
    return;
  }
  const found = under(event);
  canvas.classList.toggle("over", found >= 0);
  if (found >= 0) tip(event, factsLine(found));
  else hideTip();
  if (found !== hovered) {
    hovered = found;
    drawField();
  }
});

canvas.addEventListener("pointerup", (event) => {
  const moved = pressed?.moved;
  pressed = null;
  if (moved || !image) return;
  const found = under(event);
  if (found >= 0) whenChosen(found);
});

canvas.addEventListener("pointercancel", () => {
  pressed = null;
});

canvas.addEventListener("pointerleave", () => {
  hideTip();
  if (hovered < 0) return;
  hovered = -1;
  drawField();
});

canvas.addEventListener("wheel", (event) => {
  if (!image) return;
  if (event.deltaY > 0 && view.scale <= least * 1.001) return; // as small as it gets: the page scrolls
  event.preventDefault();
  const frame = canvas.getBoundingClientRect();
  const factor = Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015));
  zoomBy(factor, [event.clientX - frame.left, event.clientY - frame.top]);
}, { passive: false });

let lastWidth = 0;
new ResizeObserver(() => {
  const { width } = canvas.getBoundingClientRect();
  if (width === lastWidth) return; // its height is ours
  lastWidth = width;
  fit();
}).observe(canvas);
