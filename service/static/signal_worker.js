// Segments a recording and draws its leads and events. Messages are those of worker.js, {type, ...data} in both directions.

import { ApiError, fileProblem, networkProblem, parseServerTiming, postFile } from "./segment_api.js";
import { createRecording, eventRows, extent, firstEvent, labelFractions, summarize } from "./signal_data.js";
import { readNpz } from "./npz.js";

// Labels, confidence and the recording itself, from one inference: the page needs no reader of recordings.
const PARAMS = { format: "npz", trace: "true" };
const AXIS_HEIGHT = 22; // CSS pixels
const POINTS_FROM = 6; // CSS pixels between two samples from which each gets a dot
const TICK_GAP = 90; // CSS pixels between two ticks, at least
const TICK_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200]; // seconds

const files = new Map(); // number -> promise of a Blob
let activeRequest = null; // AbortController
let recording = null; // createRecording()
let shown = { number: 0, name: "" };
let canvas, ctx, view = null; // view: {from, to: time steps, leads: indices, gain, width, height, ratio, opacity, colors}
let table = new Uint32Array(256), minConfidence = 0; // colors by label, RGBA in native byte order; 0..1
let drawScheduled = false;

const post = (type, data = {}) => postMessage({ type, ...data });

const handlers = {
  canvas(message) {
    canvas = message.canvas;
    ctx = canvas.getContext("2d");
  },
  view(message) {
    view = message.view;
    scheduleDraw();
  },
  overlay(message) {
    [table, minConfidence] = [message.table, message.minConfidence / 255];
    scheduleDraw();
  },
  stop: () => activeRequest?.abort(),

  show({ number, file }) {
    activeRequest?.abort();
    for (const old of files.keys()) if (old !== shown.number) files.delete(old);
    files.set(number, file.arrayBuffer().then((buffer) => new Blob([buffer]))); // a copy: the file may change
    files.get(number).catch(() => {}); // `segment` reports it
  },

  async segment(request) {
    const { number, name } = request;
    activeRequest?.abort();
    const controller = (activeRequest = new AbortController());
    const { signal } = controller, start = performance.now();
    try {
      const file = await files.get(number).catch(() => { throw new ApiError(fileProblem); });
      const response = await postFile({ ...request, file, signal }, PARAMS);
      const content = await response.arrayBuffer();
      const totalMs = performance.now() - start;
      recording = createRecording(readNpz(content));
      shown = { number, name };
      const { traces, length, rate } = recording;
      post("show", { number, name, width: length, height: 1, rate, leads: traces.map((trace) => trace.name) });
      post("result", {
        number, totalMs, stats: summarize(recording), model: response.headers.get("X-Model"),
        stages: parseServerTiming(response.headers.get("Server-Timing") ?? ""),
      });
    } catch (error) {
      if (!signal.aborted) post("problem", { number, problem: error instanceof ApiError ? error.problem : networkProblem(error) });
    } finally {
      if (activeRequest === controller) activeRequest = null;
    }
  },

  readout({ x, y }) {
    if (!recording || !view) return;
    const row = Math.floor(y / rowHeight()), trace = recording.traces[view.leads[row]];
    const step = Math.floor(view.from + (x / view.width) * (view.to - view.from));
    if (!trace || step < 0 || step >= recording.length) return post("readout", { outside: true });
    const track = trackOf(view.leads[row]), value = trace.samples[step];
    const label = track.labels[step], index = firstEvent(track, step);
    const inEvent = track.starts[index] <= step;
    const number = Number.isFinite(value) ? `${Number(value.toPrecision(4))} ${trace.unit}`.trim() : "no data";
    const span = inEvent ? `${formatTime(track.starts[index], 3)} to ${formatTime(track.ends[index], 3)}` : formatTime(step, 3);
    post("readout", { x: step, y: row, label, confidence: inEvent ? track.means[index] : track.confidence[step], note: `${trace.name} · ${number} · ${span}` });
  },

  save({ what }) {
    const rows = eventRows(recording), { length, rate, traces } = recording;
    if (what === "csv") {
      const columns = ["onset", "offset", "class", "confidence", "lead", "onset_seconds", "offset_seconds"];
      const cell = (value) => (/[",\n]/.test(value ??= "") ? `"${value.replaceAll('"', '""')}"` : value);
      const lines = [columns, ...rows.map((row) => columns.map((name) => cell(row[name])))];
      return post("save", { what, blob: new Blob([lines.map((line) => `${line.join()}\n`).join("")], { type: "text/csv" }) });
    }
    const content = { rate, length, seconds: length / rate, leads: traces.map(({ name }) => name), events: rows };
    post("save", { what, blob: new Blob([JSON.stringify(content)], { type: "application/json" }) });
  },
};

const rowHeight = () => (view.height - AXIS_HEIGHT) / Math.max(1, view.leads.length);
const trackOf = (lead) => recording.tracks[recording.tracks.length > 1 ? lead : 0];
const toX = (step) => ((step - view.from) / (view.to - view.from)) * view.width;

// Drawing, at most once per frame

function scheduleDraw() {
  if (!drawScheduled) requestAnimationFrame(draw);
  drawScheduled = true;
}

function draw() {
  drawScheduled = false;
  if (!canvas || !view) return;
  const [width, height] = [Math.round(view.width * view.ratio), Math.round(view.height * view.ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  ctx.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
  ctx.clearRect(0, 0, view.width, view.height);
  if (!recording) return;
  drawAxis();
  view.leads.forEach((lead, row) => {
    ctx.save();
    ctx.beginPath();
    ctx.rect(0, row * rowHeight(), view.width, rowHeight());
    ctx.clip();
    drawEvents(trackOf(lead), row * rowHeight());
    drawTrace(recording.traces[lead], row * rowHeight());
    ctx.restore();
  });
}

// Events as spans; those of a class in one path. Where they are narrower than a pixel, a column shows the fraction of each class.
function drawEvents(track, top) {
  const first = firstEvent(track, view.from), height = rowHeight(), paths = new Map();
  const add = (label, x, y, w, h) => {
    if (!paths.has(label)) paths.set(label, new Path2D());
    paths.get(label).rect(x, y, w, h);
  };
  const after = firstEvent(track, view.to);
  if (after - first <= view.width) {
    for (let index = first; index < track.starts.length && track.starts[index] < view.to; index++) {
      const label = track.kinds[index], x = toX(track.starts[index]);
      if (isVisible(label) && track.means[index] >= minConfidence) add(label, x, top, Math.max(1, toX(track.ends[index]) - x), height);
    }
  } else {
    const perColumn = (view.to - view.from) / view.width, fractions = new Float32Array(256);
    const shownLabels = recording.classes.map(({ label }) => label).filter((label) => label && isVisible(label));
    for (let x = 0; x < view.width; x++) {
      labelFractions(track, view.from + x * perColumn, view.from + (x + 1) * perColumn, minConfidence, fractions);
      let y = top + height;
      for (const label of shownLabels) {
        const part = fractions[label] * height;
        if (part) add(label, x, (y -= part), 1, part);
      }
    }
  }
  ctx.globalAlpha = view.opacity;
  for (const [label, path] of paths) {
    ctx.fillStyle = toColor(label);
    ctx.fill(path);
  }
  ctx.globalAlpha = 1;
}

const rgba = (label) => new Uint8Array(table.buffer, 4 * label, 4);
const isVisible = (label) => rgba(label)[3] > 0;
function toColor(label) {
  const [red, green, blue, alpha] = rgba(label);
  return `rgb(${red} ${green} ${blue} / ${alpha / 255})`;
}

function drawTrace(trace, top) {
  const [low, high] = trace.range, height = rowHeight(), middle = (low + high) / 2, perColumn = (view.to - view.from) / view.width;
  const toY = (value) => top + height / 2 - ((value - middle) / (high - low)) * height * view.gain;
  ctx.beginPath();
  let drawing = false; // whether the line continues: it does not over missing samples
  const lineTo = (x, value) => {
    if (Number.isNaN(value)) return void (drawing = false);
    if (drawing) ctx.lineTo(x, toY(value));
    else ctx.moveTo(x, toY(value));
    drawing = true;
  };
  if (perColumn > 2) {
    for (let x = 0, before = NaN; x < view.width; x++) {
      const [least, most] = extent(trace, view.from + x * perColumn, view.from + (x + 1) * perColumn);
      const upward = Math.abs(least - before) <= Math.abs(most - before) || Number.isNaN(before); // the nearer end first
      lineTo(x + 0.5, upward ? least : most);
      lineTo(x + 0.5, (before = upward ? most : least));
    }
  } else {
    const first = Math.max(0, Math.floor(view.from) - 1), last = Math.min(recording.length - 1, Math.ceil(view.to) + 1);
    for (let step = first; step <= last; step++) lineTo(toX(step + 0.5), trace.samples[step]);
  }
  ctx.lineJoin = "round";
  ctx.lineWidth = 1.2;
  ctx.strokeStyle = ctx.fillStyle = view.colors.text;
  ctx.stroke();
  if (1 / perColumn >= POINTS_FROM)
    for (let step = Math.max(0, Math.floor(view.from)); step < Math.min(recording.length, view.to); step++)
      if (!Number.isNaN(trace.samples[step])) ctx.fillRect(toX(step + 0.5) - 1.5, toY(trace.samples[step]) - 1.5, 3, 3);
  ctx.font = "600 12px system-ui, sans-serif";
  ctx.lineWidth = 3;
  ctx.strokeStyle = view.colors.background; // so that the name can be read over the trace
  ctx.strokeText(trace.name, 6, top + 14);
  ctx.fillText(trace.name, 6, top + 14);
}

function drawAxis() {
  const { width, height, colors, from, to } = view, rate = recording.rate;
  const seconds = (to - from) / rate, least = (seconds / width) * TICK_GAP;
  const decade = 10 ** Math.floor(Math.log10(least));
  const step = least < 1 ? decade * [1, 2, 5, 10].find((each) => each * decade >= least) : TICK_STEPS.find((each) => each >= least) ?? Math.ceil(least / 86400) * 86400;
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)), bottom = height - AXIS_HEIGHT;
  ctx.font = "12px system-ui, sans-serif";
  ctx.fillStyle = colors.muted;
  ctx.strokeStyle = colors.line;
  ctx.lineWidth = 1;
  ctx.beginPath();
  for (let tick = Math.ceil(from / rate / step); tick * step <= to / rate; tick++) {
    const x = Math.round(toX(tick * step * rate)) + 0.5, text = formatTime(tick * step * rate, digits);
    ctx.moveTo(x, 0);
    ctx.lineTo(x, bottom + 4);
    if (x + ctx.measureText(text).width + 3 < width) ctx.fillText(text, x + 3, height - 6);
  }
  for (let row = 1; row <= view.leads.length; row++) {
    const y = Math.round(row * rowHeight()) - 0.5;
    ctx.moveTo(0, y);
    ctx.lineTo(width, y);
  }
  ctx.stroke();
  if (to - from < recording.length) { // where in the recording the view is
    ctx.fillStyle = colors.accent;
    ctx.fillRect((Math.max(0, from) / recording.length) * width, height - 3, Math.max(4, (Math.min(to, recording.length) - Math.max(0, from)) / recording.length * width), 3);
  }
}

// Since the start of the recording, or the time of day if it is known.
function formatTime(step, digits) {
  const begin = Date.parse(recording.start + (/[zZ]|[+-]\d\d:?\d\d$/.test(recording.start) ? "" : "Z")), seconds = step / recording.rate;
  if (Number.isFinite(begin)) return new Date(begin + seconds * 1000).toISOString().slice(11, digits ? 20 + Math.min(3, digits) : 19);
  if (recording.length / recording.rate < 120) return `${seconds.toFixed(digits)} s`;
  const whole = Math.floor(seconds + 1e-9), pad = (number) => String(number).padStart(2, "0");
  const fraction = digits ? (seconds - whole).toFixed(digits).slice(1) : "";
  return `${Math.floor(whole / 3600)}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}${fraction}`;
}

onmessage = async ({ data }) => {
  try {
    await handlers[data.type](data);
  } catch (error) {
    post("problem", { number: shown.number, problem: networkProblem(error) });
  }
};
