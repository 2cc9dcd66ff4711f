// The plane of a sample: how strange each cell is against how much it counted, on the axes of the report.
// Both say how rare a cell is among those that the same model judged: 1 is one in ten, 2 one in a hundred.

import { factsLine } from "./facts.js";
import { find, hideTip, make, sharpen, tip } from "./page.js";
import { groupOf, isShown, state } from "./state.js";
import { thumbPicture } from "./thumbs.js";

const TICKS = [[-Math.log10(0.5), "half"], [1, "top 10 %"], [2, "top 1 %"], [3, "top 0.1 %"], [4, "top 0.01 %"]];
// Round, diamond for the ignored, triangle for the counted: not by colour alone.
const LOOKS = {
  "": { colour: "#0072b2", corners: null },
  ignored: { colour: "#e69f00", corners: [[0, -6], [6, 0], [0, 6], [-6, 0]] },
  counted: { colour: "#d55e00", corners: [[0, -6], [6, 6], [-6, 6]] },
};
const ROUND = 3; // radius
const LEFT = 64;
const BELOW = 44;
const NEAR = 12; // pixels

const canvas = find("plane");
let points = []; // { cell, x, y, group }
let whenChosen = () => {};

export function onChoosePoint(handler) {
  whenChosen = handler;
}

export function hasPlane() {
  const { strange, counted } = state.sample.numbers;
  return !state.run.blind && strange.some((value, i) => !Number.isNaN(value) && !Number.isNaN(counted[i]));
}

const rarity = (quantile) => -Math.log10(1 - quantile);

export function drawPlane() {
  const context = sharpen(canvas);
  const { width, height } = canvas.getBoundingClientRect();
  context.clearRect(0, 0, width, height);
  const { strange, counted } = state.sample.numbers;
  const cells = [];
  for (let i = 0; i < state.sample.n; i++) {
    if (isShown(i) && !Number.isNaN(strange[i]) && !Number.isNaN(counted[i])) cells.push(i);
  }
  const most = (values) => cells.reduce((high, i) => Math.max(high, rarity(values[i])), 2.05) + 0.15;
  const limits = { x: most(strange), y: most(counted) };
  const axes = {
    limits,
    across: (value) => LEFT + (value / limits.x) * (width - LEFT - 10),
    up: (value) => height - BELOW - (value / limits.y) * (height - BELOW - 14),
  };
  drawAxes(context, width, height, axes);
  points = cells.map((cell) => ({
    cell,
    x: axes.across(rarity(strange[cell])),
    y: axes.up(rarity(counted[cell])),
    group: groupOf(cell),
  }));
  for (const group of ["", "ignored", "counted"]) {
    for (const point of points) if (point.group === group) drawPoint(context, point);
  }
  const chosen = points.find((point) => point.cell === state.chosen);
  if (chosen) ring(context, chosen);
}

function drawAxes(context, width, height, { across, up, limits }) {
  const { top, ignored, counted } = state.run;
  const [strange, high, low] = [rarity(top), rarity(top), rarity(ignored)];
  const [left, right] = [across(strange), across(limits.x)];
  corner(context, "counted and strange", LOOKS.counted.colour, left, up(limits.y), right, up(high));
  corner(context, "strange but ignored", LOOKS.ignored.colour, left, up(low), right, up(0));
  context.strokeStyle = "#55626e";
  context.lineWidth = 1;
  context.setLineDash([4, 4]);
  line(context, across(strange), up(0), across(strange), up(limits.y));
  line(context, across(0), up(high), across(limits.x), up(high));
  line(context, across(0), up(low), across(limits.x), up(low));
  context.setLineDash([]);
  line(context, across(0), up(0), across(limits.x), up(0));
  line(context, across(0), up(0), across(0), up(limits.y));
  context.fillStyle = "#1b2733";
  context.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  for (const [value, text] of TICKS) {
    context.textAlign = "center";
    if (value < limits.x) context.fillText(text, across(value), height - BELOW + 16);
    context.textAlign = "right";
    if (value < limits.y) context.fillText(text, LEFT - 6, up(value) + 4);
  }
  context.fillText("anomaly: how strange →", width - 10, height - 8);
  context.textAlign = "left";
  context.fillText(`↑ ${counted}`, 2, 10);
}

function corner(context, name, colour, left, top, right, bottom) {
  context.globalAlpha = 0.09;
  context.fillStyle = colour;
  context.fillRect(left, top, right - left, bottom - top);
  context.globalAlpha = 1;
  context.fillStyle = "#1b2733";
  context.font = "bold 12px system-ui, 'DejaVu Sans', sans-serif";
  context.textAlign = "right";
  context.fillText(name, right - 5, top + 15);
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

function drawPoint(context, { x, y, group }) {
  const { colour, corners } = LOOKS[group];
  context.beginPath();
  if (corners) for (const [dx, dy] of corners) context.lineTo(x + dx, y + dy);
  else context.arc(x, y, ROUND, 0, 2 * Math.PI);
  context.closePath();
  context.globalAlpha = 0.75;
  context.fillStyle = colour;
  context.fill();
  context.globalAlpha = 1;
  context.lineWidth = 1;
  context.strokeStyle = "#fff";
  context.stroke();
}

function ring(context, { x, y }) {
  context.beginPath();
  context.arc(x, y, 10, 0, 2 * Math.PI);
  context.lineWidth = 3;
  context.strokeStyle = "#1b2733";
  context.stroke();
}

function near(event) {
  const frame = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  let found = null;
  let nearest = NEAR;
  for (const point of points) {
    const distance = Math.hypot(point.x - x, point.y - y);
    if (distance < nearest) [found, nearest] = [point, distance];
  }
  return found;
}

canvas.addEventListener("pointermove", (event) => {
  const found = near(event);
  canvas.classList.toggle("over", found !== null);
  if (!found) hideTip();
  else tip(event, thumbPicture(found.cell), make("span", {}, factsLine(found.cell)));
});

canvas.addEventListener("pointerleave", hideTip);

canvas.addEventListener("click", (event) => {
  const found = near(event);
  if (found) whenChosen(found.cell);
});

new ResizeObserver(() => {
  if (state.sample && hasPlane()) drawPlane();
}).observe(canvas);
