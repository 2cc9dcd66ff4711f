// Sorts and filters the table of samples.
(() => {
  "use strict";
  const table = document.querySelector("#all-samples");
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v || NaN);
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a)) return Number.isNaN(b) ? 0 : 1;
    return Number.isNaN(b) ? -1 : a - b;
  };
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const column = head.cellIndex;
    rows.sort((a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column)));
    table.tBodies[0].append(...rows);
  });
  const filter = document.querySelector("#filter");
  const count = document.querySelector("#filter-count");
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
      left += row.hidden ? 0 : 1;
    }
    count.textContent = `${left} of ${rows.length}`;
  });
})();
