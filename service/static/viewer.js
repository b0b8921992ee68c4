// Pan, zoom and pointer readout of the displayed image. The worker does the drawing (renderer.js).

const MAX_SCALE = 40; // CSS pixels per image pixel
const ZOOM_STEP = 1.25; // per press of + or -
const PAN_STEP = 40; // CSS pixels per arrow key

export class Viewer {
  // elements: view, canvas, split (range), readout; post(type, data, transfer): to the worker
  constructor({ view, canvas, split, readout }, post) {
    Object.assign(this, { view, split, readout, post });
    this.size = { width: 0, height: 0 }; // of the image
    Object.assign(this, { scale: 1, x: 0, y: 0, opacity: 0.6, smooth: false, fitted: true });
    this.pointers = new Map(); // pressed pointers: id -> point
    this.hoverPoint = null; // where to read the mask, in CSS pixels of the view
    const offscreen = canvas.transferControlToOffscreen();
    post("canvas", { canvas: offscreen }, [offscreen]);
    new ResizeObserver(() => (this.fitted ? this.fit() : this.pan(0, 0))).observe(view);
    this.#addListeners();
  }

  // size: {width, height} of the image in pixels
  show(size) {
    this.size = size;
    this.view.parentElement.style.setProperty("--ratio", size.width / size.height); // the view's, on a phone
    this.hideReadout();
    this.fit();
  }

  fit() {
    const { clientWidth, clientHeight } = this.view;
    const { width, height } = this.size;
    if (!width) return;
    this.scale = Math.min(clientWidth / width, clientHeight / height);
    this.x = (clientWidth - width * this.scale) / 2;
    this.y = (clientHeight - height * this.scale) / 2;
    this.fitted = true;
    this.sendView();
  }

  // anchor: the point that stays fixed, in CSS pixels of the view
  zoom(factor, anchor = this.#center()) {
    const { clientWidth, clientHeight } = this.view;
    const fitScale = Math.min(clientWidth / this.size.width, clientHeight / this.size.height); // above MAX_SCALE for a tiny image
    const scale = Math.min(Math.max(MAX_SCALE, fitScale), Math.max(Math.min(fitScale, 1), this.scale * factor));
    this.x = anchor.x - ((anchor.x - this.x) * scale) / this.scale;
    this.y = anchor.y - ((anchor.y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.pan(0, 0);
  }

  // Keeps the image over the center of the view.
  pan(dx, dy) {
    const { x, y } = this.#center();
    this.x = Math.min(x, Math.max(x - this.size.width * this.scale, this.x + dx));
    this.y = Math.min(y, Math.max(y - this.size.height * this.scale, this.y + dy));
    this.fitted = false;
    this.sendView();
  }

  sendView() {
    const { clientWidth: width, clientHeight: height } = this.view;
    const { scale, x, y, opacity, smooth } = this;
    const split = this.split.hidden ? null : this.split.value / this.split.max;
    this.post("view", { view: { scale, x, y, width, height, opacity, smooth, split, ratio: devicePixelRatio } });
  }

  // Shows the worker's reply to a readout request. content: nodes; rgb: color of the class
  showReadout({ x, y }, content, rgb) {
    const { readout, view, hoverPoint } = this;
    if (!hoverPoint) return;
    readout.replaceChildren(...content);
    readout.style.setProperty("--color", `rgb(${rgb})`);
    readout.title = `pixel ${x}, ${y}`;
    readout.hidden = false;
    const left = Math.min(hoverPoint.x + 14, view.clientWidth - readout.offsetWidth - 4);
    const below = hoverPoint.y + 18 + readout.offsetHeight < view.clientHeight;
    readout.style.transform = `translate(${Math.max(4, left)}px, ${hoverPoint.y + (below ? 18 : -8 - readout.offsetHeight)}px)`;
  }

  requestReadout(point) {
    if (!this.readoutScheduled) requestAnimationFrame(() => this.#sendReadout()); // at most one per frame
    this.readoutScheduled = true;
    this.hoverPoint = point;
  }

  #sendReadout() {
    this.readoutScheduled = false;
    const { hoverPoint } = this;
    if (!hoverPoint) return;
    const x = Math.floor((hoverPoint.x - this.x) / this.scale);
    const y = Math.floor((hoverPoint.y - this.y) / this.scale);
    const outside = x < 0 || y < 0 || x >= this.size.width || y >= this.size.height;
    if (outside) this.hideReadout();
    else this.post("readout", { x, y });
  }

  hideReadout() {
    this.hoverPoint = null;
    this.readout.hidden = true;
  }

  #center() {
    return { x: this.view.clientWidth / 2, y: this.view.clientHeight / 2 };
  }

  #point(event) {
    const box = this.view.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  #addListeners() {
    const { view, split } = this;
    const onImage = (event) => event.target === view || event.target.tagName === "CANVAS";
    view.addEventListener("wheel", (event) => {
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode ? 20 : 1);
      this.zoom(Math.exp(-pixels / (event.ctrlKey ? 100 : 400)), this.#point(event)); // ctrl: pinch on a touchpad
    }, { passive: false });
    view.addEventListener("pointerdown", (event) => {
      if (!onImage(event) || event.button) return;
      view.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, this.#point(event));
    });
    view.addEventListener("pointermove", (event) => {
      const now = this.#point(event), before = this.pointers.get(event.pointerId);
      if (before) this.#drag(event.pointerId, before, now);
      if (before || onImage(event)) this.requestReadout(now);
      else this.hideReadout(); // over a button
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
      view.addEventListener(end, (event) => this.pointers.delete(event.pointerId) && this.requestReadout(this.#point(event)));
    view.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hideReadout());
    view.addEventListener("dblclick", (event) => onImage(event) && this.zoom(2, this.#point(event)));
    view.addEventListener("keydown", (event) => this.#handleKey(event));
    view.addEventListener("blur", () => this.hideReadout());
    split.addEventListener("input", () => this.sendView());
  }

  // One pointer pans; two pan and zoom.
  #drag(id, before, now) {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    this.pointers.set(id, now);
    if (!other) return this.pan(now.x - before.x, now.y - before.y);
    const distance = (point) => Math.hypot(point.x - other.x, point.y - other.y);
    const center = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
    this.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    this.zoom(distance(now) / Math.max(1, distance(before)), center);
  }

  #handleKey(event) {
    if (event.target !== this.view || event.ctrlKey || event.metaKey || event.altKey) return;
    const offsets = { ArrowLeft: [PAN_STEP, 0], ArrowRight: [-PAN_STEP, 0], ArrowUp: [0, PAN_STEP], ArrowDown: [0, -PAN_STEP] };
    if (offsets[event.key]) this.pan(...offsets[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(ZOOM_STEP);
    else if (event.key === "-") this.zoom(1 / ZOOM_STEP);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
    this.requestReadout(this.#center());
  }
}
