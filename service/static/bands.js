// Of a model of other channels than red, green and blue: which three the page shows as these. It begins with the service's own
// choice: red, green and blue in any case; otherwise the first three, or of two channels the first as gray.

import { createElement } from "./legend.js";

const COLORS = ["red", "green", "blue"];

// onChoose(names): called with three names, separated by commas
export function offerBands(group, channels, onChoose) {
  const named = COLORS.map((color) => channels.find((name) => name.toLowerCase() === color));
  const first = named.every((name) => name !== undefined) ? named : channels;
  group.replaceChildren("Show", ...COLORS.map((color, index) => {
    const field = createElement("select", { ariaLabel: color }, channels.map((name) => new Option(name)));
    field.value = first[first[2] ? index : 0];
    field.onchange = () => onChoose([...group.children].map(({ value }) => value).join());
    return field;
  }));
}
