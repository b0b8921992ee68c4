// The web page: opens images, has worker.js segment them and shows the results.

import { advice, apiKey, baseUrl, fetchModels, isImageError, isRetryable, isTransient } from "./api_client.js";
import * as camera from "./camera.js";
import { showExamples } from "./examples.js";
import { createButton, createElement, formatPercent, Legend } from "./legend.js";
import { formatDuration, renderModelInfo, renderTiming } from "./model_info.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
// -> post(type, data, transfer), which sends the worker a message
const startWorker = (address) => {
  const worker = new Worker(new URL(address, import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => preserveFocus(() => handlers[data.type](data));
  worker.onerror = ({ message }) =>
    showProblem(message
      ? { title: "The file cannot be drawn", detail: message }
      : { title: "Unsupported browser", detail: "Use Chrome 110, Firefox 115, Safari 16.4 or later." });
  return (type, data = {}, transfer = []) => worker.postMessage({ type, ...data }, transfer);
};
const post = (type, data) => viewer.post(type, data);

const imageViewer = new Viewer({ view: $("view"), canvas: $("canvas"), split: $("split"), readout: $("readout") }, startWorker("worker.js"));
// A model of signals or volumes has a viewer and a worker of its own, which are loaded when one is first chosen.
const loadViewer = {
  T: async () => (await import("./signal_viewer.js")).SignalViewer,
  DHW: async () => (await import("./volume_viewer.js")).VolumeViewer,
};
const viewers = { HW: imageViewer }; // by the axes of the model
let viewer = imageViewer;
const legend = new Legend($("legend"), (table) => {
  post("overlay", { table, minConfidence: Math.round($("min-confidence").value * 2.55) });
  codePanel?.update();
});
const codeSettings = () => ({
  address: baseUrl,
  needsKey: Boolean(apiKey.get()),
  file: shown?.name || "image.jpg",
  model: models.length > 1 ? $("model").value : "",
  classes: chosenClasses(),
  minConfidence: $("min-confidence").value / 100,
  axes: currentModel()?.spec.input.axes ?? "HW",
});
let codePanel = null;
$("code").ontoggle = async () => {
  codePanel ??= new (await import("./code.js")).CodePanel($("code"), codeSettings);
  codePanel.update();
};

let explainPanel = null;
const explainRequest = () => shown?.file && { file: shown.file, size: shown.size, baseUrl, model: $("model").value, apiKey: apiKey.get() };

let models = []; // as returned by /v1/models
let imageCount = 0;
let bands = ""; // names of the channels to show, once some were chosen
let requestedFile = null; // the file of `requested`
let requested = null; // {number, name}: the image of the current or last request
let shown = null; // {number, name, stats}: the image on the screen, stats null until it is segmented
let modelsProblem = { title: "No models loaded yet", detail: "Your image is sent once the models are loaded." };
let shownProblem = null;
let modelsTimer = null; // of the next attempt to list the models
let progressTimer = null; // of the current request or retry

// Image input

const createActions = () =>
  ["choose", "photograph"].map((name) => document.querySelector(`#choose-again .${name}`).cloneNode(true));
$("empty").querySelector(".actions").append(...createActions());
for (const button of document.querySelectorAll(".choose")) button.onclick = () => $("file").click();
for (const button of document.querySelectorAll(".photograph")) {
  button.hidden = !camera.isAvailable;
  button.onclick = () =>
    camera.takePhoto($("camera"), $("photo-file"), openImage, (detail) => showProblem({ title: "No photo taken", detail }));
}
for (const field of [$("file"), $("photo-file")])
  field.onchange = () => {
    openFiles([...field.files]);
    field.value = ""; // so that choosing the same file again fires `change`
  };

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("drag-over");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("drag-over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("drag-over");
  openTransfer(event.dataTransfer);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length || !event.target.closest?.("input")) openTransfer(event.clipboardData);
});

function openTransfer({ files }) {
  if (files.length) openFiles([...files]);
  else showProblem({ title: "No image file found", detail: "The page cannot open text or URLs. Drop or paste an image file." });
}

// A recording or a volume may be several files, which are sent as one.
const openFiles = async (files) => openImage(await (viewer.pack?.(files) ?? files[0]));

// Requests and results

function openImage(file) {
  if (!file) return;
  requested = { number: ++imageCount, name: file.name };
  requestedFile = file;
  post("show", { ...requested, file });
  segmentImage();
}

function segmentImage() {
  if (!$("model").value) return showProblem(modelsProblem, requested.name); // refreshModels() sends it later
  showStatus(paragraph(`Segmenting ${requested.name} …`, "info"));
  $("stop").hidden = true;
  sendRequest();
}

function sendRequest() {
  showProgress((seconds) => (seconds < 2 ? "Segmenting …" : `Segmenting … ${seconds} s`));
  post("segment", { ...requested, baseUrl, model: $("model").value, apiKey: apiKey.get(), bands, classes: currentModel()?.spec.classes });
}

