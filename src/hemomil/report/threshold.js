// Hides boxes and cells of mosaics that have less of the chosen score than so many per cent of the run's cells.
(() => {
  "use strict";
  const slider = document.querySelector("#threshold");
  if (!slider) return;
  const said = document.querySelector("#threshold-said");
  const scores = document.body.dataset.scores.split(" ");
  const cells = [...document.querySelectorAll("[data-q]")];
  const percents = cells.map((cell) => cell.dataset.q.split(" ").map((text) => (text === "x" ? -1 : Number(text))));

  const name = () => {
    const button = document.querySelector('[data-set-colour][aria-pressed="true"]');
    return button.dataset.by || button.textContent;
  };
  const hide = () => {
    const least = Number(slider.value);
    const score = scores.indexOf(document.body.dataset.colour);
    let left = 0;
    cells.forEach((cell, i) => {
      const shown = least === 0 || percents[i][score] >= least;
      cell.classList.toggle("below", !shown);
      left += shown ? 1 : 0;
    });
    said.textContent = least === 0
      ? `all ${cells.length} cells on this page are shown`
      : `${left} of ${cells.length} cells shown: those in the top ${100 - least} % of this run by ${name()}`;
    slider.setAttribute("aria-valuetext", said.textContent);
  };
  slider.addEventListener("input", hide);
  document.addEventListener("colour", hide);
  hide();
})();
