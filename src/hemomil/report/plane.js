// Draws the plane of a sample when it is opened, and shows the cell that the pointer is at.
(() => {
  "use strict";
  const SIDE = 144;

  // the part of a field, or the picture of a cell, that already is on the page
  const pictureOf = (section, n) => {
    const box = section.querySelector(`.field g[data-n="${n}"]`);
    if (box) {
      const [x, y, width, height] = ["x", "y", "width", "height"].map((name) =>
        Number(box.lastElementChild.getAttribute(name)));
      const view = box.ownerSVGElement.viewBox.baseVal;
      const image = box.closest(".field").querySelector("img");
      const side = 1.2 * Math.max(width, height);
      const left = x + width / 2 - side / 2 - view.x;
      const top = y + height / 2 - side / 2 - view.y;
      return { image, part: [left, top, side, side], scale: (img) => img.naturalWidth / view.width };
    }
    const image = section.querySelector(`.frame[data-n="${n}"] img`);
    return image && { image, part: null };
  };

  const paint = async (canvas, found) => {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, SIDE, SIDE);
    if (!found) return;
    const image = found.image;
    await image.decode();
    const scale = found.scale ? found.scale(image) : 1;
    const part = found.part ? found.part.map((value) => value * scale) : [0, 0, image.naturalWidth, image.naturalHeight];
    context.clearRect(0, 0, SIDE, SIDE);
    context.drawImage(image, ...part, 0, 0, SIDE, SIDE);
  };

  const show = (details, texts, n) => {
    const section = details.closest("section");
    const drawn = section.querySelector(`[data-n="${n}"]`);
    const text = drawn ? drawn.dataset.cell : texts[n];
    const found = pictureOf(section, n);
    for (const other of section.querySelectorAll(".pointed")) other.classList.remove("pointed");
    for (const same of section.querySelectorAll(`[data-n="${n}"]`)) same.classList.add("pointed");
    paint(details.querySelector("canvas"), found);
    const caption = details.querySelector(".closer p");
    caption.textContent = found ? text : `${text} · its picture is not on this page`;
  };

  const draw = async (details) => {
    const target = details.querySelector(".plot");
    const item = JSON.parse(target.dataset.item);
    const texts = JSON.parse(target.dataset.texts);
    const views = await Bokeh.embed.embed_item(item, target);
    const plot = views.get_by_id(item.root_id).model;
    for (const renderer of plot.renderers) {
      const source = renderer.data_source;
      source.inspect.connect(() => {
        const [first] = source.inspected.indices;
        if (first !== undefined) show(details, texts, source.get("n")[first]);
      });
    }
    target.dataset.drawn = "yes";
  };

  for (const details of document.querySelectorAll("details.plane")) {
    details.addEventListener("toggle", () => draw(details), { once: true });
  }
})();
