// The picture on the page: where it lies, how large, and what is under the pointer. What is drawn is the worker's affair.

const NEAREST = 40; // CSS pixels a pixel
const STEP = 1.25; // a press of + or -
const NUDGE = 40; // CSS pixels an arrow key

export class Stage {
  // elements: view, canvas, split (range), readout; tell(name, more): to the worker
  constructor({ view, canvas, split, readout }, tell) {
    Object.assign(this, { view, split, readout, tell });
    this.size = { width: 0, height: 0 }; // of the picture
    Object.assign(this, { scale: 1, x: 0, y: 0, opacity: 0.6, fitted: true });
    this.fingers = new Map();
    this.asked = null; // the point that is to be read, in CSS pixels of the view
    const screen = canvas.transferControlToOffscreen();
    tell("canvas", { canvas: screen }, [screen]);
    new ResizeObserver(() => (this.fitted ? this.fit() : this.move(0, 0))).observe(view);
    this.#listen();
  }

  // size: {width, height} of the picture in pixels
  show(size) {
    this.size = size;
    this.leave();
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
    this.look();
  }

  // by: factor; at: the point that stays, in CSS pixels of the view
  zoom(by, at = this.#middle()) {
    const { clientWidth, clientHeight } = this.view;
    const whole = Math.min(clientWidth / this.size.width, clientHeight / this.size.height); // of a tiny picture, nearer than NEAREST
    const scale = Math.min(Math.max(NEAREST, whole), Math.max(Math.min(whole, 1), this.scale * by));
    this.x = at.x - ((at.x - this.x) * scale) / this.scale;
    this.y = at.y - ((at.y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.move(0, 0);
  }

  // Some of the picture stays in the middle of the view.
  move(dx, dy) {
    const { x, y } = this.#middle();
    this.x = Math.min(x, Math.max(x - this.size.width * this.scale, this.x + dx));
    this.y = Math.min(y, Math.max(y - this.size.height * this.scale, this.y + dy));
    this.fitted = false;
    this.look();
  }

  look() {
    const { clientWidth: width, clientHeight: height } = this.view;
    const { scale, x, y, opacity } = this;
    const split = this.split.hidden ? null : this.split.value / this.split.max;
    this.tell("look", { view: { scale, x, y, width, height, opacity, split, ratio: devicePixelRatio } });
  }

  // The worker's answer to a point that was asked for; words: nodes that say what is there.
  read({ x, y }, words, rgb) {
    if (!this.asked) return;
    const { readout, view } = this;
    readout.replaceChildren(...words);
    readout.style.setProperty("--colour", `rgb(${rgb})`);
    readout.title = `pixel ${x}, ${y}`;
    readout.hidden = false;
    const left = Math.min(this.asked.x + 14, view.clientWidth - readout.offsetWidth - 4);
    const under = this.asked.y + 18 + readout.offsetHeight < view.clientHeight;
    readout.style.transform = `translate(${Math.max(4, left)}px, ${this.asked.y + (under ? 18 : -8 - readout.offsetHeight)}px)`;
  }

  ask(at) {
    if (!this.due) requestAnimationFrame(() => this.#askNow()); // at most once for each picture of the screen
    this.due = true;
    this.asked = at;
  }

  #askNow() {
    this.due = false;
    if (!this.asked) return;
    const x = Math.floor((this.asked.x - this.x) / this.scale);
    const y = Math.floor((this.asked.y - this.y) / this.scale);
    const outside = x < 0 || y < 0 || x >= this.size.width || y >= this.size.height;
    if (outside) this.leave();
    else this.tell("at", { x, y });
  }

  leave() {
    this.asked = null;
    this.readout.hidden = true;
  }

  #middle() {
    return { x: this.view.clientWidth / 2, y: this.view.clientHeight / 2 };
  }

  #point(event) {
    const box = this.view.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  #listen() {
    const { view, split } = this;
    const ours = (event) => event.target === view || event.target.tagName === "CANVAS";
    view.addEventListener("wheel", (event) => {
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode ? 20 : 1);
      this.zoom(Math.exp(-pixels / (event.ctrlKey ? 100 : 400)), this.#point(event)); // ctrl: a pinch on a touchpad
    }, { passive: false });
    view.addEventListener("pointerdown", (event) => {
      if (!ours(event) || event.button) return;
      view.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, this.#point(event));
    });
    view.addEventListener("pointermove", (event) => {
      const now = this.#point(event), before = this.fingers.get(event.pointerId);
      if (before) this.#drag(event.pointerId, before, now);
      if (before || ours(event)) this.ask(now);
      else this.leave(); // it is on a button
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
      view.addEventListener(end, (event) => this.fingers.delete(event.pointerId) && this.ask(this.#point(event)));
    view.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.leave());
    view.addEventListener("dblclick", (event) => ours(event) && this.zoom(2, this.#point(event)));
    view.addEventListener("keydown", (event) => this.#press(event));
    view.addEventListener("blur", () => this.leave());
    split.addEventListener("input", () => this.look());
  }

  // One finger moves the picture; two move and zoom it.
  #drag(id, before, now) {
    const other = [...this.fingers].find(([key]) => key !== id)?.[1];
    this.fingers.set(id, now);
    if (!other) return this.move(now.x - before.x, now.y - before.y);
    const apart = (point) => Math.hypot(point.x - other.x, point.y - other.y);
    const middle = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
    this.move((now.x - before.x) / 2, (now.y - before.y) / 2);
    this.zoom(apart(now) / Math.max(1, apart(before)), middle);
  }

  #press(event) {
    if (event.target !== this.view || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [NUDGE, 0], ArrowRight: [-NUDGE, 0], ArrowUp: [0, NUDGE], ArrowDown: [0, -NUDGE] };
    if (moves[event.key]) this.move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(STEP);
    else if (event.key === "-") this.zoom(1 / STEP);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
    this.ask(this.#middle());
  }
}
