// The view of a recording: pan, zoom, selection of leads, pointer readout. signal_worker.js draws. Loaded once a model of signals
// is chosen; it has the methods of Viewer (viewer.js) that main.js calls.

import { createButton, createElement } from "./legend.js";
import { exchangeTexts } from "./page_texts.js";
import { zipFiles } from "./zip.js";

const ZOOM_STEP = 1.25; // per press of + or -
const PAN_STEP = 0.1; // of the view's width, per arrow key
const MIN_STEPS = 8; // time steps across the view, at least
const GAIN_STEP = 1.25, MAX_GAIN = 50;

const STYLE = [
  '[data-axes="T"] :is(#view, .check, #explain, .image-save, .photograph, .mouse-only) { display: none !important; }',
  'body:not([data-axes="T"]) .signal { display: none !important; }',
  "#signal-view { position: absolute; inset: 0; overflow: hidden; cursor: crosshair; touch-action: pan-y; background: var(--card); }",
  '[data-axes="T"] #examples button { padding: .35rem .7rem; }',
  "#signal-view:active { cursor: grabbing; }",
  "#signal-view:focus-visible { outline-offset: -2px; }",
  "#signal-view output { position: absolute; top: 0; left: 0; max-width: 95%; padding: .1rem .5rem; border: 1px solid var(--line); border-left: .6rem solid var(--color); border-radius: 5px; background: var(--card); pointer-events: none; z-index: 1; forced-color-adjust: none; }",
  "#signal-view .zoom { bottom: 2rem; }",
  ".leads { max-height: 30vh; overflow: auto; }",
  ".leads label { display: inline-flex; align-items: center; gap: .3rem; margin-right: .8rem; }",
  "@media (max-width: 50rem) { .viewer:has(#signal-view:not([hidden])) { aspect-ratio: auto; height: min(60dvh, 100dvh - 6rem); max-height: none; } }",
].join("");
// What the page says differently: text by selector.
const TEXTS = {
  "#empty .large": "Segment a recording",
  "#empty .small": "WFDB (.hea with .dat, or a zip file), EDF, WAV, CSV or NumPy. The file is sent only to this service.",
  "#empty .choose": "Choose a file",
  "#choose-again .choose": "Choose a file",
  "#keyboard-help": "Left and right pan, up and down change the height, plus and minus zoom, 0 shows the whole recording.",
};

export class SignalViewer {
  static worker = "signal_worker.js";

