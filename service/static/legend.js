// Lists the classes in the image, largest first, with their area and a checkbox to hide each.

const SEARCH_MIN_CLASSES = 12; // from this many classes on, there is a search field
const BACKGROUND = /^[_\W]*(background|bg|void|other|unlabell?ed|none)[_\W]*$/i; // classes that are hidden until one checks them
const DIMMED_ALPHA = 50; // 0..255, of the other classes while the pointer is on one

export class Legend {
  // onChange(table): called with a Uint32Array of 256 RGBA colors by label
  constructor(container, onChange) {
    this.container = container;
    this.onChange = onChange;
    this.choices = new Map(); // class name -> whether to show it, as chosen: it stays in the next image
    this.classes = [];
    this.rows = [];
    this.#build();
  }

  // stats: the service's JSON, {classes: [{label, name, rgb, fraction, mean_confidence}], unlabeled: {fraction}}; of a volume
  // with `amount`, a text to show for the fraction
  show(stats) {
    const focused = this.rows.findIndex((row) => row.contains(document.activeElement));
    const name = this.classes[focused]?.name;
    this.classes = stats.classes.toSorted((a, b) => b.fraction - a.fraction);
    this.rows = this.classes.map((entry) => this.#createRow(entry));
    this.list.replaceChildren(...this.rows);
    const count = this.classes.length;
    this.title.textContent = count === 1 ? "1 class" : `${count} classes`;
    this.unlabeled.textContent = stats.unlabeled.fraction ? `Unlabeled: ${formatPercent(stats.unlabeled.fraction)} of the image.` : "";
    this.search.hidden = count < SEARCH_MIN_CLASSES;
    if (this.search.hidden) this.search.value = "";
    this.#filter();
    this.rows[this.classes.findIndex((entry) => entry.name === name)]?.querySelector("input").focus();
    this.notifyChange();
  }

  isShown(name) {
    return this.choices.get(name) ?? !BACKGROUND.test(name);
  }

  // Built once, so that the search field keeps its focus and text.
  #build() {
    const all = createButton("All", () => this.#checkAll(true));
    const none = createButton("None", () => this.#checkAll(false));
    this.title = createElement("h2");
    this.search = createElement("input", { type: "search", placeholder: "Find a class", ariaLabel: "Find a class", oninput: () => this.#filter() });
    this.list = createElement("ul", { className: "rows", onpointerleave: () => this.notifyChange() });
    this.unlabeled = createElement("p", { className: "small" });
    this.container.append(createElement("div", { className: "head" }, [this.title, all, none, this.search]), this.list, this.unlabeled);
  }

  #createRow(entry) {
    const checkbox = createElement("input", { type: "checkbox", checked: this.isShown(entry.name) });
    checkbox.onchange = () => {
      this.choices.set(entry.name, checkbox.checked);
      this.notifyChange();
    };
    const swatch = createElement("span", { className: "swatch" });
    const fraction = createElement("span", { className: "fraction", textContent: entry.amount ?? formatPercent(entry.fraction) });
    const bar = createElement("span", { className: "bar" });
    bar.style.width = `${entry.fraction * 100}%`;
    const name = createElement("bdi", { className: "name", textContent: entry.name });
    const row = createElement("li", {}, [createElement("label", {}, [checkbox, swatch, name, fraction]), bar]);
    row.style.setProperty("--color", `rgb(${entry.rgb})`);
    row.title = entry.name + (entry.mean_confidence == null ? "" : `: mean confidence ${formatPercent(entry.mean_confidence)}`);
    row.onpointerenter = () => checkbox.checked && this.notifyChange(entry.label);
    return row;
  }

  #checkAll(checked) {
    this.rows.forEach((row, index) => {
      if (row.hidden) return; // filtered out by the search
      row.querySelector("input").checked = checked;
      this.choices.set(this.classes[index].name, checked);
    });
    this.notifyChange();
  }

  #filter() {
    const query = this.search.value.trim().toLowerCase();
    this.rows.forEach((row, index) => (row.hidden = !this.classes[index].name.toLowerCase().includes(query)));
  }

  // highlighted: label of the class under the pointer. The table has native byte order, as the renderer expects.
  notifyChange(highlighted = null) {
    const bytes = new Uint8ClampedArray(4 * 256);
    for (const { label, name, rgb } of this.classes)
      if (this.isShown(name)) bytes.set([...rgb, highlighted === null || highlighted === label ? 255 : DIMMED_ALPHA], 4 * label);
    this.onChange(new Uint32Array(bytes.buffer));
  }
}

export function formatPercent(fraction) {
  const percent = fraction * 100;
  return percent > 0 && percent < 0.1 ? "<0.1%" : `${percent.toFixed(percent < 10 ? 1 : 0)}%`;
}

export function createElement(tag, properties = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const createButton = (textContent, onclick) => createElement("button", { type: "button", textContent, onclick });
