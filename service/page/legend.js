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
  }

  // facts: the service's JSON, {classes: [{label, name, rgb, share, mean_confidence}], void: {share}}
  show(facts) {
    this.classes = facts.classes.toSorted((a, b) => b.share - a.share);
    this.rows = this.classes.map((entry) => this.#row(entry));
    const rows = element("ul", { className: "rows" }, this.rows);
    rows.addEventListener("pointerleave", () => this.tell());
    const none = facts.void.share && element("p", { className: "small" }, [`${percent(facts.void.share)} belongs to no class.`]);
    this.place.replaceChildren(this.#head(), rows, ...(none ? [none] : []));
    this.tell();
  }

  #head() {
    const all = element("button", { type: "button", textContent: "All" });
    const no = element("button", { type: "button", textContent: "None" });
    all.onclick = () => this.#check(() => true);
    no.onclick = () => this.#check(() => false);
    const count = this.classes.length;
    const title = element("h2", { textContent: count === 1 ? "1 class" : `${count} classes` });
    const head = element("div", { className: "head" }, [title, all, no]);
    if (count < MANY) return head;
    const find = element("input", { type: "search", placeholder: "Find a class", ariaLabel: "Find a class" });
    find.oninput = () => this.#find(find.value);
    head.append(find);
    return head;
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
    const name = element("span", { className: "name", textContent: entry.name });
    const row = element("li", {}, [element("label", {}, [box, swatch, name, share]), bar]);
    row.style.setProperty("--colour", `rgb(${entry.rgb})`);
    if (entry.mean_confidence != null) row.title = `${entry.name}: ${percent(entry.mean_confidence)} sure on average`;
    row.onpointerenter = () => box.checked && this.tell(entry.label);
    return row;
  }

  #check(shown) {
    this.rows.forEach((row, at) => {
      if (row.hidden) return; // what the search has left out stays as it is
      row.querySelector("input").checked = shown();
      this.hidden[shown() ? "delete" : "add"](this.classes[at].name);
    });
    this.tell();
  }

  #find(text) {
    const wanted = text.trim().toLowerCase();
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
