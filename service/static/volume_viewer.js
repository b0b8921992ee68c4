// The view of a volume: three planes through one voxel, each with its slice; window and level. volume_worker.js draws. Loaded once
// a model of volumes is chosen; it has the methods of Viewer (viewer.js) that main.js calls.

import { createElement } from "./legend.js";
import { exchangeTexts } from "./page_texts.js";
import { placePlane, PLANES } from "./volume_data.js";
import { zipFiles } from "./zip.js";

const WHEEL_STEP = 60; // pixels of a wheel for one slice
const LARGE_STEP = 10; // voxels, with the shift key
const STEPS = 500; // of the sliders of window and level

const STYLE = [
  '[data-axes="DHW"] :is(#view, .check, #explain, .image-save, .photograph, .mouse-only, #min-confidence, #min-confidence-value, [for="min-confidence"]) { display: none !important; }',
  'body:not([data-axes="DHW"]) .volume { display: none !important; }',
  '[data-axes="DHW"] #examples button { padding: .35rem .7rem; }',
  "#volume-view { position: absolute; inset: 0; display: grid; grid-template: minmax(0, 1fr) minmax(0, 1fr) auto / minmax(0, 3fr) minmax(0, 2fr); gap: 2px; }",
  "#volume-view figure { display: flex; flex-direction: column; min-height: 0; }",
  "#volume-view figure:first-child { grid-row: 1 / 3; }",
  ".slice { position: relative; flex: 1; min-height: 0; overflow: hidden; cursor: crosshair; touch-action: none; background: #000; }",
  ".slice canvas { position: absolute; inset: 0; }",
  ".slice:focus-visible { outline-offset: -2px; }",
  "#volume-view figcaption { display: flex; align-items: center; gap: .6rem; padding: .15rem .6rem; background: var(--card); }",
  "#volume-view figcaption input { flex: 1; min-width: 0; }",
  "#volume-view figcaption span { min-width: 4.5rem; color: var(--muted); text-align: right; font-variant-numeric: tabular-nums; }",
  "#volume-view > output { grid-column: 1 / -1; min-height: 2rem; padding: .2rem .6rem; border-left: .6rem solid var(--color, transparent); background: var(--card); font-variant-numeric: tabular-nums; forced-color-adjust: none; overflow-wrap: anywhere; }",
  "@media (max-width: 50rem) {",
  ".viewer:has(#volume-view:not([hidden])) { min-height: 0; }",
  "#volume-view { position: static; display: flex; flex-direction: column; }",
  ".slice { flex: none; height: min(70vw, 60dvh); touch-action: pan-y; }",
  "}",
].join("");
// What the page says differently: text by selector.
const TEXTS = {
  "#empty .large": "Segment a volume",
  "#empty .small": "NIfTI, NRRD, TIFF stack, NumPy, or the slices of a DICOM series (also as a zip file). The file is sent only to this service.",
  "#empty .choose": "Choose a file",
  "#choose-again .choose": "Choose a file",
  "#keyboard-help": "Arrow keys move the crosshair in the plane, with shift by ten voxels; page up and page down change the slice, home and end go to the first and the last, 0 to the middle. The class at the crosshair is announced.",
};

export class VolumeViewer {
  static worker = "volume_worker.js";

  // parent: the section of the viewer; before: the element before which window and level go; post(type, data, transfer): to the worker
  constructor(parent, before, post) {
    Object.assign(this, { post, opacity: 0.6, size: null, position: [0, 0, 0], range: null, texts: {}, wheel: 0 });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    document.adoptedStyleSheets.push(sheet);
    this.#build(parent, before);
    const canvases = this.slices.map((slice) => slice.firstChild.transferControlToOffscreen());
    this.post("canvas", { canvases }, canvases);
    const observer = new ResizeObserver(() => this.sendView());
    for (const slice of this.slices) observer.observe(slice);
  }

  // Changes the page's texts to those of volumes, or back.
  activate(active) {
    document.body.dataset.axes = active ? "DHW" : "HW";
    exchangeTexts(active, TEXTS, this.texts);
    const input = document.getElementById("file");
    this.accept ??= input.accept;
    Object.assign(input, { accept: active ? "" : this.accept, multiple: active });
    if (!active) this.view.hidden = this.contrast.hidden = true;
  }

  // The slices of a series are sent as one zip file.
  pack(files) {
    return files.length > 1 ? zipFiles(files, "series.zip") : files[0];
  }

  // size, spacing: along axes 0, 1, 2 of volume_data.js; range: of the values, null without any; note: what the user should know
  show({ size, spacing, range, note }) {
    Object.assign(this, { size, spacing, range, note, position: size.map((length) => Math.floor(length / 2)) });
    this.contrast.hidden = !range;
    this.sliders.forEach((slider, index) => Object.assign(slider, { max: size[PLANES[index].through] - 1 }));
    this.readout.replaceChildren(note ?? "");
    this.readout.style.removeProperty("--color");
    this.#resetContrast();
  }

  sendView() {
    if (!this.size || !this.slices[0].clientWidth) return;
    const { position, opacity, size } = this, [low, high] = this.#contrastRange();
    this.sliders.forEach((slider, index) => {
      const step = position[PLANES[index].through], count = size[PLANES[index].through];
      slider.value = step;
      slider.ariaValueText = slider.nextSibling.textContent = `${step + 1} / ${count}`;
    });
    const sizes = this.slices.map(({ clientWidth, clientHeight }) => ({ width: clientWidth, height: clientHeight }));
    this.post("view", { view: { position, sizes, opacity, low, high, ratio: devicePixelRatio } });
  }

