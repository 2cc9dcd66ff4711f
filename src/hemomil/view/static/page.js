// Small help with the page's elements. Text from the run is only ever set as text.

export const find = (id) => document.getElementById(id);

// An element with properties and children; strings among them become text.
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function show(id, visible) {
  find(id).hidden = !visible;
}

export function fixed(value, digits) {
  return value === null || Number.isNaN(value) ? "" : value.toFixed(digits).replace("-", "−");
}

// A p-value, written as the report writes it.
export function pText(p) {
  if (p === null || Number.isNaN(p)) return "";
  if (p < 0.001) return "< 0.001";
  return p < 0.1 ? p.toFixed(3) : p.toFixed(2);
}

export function pWithSign(p) {
  return p < 0.001 ? pText(p) : `= ${pText(p)}`;
}

export function tip(event, ...content) {
  const box = find("tip");
  box.replaceChildren(...content);
  box.hidden = false;
  const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
  const below = event.clientY + 16;
  const fits = below + box.offsetHeight < window.innerHeight;
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${fits ? below : event.clientY - box.offsetHeight - 10}px`;
}

export function hideTip() {
  find("tip").hidden = true;
}

// A canvas as sharp as the screen; returns its context, in CSS pixels.
export function sharpen(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}