  // parent: the section of the viewer; before: the element before which the choice of leads goes; post(type, data, transfer): to
  // the worker
  constructor(parent, before, post) {
    Object.assign(this, { post, length: 0, from: 0, to: 1, gain: 1, opacity: 0.6, leads: [], hidden: new Set(), point: null, pointers: new Map(), texts: {} });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    document.adoptedStyleSheets.push(sheet);
    this.#build(parent, before);
    const offscreen = this.canvas.transferControlToOffscreen();
    this.post("canvas", { canvas: offscreen }, [offscreen]);
    new ResizeObserver(() => this.sendView()).observe(this.view);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.sendView());
    this.#addListeners();
  }

  // Changes the page's texts to those of recordings, or back.
  activate(active) {
    document.body.dataset.axes = active ? "T" : "HW";
    exchangeTexts(active, TEXTS, this.texts);
    const input = document.getElementById("file");
    this.accept ??= input.accept;
    Object.assign(input, { accept: active ? "" : this.accept, multiple: active });
    if (!active) this.view.hidden = true;
  }

  // A WFDB record is a header and signal files, which are sent as one zip file.
  pack(files) {
    const header = files.find(({ name }) => /\.hea$/i.test(name));
    return header && files.length > 1 ? zipFiles(files, header.name.replace(/\.hea$/i, ".zip")) : files[0];
  }

  // width: time steps; leads: their names
  show({ width, rate, leads }) {
    const same = this.leads.join() === leads.join();
    Object.assign(this, { length: width, rate, leads });
    if (!same) this.hidden.clear();
    this.hideReadout();
    this.#listLeads();
    this.fit();
  }

  fit() {
    [this.from, this.to, this.gain] = [0, this.length, 1];
    this.sendView();
  }

  // anchor: the point that stays fixed, in CSS pixels of the view
  zoom(factor, anchor = { x: this.view.clientWidth / 2 }) {
    const steps = this.to - this.from, wanted = Math.min(this.length, Math.max(Math.min(MIN_STEPS, this.length), steps / factor));
    const fixed = this.from + (anchor.x / this.view.clientWidth) * steps;
    this.from = fixed - ((fixed - this.from) / steps) * wanted;
    this.to = this.from + wanted;
    this.pan(0);
  }

  // Moves the recording by CSS pixels, and keeps it in the view.
  pan(pixels) {
    const steps = this.to - this.from;
    this.from = Math.min(this.length - steps, Math.max(0, this.from - (pixels / this.view.clientWidth) * steps));
    this.to = this.from + steps;
    this.sendView();
  }

  sendView() {
    const { clientWidth: width, clientHeight: height } = this.view;
    if (!this.length || !width) return;
    const { from, to, gain, opacity } = this, style = getComputedStyle(document.body);
    const color = (name) => style.getPropertyValue(name);
    const colors = { text: color("--text"), muted: color("--muted"), line: color("--line"), accent: color("--accent"), background: color("--card") };
    const leads = this.leads.flatMap((name, index) => (this.hidden.has(name) ? [] : [index]));
    this.post("view", { view: { from, to, leads, gain, width, height, ratio: devicePixelRatio, opacity, colors } });
  }

  // Shows the worker's reply to a readout request. content: nodes; rgb: color of the class
  showReadout({ outside, note }, content, rgb) {
    const { readout, view, point } = this;
    if (!point || outside) return void (readout.hidden = true);
    readout.replaceChildren(...content, createElement("div", { className: "small", textContent: note }));
    readout.style.setProperty("--color", `rgb(${rgb})`);
    readout.hidden = false;
    const left = Math.min(point.x + 14, view.clientWidth - readout.offsetWidth - 4);
    const below = point.y + 18 + readout.offsetHeight < view.clientHeight;
    readout.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(0, point.y + (below ? 18 : -8 - readout.offsetHeight))}px)`;
  }

  hideReadout() {
    this.point = null;
    this.readout.hidden = true;
  }

  requestReadout(point) {
    const send = () => {
      this.scheduled = false;
      if (this.point) this.post("readout", this.point);
    };
    if (!this.scheduled) requestAnimationFrame(send); // at most one per frame
    this.scheduled = true;
    this.point = point;
  }

  #build(parent, before) {
    this.canvas = createElement("canvas", { ariaHidden: "true" });
    this.readout = createElement("output", { hidden: true });
    const zoom = createElement("div", { className: "zoom", role: "group", ariaLabel: "Zoom" }, [
      Object.assign(createButton("−", () => this.zoom(1 / 1.5)), { ariaLabel: "Zoom out" }),
      Object.assign(createButton("All", () => this.fit()), { ariaLabel: "Show the whole recording" }),
      Object.assign(createButton("+", () => this.zoom(1.5)), { ariaLabel: "Zoom in" }),
    ]);
    this.view = createElement("div", { id: "signal-view", className: "signal", tabIndex: 0, role: "group", hidden: true, ariaLabel: "Recording with class colors" }, [this.canvas, this.readout, zoom]);
    this.view.setAttribute("aria-describedby", "summary keyboard-help");
    parent.prepend(this.view);
    this.list = createElement("div", { className: "leads" });
    this.choice = createElement("details", { className: "signal", open: true, hidden: true }, [createElement("summary", { textContent: "Leads" }), this.list]);
    before.before(this.choice);
    const save = document.querySelector(".save").parentElement;
    save.classList.add("image-save");
    const buttons = [["Events", "json"], ["CSV", "csv"]].map(([text, what]) => Object.assign(createButton(text, () => this.post("save", { what })), { className: "save" }));
    save.after(createElement("p", { className: "actions signal" }, ["Save", ...buttons]));
  }

  // One is always shown.
  #listLeads() {
    this.choice.hidden = this.leads.length < 2;
    const boxes = this.leads.map((name) => createElement("input", { type: "checkbox", checked: !this.hidden.has(name), onchange: () => apply() }));
    const apply = () => {
      this.hidden = new Set(this.leads.filter((_, index) => !boxes[index].checked));
      for (const box of boxes) box.disabled = box.checked && this.hidden.size === this.leads.length - 1;
      this.sendView();
    };
    const all = createButton("All", () => {
      for (const box of boxes) box.checked = true;
      apply();
    });
    this.list.replaceChildren(...boxes.map((box, index) => createElement("label", { ondblclick: () => only(index) }, [box, createElement("bdi", { textContent: this.leads[index] })])), all);
    const only = (chosen) => {
      boxes.forEach((box, index) => (box.checked = index === chosen));
      apply();
    };
  }

  #point(event) {
    const box = this.view.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  #addListeners() {
    const { view } = this, onTrace = (event) => event.target === view || event.target === this.canvas;
    view.addEventListener("wheel", (event) => {
      event.preventDefault();
      const unit = event.deltaMode ? 20 : 1;
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(-unit * (event.deltaX || event.deltaY));
      else this.zoom(Math.exp((-unit * event.deltaY) / (event.ctrlKey ? 100 : 400)), this.#point(event)); // ctrl: pinch on a touchpad
    }, { passive: false });
    view.addEventListener("pointerdown", (event) => {
      if (!onTrace(event) || event.button) return;
      view.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, this.#point(event));
    });
    view.addEventListener("pointermove", (event) => {
      const now = this.#point(event), before = this.pointers.get(event.pointerId);
      if (before) this.#drag(event.pointerId, before, now);
      if (before || onTrace(event)) this.requestReadout(now);
      else this.hideReadout(); // over a button
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
      view.addEventListener(end, (event) => this.pointers.delete(event.pointerId) && this.requestReadout(this.#point(event)));
    view.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hideReadout());
    view.addEventListener("dblclick", (event) => onTrace(event) && this.zoom(2, this.#point(event)));
    view.addEventListener("keydown", (event) => this.#handleKey(event));
    view.addEventListener("blur", () => this.hideReadout());
  }

  // One pointer pans; two pan and zoom.
  #drag(id, before, now) {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    this.pointers.set(id, now);
    if (!other) return this.pan(now.x - before.x);
    this.pan((now.x - before.x) / 2);
    this.zoom(Math.max(8, Math.abs(now.x - other.x)) / Math.max(8, Math.abs(before.x - other.x)), { x: (now.x + other.x) / 2 });
  }

  #handleKey(event) {
    if (event.target !== this.view || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = PAN_STEP * this.view.clientWidth;
    const actions = {
      ArrowLeft: () => this.pan(step), ArrowRight: () => this.pan(-step), Home: () => this.pan(Infinity), End: () => this.pan(-Infinity),
      ArrowUp: () => this.#scale(GAIN_STEP), ArrowDown: () => this.#scale(1 / GAIN_STEP),
      "+": () => this.zoom(ZOOM_STEP), "=": () => this.zoom(ZOOM_STEP), "-": () => this.zoom(1 / ZOOM_STEP), 0: () => this.fit(),
    };
    if (!actions[event.key]) return;
    actions[event.key]();
    event.preventDefault();
    this.requestReadout({ x: this.view.clientWidth / 2, y: this.point?.y ?? 20 });
  }

  #scale(factor) {
    this.gain = Math.min(MAX_GAIN, Math.max(1 / MAX_GAIN, this.gain * factor));
    this.sendView();
  }
}