  // Shows what is at the crosshair. content: nodes, of the class; rgb: its color
  showReadout({ label, value, voxel, world }, content, rgb) {
    const facts = [value === null ? "" : `value ${value}`, `voxel ${voxel.join(", ")}`, `${world.map((mm) => mm.toFixed(1)).join(", ")} mm`];
    const known = label !== null;
    this.readout.replaceChildren(...(known ? content : []), `${known ? " · " : ""}${facts.filter(Boolean).join(" · ")}`);
    if (this.note) this.readout.append(createElement("div", { className: "small", textContent: this.note }));
    if (known) this.readout.style.setProperty("--color", `rgb(${rgb})`);
  }

  hideReadout() {}

  #build(parent, before) {
    this.slices = PLANES.map(({ name }) => createElement("div", { className: "slice", tabIndex: 0, role: "group", ariaLabel: `${name} plane` }, [createElement("canvas", { ariaHidden: "true" })]));
    this.sliders = PLANES.map(({ name, through }, plane) => createElement("input", { type: "range", min: 0, ariaLabel: `${name} slice`, oninput: () => this.#move(through, this.sliders[plane].valueAsNumber) }));
    const figures = PLANES.map(({ name }, plane) => createElement("figure", {}, [this.slices[plane], createElement("figcaption", {}, [name, this.sliders[plane], createElement("span")])]));
    this.readout = createElement("output");
    this.view = createElement("div", { id: "volume-view", className: "volume", tabIndex: -1, role: "group", hidden: true, ariaLabel: "Volume in three planes with class colors" }, [...figures, this.readout]);
    this.view.setAttribute("aria-describedby", "summary keyboard-help");
    parent.prepend(this.view);
    const slider = (id, text) => {
      const input = createElement("input", { type: "range", id, min: 1, max: STEPS, oninput: () => this.sendView() });
      return [createElement("label", { htmlFor: id, textContent: text }), input, createElement("output", { id: `${id}-value` })];
    };
    const [level, window] = [slider("level", "Level"), slider("window", "Window")];
    [this.level, this.window] = [level, window].map(([, input, output]) => ({ input, output }));
    this.contrast = createElement("div", { className: "controls volume", hidden: true, title: "A double click resets both", ondblclick: () => this.#resetContrast() }, [...level, ...window]);
    before.before(this.contrast);
    const save = document.querySelector(".save").parentElement;
    save.classList.add("image-save");
    const buttons = [["Labels", "nifti"], ["JSON", "json"]].map(([text, what]) => createElement("button", { type: "button", className: "save", textContent: text, onclick: () => this.post("save", { what }) }));
    save.after(createElement("p", { className: "actions volume" }, ["Save", ...buttons]));
    this.slices.forEach((slice, plane) => this.#addListeners(slice, PLANES[plane]));
  }

  #resetContrast() {
    this.level.input.value = STEPS / 2;
    this.window.input.value = STEPS / 2;
    this.sendView();
  }

  // -> the values that are black and white. In the middle of both sliders they are the range of the volume.
  #contrastRange() {
    if (!this.range) return [0, 1];
    const [low, high] = this.range, span = high - low;
    const center = low + span * (2 * (this.level.input.value / STEPS) - 0.5), width = span * 2 * (this.window.input.value / STEPS);
    this.level.output.textContent = Number(center.toPrecision(3));
    this.window.output.textContent = Number(width.toPrecision(3));
    return [center - width / 2, center + width / 2];
  }

  #move(axis, step) {
    this.position = this.position.with(axis, Math.min(this.size[axis] - 1, Math.max(0, step)));
    this.sendView();
  }

  #addListeners(slice, plane) {
    const { across, down, through, upward } = plane;
    const point = (event) => {
      if (!this.size) return;
      const box = slice.getBoundingClientRect(), { left, top, stepX, stepY } = placePlane(plane, this, slice.clientWidth, slice.clientHeight);
      const row = Math.floor((event.clientY - box.top - top) / stepY);
      this.#move(across, Math.floor((event.clientX - box.left - left) / stepX));
      this.#move(down, upward ? this.size[down] - 1 - row : row);
    };
    slice.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      slice.setPointerCapture(event.pointerId);
      point(event);
    });
    slice.addEventListener("pointermove", (event) => slice.hasPointerCapture(event.pointerId) && point(event));
    slice.addEventListener("wheel", (event) => {
      if (event.ctrlKey || !this.size) return; // zooms the page
      event.preventDefault();
      this.wheel -= event.deltaY * (event.deltaMode ? WHEEL_STEP : 1);
      const steps = Math.trunc(this.wheel / WHEEL_STEP);
      this.wheel -= steps * WHEEL_STEP;
      if (steps) this.#move(through, this.position[through] + steps);
    }, { passive: false });
    slice.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.size) return;
      const step = event.shiftKey ? LARGE_STEP : 1, up = upward ? step : -step;
      const by = (axis, steps) => () => this.#move(axis, this.position[axis] + steps);
      const actions = {
        ArrowLeft: by(across, -step), ArrowRight: by(across, step), ArrowUp: by(down, up), ArrowDown: by(down, -up),
        PageUp: by(through, step), PageDown: by(through, -step), Home: by(through, -Infinity), End: by(through, Infinity),
        0: () => this.size.forEach((length, axis) => this.#move(axis, Math.floor(length / 2))),
      };
      if (!actions[event.key]) return;
      actions[event.key]();
      event.preventDefault();
    });
  }
}
