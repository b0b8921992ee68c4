// Of a model of other channels than red, green and blue: which three the page shows as these. It begins with the service's own
// choice: of two channels, the first as gray.

import { createElement } from "./legend.js";

const COLORS = ["red", "green", "blue"];

// onChoose(names): called with three names, separated by commas
export function offerBands(group, channels, onChoose) {
  const first = COLORS.every((color) => channels.includes(color)) ? COLORS : channels;
  group.replaceChildren("Show", ...COLORS.map((color, index) => {
    const field = createElement("select", { ariaLabel: color }, channels.map((name) => new Option(name)));
    field.value = first[first[2] ? index : 0];
    field.onchange = () => onChoose([...group.children].map(({ value }) => value).join());
    return field;
  }));
}
