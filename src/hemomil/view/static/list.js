// The samples of the run: sorted, searched, a page at a time.

import { find, fixed, make, pText, show } from "./page.js";
import { state } from "./state.js";

const ROWS = 100;
const COLUMNS = [
  { key: "sample", title: "sample" },
  { key: "patient", title: "patient" },
  { key: "label", title: "known class" },
  { key: "predicted", title: "predicted" },
  { key: "agrees", title: "agrees" },
  { key: "probability", title: "probability", number: true, text: (value) => fixed(value, 2) },
  { key: "novelty_p", title: "novelty p", number: true, text: pText },
  { key: "cells", title: "cells", number: true, text: String },
  { key: "strange", title: "strangest 5 %", number: true, text: (value) => fixed(value, 1) },
  { key: "marks", title: "marks", number: true, text: (value) => (value ? `${value} marked` : "") },
];

let columns = [];
let rows = []; // indices of samples, sorted
let found = []; // those that the search leaves
let page = 0;
let sorted = { key: "", up: true };

const collator = new Intl.Collator("en", { numeric: true });

export function startList() {
  const { list } = state;
  if (list.label) list.agrees = list.label.map((known, i) => agreement(known, list.predicted[i]));
  columns = COLUMNS.filter(({ key }) => key in list);
  rows = list.sample.map((_, i) => i);
  const heads = columns.map(({ key, title, number }) => {
    const button = make("button", { type: "button" }, title);
    button.addEventListener("click", () => sortBy(key));
    const head = make("th", { scope: "col", className: number ? "n" : "" }, button);
    head.setAttribute("aria-sort", "none");
    head.dataset.key = key;
    return head;
  });
  find("samples").tHead.rows[0].replaceChildren(...heads);
  find("search").addEventListener("input", search);
  find("page-before").addEventListener("click", () => turn(-1));
  find("page-after").addEventListener("click", () => turn(1));
  search();
}

function agreement(known, predicted) {
  if (!known || !predicted) return "";
  return known === predicted ? "✓ agrees" : "≠ differs";
}

// In the order of the list as it now is: for going to the next sample.
export function neighbour(index, step) {
  const at = rows.indexOf(index);
  return rows[at + step];
}

export function sampleAddress(index) {
  return `#/sample/${encodeURIComponent(state.list.sample[index])}`;
}

function sortBy(key) {
  sorted = { key, up: sorted.key === key ? !sorted.up : true };
  const values = state.list[key];
  const missing = (value) => value === null || value === "";
  rows.sort((a, b) => {
    const [left, right] = [values[a], values[b]];
    if (missing(left) || missing(right)) return missing(left) - missing(right);
    const order = typeof left === "string" ? collator.compare(left, right) : left - right;
    return sorted.up ? order : -order;
  });
  for (const head of find("samples").tHead.rows[0].cells) {
    const up = sorted.up ? "ascending" : "descending";
    head.setAttribute("aria-sort", head.dataset.key === key ? up : "none");
  }
  search();
}

function search() {
  const wanted = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  found = rows.filter((row) => {
    const text = columns.map((column) => textOf(column, row)).join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  find("search-count").textContent = `${found.length} of ${rows.length} samples`;
  page = 0;
  showRows();
}

function turn(step) {
  page += step;
  showRows();
}

function textOf({ key, text }, row) {
  const value = state.list[key][row];
  if (value === null) return "";
  return text ? text(value) : value;
}

export function showRows() {
  const pages = Math.max(1, Math.ceil(found.length / ROWS));
  find("samples").tBodies[0].replaceChildren(...found.slice(page * ROWS, (page + 1) * ROWS).map(makeRow));
  show("pager", pages > 1);
  find("page-here").textContent = `page ${page + 1} of ${pages}`;
  find("page-before").disabled = page === 0;
  find("page-after").disabled = page === pages - 1;
}

function makeRow(row) {
  const cells = columns.map((column) => {
    const text = textOf(column, row);
    const cell = make("td", { className: column.number ? "n" : "" });
    if (column.key === "sample") cell.append(make("a", { href: sampleAddress(row) }, text));
    else cell.append(text);
    if (text === "≠ differs") cell.className = "differs";
    return cell;
  });
  return make("tr", {}, ...cells);
}
