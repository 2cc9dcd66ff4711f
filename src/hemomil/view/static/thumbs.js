// Pictures of single cells: framed in the colour of the score, to be chosen by a click.

import { factsLine } from "./facts.js";
import { make } from "./page.js";
import { markText, state, styleOf } from "./state.js";

let whenChosen = () => {};

export function onChooseThumb(handler) {
  whenChosen = handler;
}

// The picture of a cell, or a sentence in its place.
export function thumbPicture(cell) {
  const { sample, run } = state;
  if (sample.image_of[cell] < 0) return make("span", { className: "none" }, "no image");
  const picture = make("img", { alt: "", loading: "lazy" });
  picture.addEventListener("error", () => {
    picture.replaceWith(make("span", { className: "none" }, "This picture cannot be shown."));
  });
  picture.src = `${run.pictures.slice(1)}/cells/${sample.first + cell}`;
  return picture;
}

export function makeThumb(cell, caption) {
  const thumb = make(
    "button",
    { type: "button", className: "thumb", title: factsLine(cell) },
    make("span", { className: "frame" }, thumbPicture(cell)),
    caption,
  );
  thumb.dataset.cell = cell;
  thumb.setAttribute("aria-label", factsLine(cell));
  thumb.addEventListener("click", () => whenChosen(cell));
  dress(thumb);
  return thumb;
}

// Colour, letters and mark of a thumb, as they are now.
export function dress(thumb) {
  const cell = Number(thumb.dataset.cell);
  const frame = thumb.querySelector(".frame");
  const style = styleOf(cell);
  frame.style.borderColor = style.colour;
  frame.style.borderWidth = `${2 + style.width}px`;
  frame.style.borderStyle = style.dash.length ? "dashed" : "solid";
  for (const old of frame.querySelectorAll(".badge, .letters")) old.remove();
  if (style.letters) frame.append(make("span", { className: "letters" }, style.letters));
  const mark = markText(cell);
  if (mark) frame.append(make("span", { className: "badge" }, mark));
  if (cell === state.chosen) thumb.setAttribute("aria-current", "true");
  else thumb.removeAttribute("aria-current");
}
