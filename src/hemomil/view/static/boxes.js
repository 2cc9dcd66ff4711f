// The boxes of cells on an image: `rectangle` says where a cell lies on the screen, as x, y, width, height.

import { isShown, markText, quantileOf, state, styleOf } from "./state.js";

const MARK_SIGNS = { artefact: "✕", unsure: "?" };
const ROOM = 14; // pixels across, below which a box has no room for letters

export function drawBoxes(context, cells, rectangle) {
  const drawn = cells.filter(isShown);
  if (state.mode) drawn.sort((a, b) => (quantileOf(a) || 0) - (quantileOf(b) || 0));
  for (const cell of drawn) {
    const box = rectangle(cell);
    const style = styleOf(cell);
    context.setLineDash([]);
    context.lineWidth = style.width + 2;
    context.strokeStyle = "#ffffffcc";
    context.strokeRect(...box);
    context.setLineDash(style.dash);
    context.lineWidth = style.width;
    context.strokeStyle = style.colour;
    context.strokeRect(...box);
    if (box[2] > ROOM) {
      if (style.letters) label(context, style.letters, box[0], box[1] + box[3], "#fff", "#1b2733", "left");
      const mark = markSign(cell);
      if (mark) label(context, mark, box[0] + box[2] + 6, box[1] - 6, "#1b2733", "#fff", "right");
    }
  }
  context.setLineDash([]);
}

function markSign(cell) {
  const said = state.sample.marks[cell];
  if (!said) return "";
  return MARK_SIGNS[said.mark] ?? `✓ ${markText(cell)}`;
}

function label(context, text, x, bottom, back, front, side) {
  context.font = "bold 11px ui-monospace, 'DejaVu Sans Mono', monospace";
  const width = context.measureText(text).width + 6;
  const left = side === "left" ? x : x - width;
  context.fillStyle = back;
  context.fillRect(left, bottom - 14, width, 14);
  context.fillStyle = front;
  context.fillText(text, left + 3, bottom - 3);
}

export function outline(context, [x, y, width, height], chosen) {
  context.setLineDash(chosen ? [] : [5, 3]);
  for (const [wide, colour] of [[6, "#ffffff"], [3, "#1b2733"]]) {
    context.lineWidth = chosen ? wide : wide - 1;
    context.strokeStyle = colour;
    context.strokeRect(x - 4, y - 4, width + 8, height + 8);
  }
  context.setLineDash([]);
}
