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
  const tell = (event) => {
    const cell = event.target.closest("[data-cell]");
    if (cell && readout) readout.textContent = cell.dataset.cell;
  };
  document.addEventListener("pointerover", tell);
  document.addEventListener("focusin", tell);
})();