// format(elapsed seconds) -> text; onEnd() is called after `duration` seconds.
function showProgress(format, duration = Infinity, onEnd = null) {
  clearInterval(progressTimer);
  const start = performance.now();
  const tick = () => {
    const seconds = Math.floor((performance.now() - start) / 1000);
    if (seconds >= duration) return onEnd();
    $("progress-text").textContent = format(seconds);
    $("stop").hidden &&= seconds < 2;
  };
  progressTimer = setInterval(tick, 500);
  tick();
  $("working").hidden = false;
}

// Its script exists only where the service explains.
async function updateExplainPanel() {
  if ($("explain").hidden) return;
  explainPanel ??= new (await import("./explain.js")).ExplainPanel($("explain"), explainRequest);
  explainPanel.update();
}

function scheduleRetry(seconds) {
  $("stop").hidden = false;
  showProgress((elapsed) => `Retrying in ${seconds - elapsed} s`, seconds, sendRequest);
}

$("stop").onclick = () => {
  post("stop");
  hideProgress();
  showProblem({ title: "Stopped", detail: "The request was canceled. Your image is still here." }, requested.name, "Try again");
};

function hideProgress() {
  clearInterval(progressTimer);
  $("working").hidden = true;
}

const handlers = {
  // Not always the newest image: an unreadable one leaves the previous image on the screen.
  show({ number, name, width, height, ...rest }) {
    shown = { number, name, stats: null, file: number === requested?.number ? requestedFile : null, size: { width, height } };
    $("empty").hidden = $("result").hidden = true;
    viewer.view.hidden = $("choose-again").hidden = false;
    viewer.show({ width, height, ...rest });
    $("model-info").open = false;
  },
  result({ number, stats, model, stages, totalMs }) {
    if (number !== shown?.number) return;
    shown.stats = stats;
    legend.show(stats);
    $("summary").textContent = stats.classes.length
      ? `Classes found: ${legend.classes.map(({ name, fraction, amount }) => `${name} ${amount ?? formatPercent(fraction)}`).join(", ")}.`
      : "No classes found.";
    $("result-source").textContent = [shown.name, model?.split("@")[0]].filter(Boolean).join(", model ");
    renderTiming($("timing"), stages, totalMs);
    $("result").hidden = false;
    $("explain").hidden = !currentModel()?.explain;
    updateExplainPanel();
    codePanel?.update();
    if (number !== requested?.number) return; // a newer request is running
    hideProgress();
    showStatus(paragraph(`Segmented in ${formatDuration(totalMs)}.`, "info"));
    if (!models.some((each) => model?.endsWith(each.hash.slice(0, 12)))) refreshModels(); // the bundle was reloaded
  },
  async problem({ number, problem }) {
    if (number !== requested?.number) return;
    if (!isTransient(problem)) hideProgress();
    const modelGone = problem.status === 404; // refreshModels() selects a model that is still served
    if (modelGone && !((await refreshModels()) && number === requested?.number)) return;
    showProblem(problem, requested.name, modelGone ? `Retry with ${$("model").value}` : isRetryable(problem) ? "Try again" : "");
    if (isTransient(problem)) scheduleRetry(problem.retryAfter ?? 2);
    if (isImageError(problem)) requested = shown; // the next model segments the image on the screen
  },
  readout(place) {
    const { label, confidence } = place;
    const found = shown?.stats?.classes.find((entry) => entry.label === label);
    const name = createElement("bdi", { textContent: found?.name ?? "unlabeled" });
    const content = confidence === undefined ? [name] : [name, ` · ${formatPercent(confidence)} confidence`];
    viewer.showReadout(place, content, found?.rgb ?? [128, 128, 128]);
  },
  save({ what, blob }) {
    const suffix = { mask: "mask.png", overlay: "overlay.jpg", json: "json", csv: "csv", nifti: "labels.nii.gz" }[what];
    const link = createElement("a", { href: URL.createObjectURL(blob), download: `${stem(shown.name)}.${suffix}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  },
};

// When the focused element disappears, focus the status or the view instead of the start of the page.
function preserveFocus(change) {
  const before = document.activeElement;
  change();
  const after = document.activeElement;
  if (before !== document.body && (after === document.body || !after.getClientRects().length)) (shownProblem || !shown ? $("status") : viewer.view).focus();
}

function showStatus(content = "", problem = null) {
  shownProblem = problem;
  preserveFocus(() => $("status").replaceChildren(content));
}

// Leaves the image on the screen. name: of the file; retryLabel: text of the retry button, "" for none.
function showProblem(problem, name = "", retryLabel = "") {
  const unauthorized = problem.status === 401;
  const detail = unauthorized && !apiKey.get() ? "Ask the operator of the service for an API key and enter it." : problem.detail;
  $("change-key").hidden &&= !unauthorized;
  if (unauthorized) openKeyDialog(detail);
  if (shownProblem?.title === problem.title && shownProblem.detail === problem.detail)
    return void (shownProblem = problem); // announced only once
  const parts = [createElement("h2", { textContent: problem.title }), paragraph(detail)];
  if (name) parts.unshift(paragraph(name, "small"));
  const hint = problem.advice ?? advice(problem);
  if (hint) parts.push(paragraph(hint));
  if (unauthorized) parts.push(createButton("Enter API key", () => openKeyDialog(detail)));
  else if (retryLabel) parts.push(createButton(retryLabel, segmentImage));
  if (problem.requestId) parts.push(paragraph(`Request ${problem.requestId}`, "small"));
  showStatus(createElement("div", { className: "problem" }, parts), problem);
}

// Controls

const bindSlider = (field, onChange) => {
  field.oninput = () => {
    $(`${field.id}-value`).textContent = `${field.value}%`;
    onChange();
  };
};
bindSlider($("opacity"), () => {
  viewer.opacity = $("opacity").value / 100;
  viewer.sendView();
});
$("smooth").onchange = () => {
  viewer.smooth = $("smooth").checked;
  viewer.sendView();
};
bindSlider($("min-confidence"), () => shown?.stats && legend.notifyChange());
$("compare").onchange = () => {
  $("split").hidden = !$("compare").checked;
  viewer.sendView();
};
$("zoom-in").onclick = () => viewer.zoom(1.5);
$("zoom-out").onclick = () => viewer.zoom(1 / 1.5);
$("fit").onclick = () => viewer.fit();
for (const each of document.querySelectorAll(".save"))
  each.onclick = () => post("save", { what: each.dataset.what, opacity: viewer.opacity });

// Models and API key

// Lists the models again -> whether that succeeded.
async function refreshModels() {
  const response = await fetchModels();
  clearTimeout(modelsTimer);
  if (response.problem) {
    modelsProblem = { ...response.problem, advice: response.problem.status === 401 ? "" : "The page retries automatically." };
    showProblem(modelsProblem);
    if (modelsProblem.status !== 401) modelsTimer = setTimeout(refreshModels, 1000 * (modelsProblem.retryAfter ?? 5));
    return false;
  }
  const first = models.length === 0;
  models = response.models;
  const selected = $("model").value;
  $("model").replaceChildren(...models.map(({ name }) => createElement("option", { value: name, textContent: name })));
  if (models.some(({ name }) => name === selected)) $("model").value = selected;
  $("model").parentElement.hidden = models.length < 2;
  $("only-model").textContent = models.length === 1 ? models[0].name : "";
  $("change-key").hidden &&= !apiKey.get();
  await updateModelInfo();
  const imageWaiting = first || shownProblem === modelsProblem;
  if (shownProblem === modelsProblem) showStatus();
  if (imageWaiting && requested && !(requested.number === shown?.number && shown.stats)) segmentImage();
  return true;
}

$("model").onchange = async () => {
  await updateModelInfo();
  if (requested) segmentImage();
};

const currentModel = () => models.find(({ name }) => name === $("model").value);

async function updateModelInfo() {
  const model = currentModel();
  if (!model) return;
  renderModelInfo($("model-info"), model);
  showExamples($("examples"), model, openImage);
  codePanel?.update();
  const { axes, channels } = model.spec.input;
  bands = "";
  $("bands").hidden = axes !== "HW" || !channels[1] || channels.join().toLowerCase() === "red,green,blue";
  if (!$("bands").hidden)
    (await import("./bands.js")).offerBands($("bands"), channels, (names) => {
      bands = names;
      if (requested) segmentImage();
    });
  if (!viewers[axes]) {
    const AxesViewer = await loadViewer[axes]();
    viewers[axes] ??= new AxesViewer($("view").parentElement, $("result"), startWorker(AxesViewer.worker));
  }
  if (viewer === viewers[axes] || model !== currentModel()) return;
  viewer.activate?.(false);
  viewer = viewers[axes];
  viewer.opacity = $("opacity").value / 100;
  viewer.activate?.(true);
  $("result").hidden = imageViewer.view.hidden = true;
  if (requestedFile) post("show", { ...requested, file: requestedFile });
}

// The names of the classes to keep once one of them was hidden or shown; otherwise none: all are kept.
function chosenClasses() {
  const names = currentModel()?.spec.classes.map(({ name }) => name) ?? [];
  return names.some((name) => legend.choices.get(name) === false) ? names.filter((name) => legend.isShown(name)) : [];
}

function openKeyDialog(message) {
  const dialog = $("key-dialog");
  $("key-message").textContent = message;
  if (dialog.open) return; // keep what the user has typed
  $("key").value = "";
  dialog.showModal();
}
$("change-key").onclick = () => openKeyDialog("Enter a key to replace the current one.");
$("key-dialog").querySelector(".cancel").onclick = () => $("key-dialog").close();
$("key-dialog").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[!-~]+$/.test(key)) return void ($("key-message").textContent = "The key contains a space or a non-ASCII character. Enter it again.");
  apiKey.set(key);
  $("key-dialog").close();
  showStatus();
  if (models.length && requested) segmentImage();
  else refreshModels();
};

const paragraph = (textContent, className = "") => createElement("p", { className, textContent });
const stem = (name) => name.replace(/(\.nii)?\.[^.]*$/, "") || "image";

refreshModels();
