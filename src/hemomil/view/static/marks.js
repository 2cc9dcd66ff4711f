// The chosen cell: its numbers, and what an expert says of it. Every mark is sent at once.

import { factsOf } from "./facts.js";
import { markedText } from "./lists.js";
import { find, make, show } from "./page.js";
import { tellMark } from "./server.js";
import { state } from "./state.js";
import { thumbPicture } from "./thumbs.js";

let whenMarked = () => {};

export function startMarks(handler) {
  whenMarked = handler;
  const buttons = state.run.classes.map((name, i) => {
    const button = make("button", { type: "button" }, `${name} `);
    if (i < 9) button.append(make("kbd", {}, String(i + 1)));
    button.dataset.label = name;
    button.addEventListener("click", () => mark("class", name));
    return button;
  });
  find("class-buttons").replaceChildren(...buttons);
  for (const button of document.querySelectorAll("[data-mark]")) {
    button.addEventListener("click", () => mark(button.dataset.mark));
  }
  find("other-mark").addEventListener("click", markOther);
  find("other-class").addEventListener("keydown", (event) => {
    if (event.key === "Enter") markOther();
  });
  find("note").addEventListener("change", markAgain);
}

function markOther() {
  const name = find("other-class").value.trim();
  if (name) mark("class", name);
  else find("mark-status").textContent = "Write the class first.";
}

// A note belongs to a mark: with one it is saved at once, else with the next.
function markAgain() {
  const said = state.sample.marks[state.chosen];
  if (said) mark(said.mark, said.label);
  else find("mark-status").textContent = "The note is saved with the mark.";
}

export async function mark(what, label = "") {
  const { sample, chosen } = state;
  if (chosen < 0) return;
  const note = what === "none" ? "" : find("note").value;
  let said = null;
  try {
    said = await tellMark(sample.first + chosen, what, label, note);
  } catch (error) {
    find("mark-status").textContent = `Not saved: ${error.message}`;
    return;
  }
  if (said.mark === "none") delete sample.marks[chosen];
  else sample.marks[chosen] = said;
  if (state.sample !== sample) return;
  if (state.chosen === chosen) showCell();
  const text = said.mark === "none" ? "no mark" : said.label || said.mark;
  find("mark-status").textContent = `Saved: ${text}.`;
  whenMarked();
}

// The chosen cell beside the image.
export function showCell() {
  const { sample, chosen } = state;
  show("no-cell", chosen < 0);
  show("cell-facts", chosen >= 0);
  if (chosen < 0) return;
  find("cell-picture").replaceChildren(thumbPicture(chosen));
  const pairs = factsOf(chosen).flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]);
  find("facts").replaceChildren(...pairs);
  const said = sample.marks[chosen];
  const label = said?.mark === "class" ? said.label : "";
  for (const button of find("class-buttons").children) press(button, button.dataset.label === label);
  for (const button of document.querySelectorAll("[data-mark]")) press(button, said?.mark === button.dataset.mark);
  find("other-class").value = state.run.classes.includes(label) ? "" : label;
  find("note").value = said?.note ?? "";
  find("mark-status").textContent = "";
  find("mark-progress").textContent = `(${markedText()})`;
}

function press(button, pressed) {
  button.setAttribute("aria-pressed", String(pressed));
}
