// What is told of a result's time, and of the model.

import { element, percent } from "./legend.js";

export const spent = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

// stages: [name, ms]; trip: ms in all
export function timing(place, stages, trip) {
  const inside = stages.reduce((sum, [, ms]) => sum + ms, 0);
  const all = [...stages, ["transfer", Math.max(0, trip - inside)]];
  const bar = element("div", { className: "stages", ariaHidden: "true" }, all.map(([, ms]) => {
    const part = element("span");
    part.style.flexGrow = ms;
    return part;
  }));
  const words = all.map(([name, ms]) => element("span", { textContent: `${name} ${spent(ms)}` }));
  place.replaceChildren(bar, element("p", { className: "small words" }, words));
}

// model: as /v1/models tells it
export function about(place, model) {
  const { spec } = model;
  const rule = { native: "as it is", fit: `brought to ${spec.input.side} pixels`, exact: `stretched to ${spec.input.size}` };
  const options = Object.entries(spec.architecture.options).filter(([, value]) => value).map((pair) => pair.join("="));
  const miou = spec.metrics.val?.miou;
  const facts = {
    Name: `${model.name}@${model.hash.slice(0, 12)}`,
    Network: [spec.architecture.name, ...options].join(" "),
    Classes: spec.classes.map(({ name }) => name).join(", "),
    Picture: rule[spec.input.rule],
    mIoU: miou && `${percent(miou)} on the validation split`,
    Runs: `on ${model.device}: ${model.why}`,
  };
  const rows = Object.entries(facts).filter(([, value]) => value);
  place.querySelector("dl").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]),
  );
  place.hidden = false;
}
