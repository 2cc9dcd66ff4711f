// Switches the colouring and shows the numbers of a cell. No network, no library.
(() => {
  "use strict";
  const body = document.body;
  const buttons = [...document.querySelectorAll("[data-set-colour]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      body.dataset.colour = button.dataset.setColour;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      document.dispatchEvent(new Event("colour"));
    });
  }
  const boxes = document.querySelector("#show-boxes");
  if (boxes) boxes.addEventListener("change", () => body.classList.toggle("no-boxes", !boxes.checked));

  const readout = document.querySelector("#readout");
  // in its sample a cell is marked wherever it is shown: in the image and in the lists
  const mark = (cell) => {
    for (const old of document.querySelectorAll(".pointed")) old.classList.remove("pointed");
    const sample = cell.closest("section.sample");
    if (!sample) return;
    for (const same of sample.querySelectorAll(`[data-n="${cell.dataset.n}"]`)) same.classList.add("pointed");
  };
  const tell = (event) => {
    const cell = event.target.closest("[data-cell]");
    if (!cell) return;
    if (readout) readout.textContent = cell.dataset.cell;
    mark(cell);
  };
  document.addEventListener("pointerover", tell);
  document.addEventListener("focusin", tell);
})();
