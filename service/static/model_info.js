// Shows the timing of a result and the details of the model.

import { createElement, formatPercent } from "./legend.js";

export const formatDuration = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

// stages: [name, ms] pairs from the service; the rest of totalMs is shown as transfer
export function renderTiming(container, stages, totalMs) {
  const serverMs = stages.reduce((sum, [, ms]) => sum + ms, 0);
  const all = [...stages, ["transfer", Math.max(0, totalMs - serverMs)]];
  const bar = createElement("div", { className: "timing-bar", ariaHidden: "true" }, all.map(([, ms]) => {
    const part = createElement("span");
    part.style.flexGrow = ms;
    return part;
  }));
  const labels = all.map(([name, ms]) => createElement("span", { textContent: `${name} ${formatDuration(ms)}` }));
  container.replaceChildren(bar, createElement("p", { className: "small timing-labels" }, labels));
}

// model: an entry of /v1/models
export function renderModelInfo(container, model) {
  const { spec } = model;
  const inputSize = { native: "original size", fit: `long side ${spec.input.side} pixels`, exact: `height, width ${spec.input.size} pixels` };
  const options = Object.entries(spec.architecture.options).filter(([, value]) => value).map((pair) => pair.join("="));
  const spacing = spec.input.spacing?.values.map((step) => Number(step.toPrecision(3))).join(" x ");
  const [sizeName, size] = {
    HW: ["Input size", inputSize[spec.input.rule]],
    T: ["Sampling rate", spacing && `${spacing} Hz`],
    DHW: ["Spacing", spacing && `${spacing} mm (depth, height, width)`],
  }[spec.input.axes];
  const miou = spec.metrics.val?.miou;
  const fields = {
    Name: `${model.name}@${model.hash.slice(0, 12)}`,
    Network: [spec.architecture.name, ...options].join(" "),
    Classes: spec.classes.map(({ name }) => name).join(", "),
    Channels: spec.input.channels.join(", "),
    [sizeName]: size,
    mIoU: miou && `${formatPercent(miou)} on the validation split`,
    "Runs on": `${model.device}: ${model.reason}`,
  };
  const rows = Object.entries(fields).filter(([, value]) => value);
  container.querySelector("dl").replaceChildren(
    ...rows.flatMap(([name, value]) => [createElement("dt", { textContent: name }), createElement("dd", { textContent: value })]),
  );
  container.hidden = false;
}
