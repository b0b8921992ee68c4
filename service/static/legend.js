// The classes that are in the picture, the largest first: what they are called, how much of the picture they are, and
// whether they are shown.

const MANY = 12; // from so many on, there is a field to find one by its name
const FAINT = 50; // 0..255: the others' colours while one is pointed at

export class Legend {
  // changed(table): Uint32Array of 256 RGBA, when other colours are to be shown
  constructor(place, changed) {
    this.place = place;
    this.changed = changed;
    this.hidden = new Set(); // names, so that what was put away stays so with the next picture
    this.classes = [];
    this.rows = [];
    this.#build();
  }

  // facts: the service's JSON, {classes: [{label, name, rgb, share, mean_confidence}], void: {share}}
  show(facts) {
    const focused = this.rows.findIndex((row) => row.contains(document.activeElement));
    const name = this.classes[focused]?.name;
    this.classes = facts.classes.toSorted((a, b) => b.share - a.share);
    this.rows = this.classes.map((entry) => this.#row(entry));
    this.list.replaceChildren(...this.rows);
    const count = this.classes.length;
    this.title.textContent = count === 1 ? "1 class" : `${count} classes`;
    this.rest.textContent = facts.void.share ? `${percent(facts.void.share)} belongs to no class.` : "";
    this.field.hidden = count < MANY;
    if (this.field.hidden) this.field.value = "";
    this.#find();
    this.rows[this.classes.findIndex((entry) => entry.name === name)]?.querySelector("input").focus();
    this.tell();
  }

  // What is the same for each picture: what has the focus, or was typed, stays.
  #build() {
    const all = element("button", { type: "button", textContent: "All", onclick: () => this.#check(true) });
    const no = element("button", { type: "button", textContent: "None", onclick: () => this.#check(false) });
    this.title = element("h2");
    this.field = element("input", { type: "search", placeholder: "Find a class", ariaLabel: "Find a class", oninput: () => this.#find() });
    this.list = element("ul", { className: "rows", onpointerleave: () => this.tell() });
    this.rest = element("p", { className: "small" });
    this.place.append(element("div", { className: "head" }, [this.title, all, no, this.field]), this.list, this.rest);
  }

  #row(entry) {
    const box = element("input", { type: "checkbox", checked: !this.hidden.has(entry.name) });
    box.onchange = () => {
      this.hidden[box.checked ? "delete" : "add"](entry.name);
      this.tell();
    };
    const swatch = element("span", { className: "swatch" });
    const share = element("span", { className: "share", textContent: percent(entry.share) });
    const bar = element("span", { className: "bar" });
    bar.style.width = `${entry.share * 100}%`;
    const name = element("bdi", { className: "name", textContent: entry.name });
    const row = element("li", {}, [element("label", {}, [box, swatch, name, share]), bar]);
    row.style.setProperty("--colour", `rgb(${entry.rgb})`);
    row.title = entry.name + (entry.mean_confidence == null ? "" : `: ${percent(entry.mean_confidence)} sure on average`);
    row.onpointerenter = () => box.checked && this.tell(entry.label);
    return row;
  }

  #check(shown) {
    this.rows.forEach((row, at) => {
      if (row.hidden) return; // what the search has left out stays as it is
      row.querySelector("input").checked = shown;
      this.hidden[shown ? "delete" : "add"](this.classes[at].name);
    });
    this.tell();
  }

  #find() {
    const wanted = this.field.value.trim().toLowerCase();
    this.rows.forEach((row, at) => (row.hidden = !this.classes[at].name.toLowerCase().includes(wanted)));
  }

  // A typed array on the bytes of another has the machine's own order of bytes, as the painter's has.
  tell(pointed = null) {
    const bytes = new Uint8ClampedArray(4 * 256);
    for (const { label, name, rgb } of this.classes)
      if (!this.hidden.has(name)) bytes.set([...rgb, pointed === null || pointed === label ? 255 : FAINT], 4 * label);
    this.changed(new Uint32Array(bytes.buffer));
  }
}

export function percent(share) {
  const number = share * 100;
  return number > 0 && number < 0.1 ? "<0.1%" : `${number.toFixed(number < 10 ? 1 : 0)}%`;
}

export function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
