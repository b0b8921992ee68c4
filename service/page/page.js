// The page: a picture comes in, its classes are shown. What takes long is done by worker.js.

import * as camera from "./camera.js";
import { element, Legend, percent } from "./legend.js";
import { advice, here, key, models, passes, retryable } from "./service.js";
import { Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const tell = (name, more = {}, given = []) => worker.postMessage({ do: name, ...more }, given);

const stage = new Stage({ view: $("view"), canvas: $("canvas"), split: $("split"), readout: $("readout") }, tell);
const legend = new Legend($("legend"), (table) => tell("colour", { table, least: Math.round($("sure").value * 2.55) }));

let served = []; // the models, as /v1/models tells them
let sent = null; // {number, file}: the picture that is asked about, or was last
let shown = null; // {facts, file}: what the legend and the downloads are of
let lacking = { title: "No model is there yet", detail: "The picture waits until the service has told which it has." };
let told = null; // the problem that is on the screen
let clock = null; // the timer of what is under way or waited for

// Pictures come in

const ways = () =>
  ["choose", "photograph"].map((name) => document.querySelector(`#again .${name}`).cloneNode(true));
$("empty").querySelector(".ways").append(...ways());
for (const button of document.querySelectorAll(".choose")) button.onclick = () => $("file").click();
for (const button of document.querySelectorAll(".photograph")) {
  button.hidden = !camera.possible;
  button.onclick = () => camera.photograph($("camera"), $("shot"), take, (detail) => problem({ title: "No photo", detail }));
}
for (const field of [$("file"), $("shot")])
  field.onchange = () => {
    take(field.files[0]);
    field.value = ""; // the same file may be chosen again
  };

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  brought(event.dataTransfer);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length || !event.target.closest?.("input")) brought(event.clipboardData);
});

function brought({ files }) {
  if (files.length) take(files[0]);
  else problem({ title: "No picture came", detail: "What was brought is text or an address, and nothing is fetched from one: bring the picture's file." });
}

// Ask, wait, show

function take(file) {
  if (!file) return;
  const number = (sent?.number ?? 0) + 1;
  sent = { number, file };
  open();
  tell("show", { number, file });
  ask();
}

function open() {
  $("empty").hidden = true;
  $("view").hidden = $("again").hidden = false;
}

function ask() {
  const model = $("model").value;
  if (!model) return problem(lacking); // the picture is kept, and asked about once there is a model
  working("Labelling");
  tell("label", { ...sent, at: here, model, key: key.get() });
}

function working(what) {
  say();
  const began = performance.now();
  const tick = () => {
    const seconds = Math.floor((performance.now() - began) / 1000);
    $("waiting").textContent = seconds < 2 ? `${what} …` : `${what} … ${seconds} s`;
  };
  idle();
  tick();
  clock = setInterval(tick, 500);
  $("working").hidden = false;
}

function idle() {
  clearInterval(clock);
  $("working").hidden = true;
}

const heard = {
  show({ number, width, height }) {
    if (number !== sent.number) return;
    shown = null;
    $("result").hidden = true;
    stage.show({ width, height }, number);
    $("about").open = false;
  },
  answer({ number, facts, model, stages, trip }) {
    if (number !== sent.number) return;
    idle();
    if (!stage.has(facts, number)) stage.show(facts, number); // the browser read it otherwise than the service, or not at all
    shown = { facts, file: sent.file };
    legend.show(facts);
    $("summary").textContent = facts.classes.length
      ? `In the picture: ${legend.classes.map(({ name, share }) => `${name} ${percent(share)}`).join(", ")}.`
      : "No class is in the picture.";
    say(element("p", { className: "done", textContent: `Labelled in ${spent(trip)}.` }));
    timing(stages, trip);
    $("result").hidden = false;
    if (!served.some((each) => model?.endsWith(each.hash.slice(0, 12)))) look(); // exchanged since
  },
  problem({ number, problem: met }) {
    if (number !== sent.number) return;
    idle();
    problem(met);
    if (met.status === 404) look(); // the model has gone
  },
  at({ x, y, label, confidence }) {
    const found = shown?.facts.classes.find((entry) => entry.label === label);
    stage.read({ x, y }, `${found?.name ?? "no class"} · ${percent(confidence)} sure`, found?.rgb ?? [128, 128, 128]);
  },
  save({ what, blob }) {
    const ending = { mask: "mask.png", overlay: "overlay.jpg", json: "json" }[what];
    const link = element("a", { href: URL.createObjectURL(blob), download: `${stem(shown.file.name)}.${ending}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  },
};
worker.onmessage = ({ data }) => heard[data.did](data);
worker.onerror = () => problem({ title: "This browser is too old", detail: "The page needs Chrome 110, Firefox 115, Safari 16.4 or later." });

function say(...parts) {
  told = null;
  $("status").replaceChildren(...parts);
}

// A problem leaves what is on the screen as it is.
function problem(met) {
  const asked = met.status !== undefined && sent;
  const locked = met.status === 401;
  const detail = locked && !key.get() ? "Whoever runs the service gives you one." : met.detail;
  const parts = [element("h2", { textContent: met.title }), element("p", { textContent: detail })];
  if (asked) parts.unshift(element("p", { className: "small", textContent: sent.file.name }));
  const advised = met.status === undefined ? "" : advice(met);
  if (advised) parts.push(element("p", { textContent: advised }));
  const buttons = element("p", { className: "ways" });
  $("change-key").hidden &&= !locked;
  if (locked) buttons.append(button("Enter a key", () => askForKey(detail)));
  else if (asked && retryable(met)) buttons.append(button("Try again", ask));
  parts.push(buttons);
  if (met.request) parts.push(element("p", { className: "small", textContent: `Request ${met.request}` }));
  say(element("div", { className: "problem" }, parts));
  told = met;
  if (locked) askForKey(detail);
  else if (asked && passes(met)) wait(met.after ?? 2, ask, buttons);
}

function wait(seconds, then, place) {
  idle();
  const left = element("span", { className: "small" });
  const tick = () => (left.textContent = `Asked again in ${seconds} s.`);
  tick();
  place.append(left, button("Stop", () => (clearInterval(clock), left.nextSibling.remove(), left.remove())));
  clock = setInterval(() => {
    if (--seconds > 0) return tick();
    clearInterval(clock);
    then();
  }, 1000);
}

function timing(stages, trip) {
  const inside = stages.reduce((sum, [, ms]) => sum + ms, 0);
  const all = [...stages, ["transfer", Math.max(0, trip - inside)]];
  const bar = element("div", { className: "stages", ariaHidden: "true" }, all.map(([, ms]) => {
    const part = element("span");
    part.style.flexGrow = ms;
    return part;
  }));
  const words = all.map(([name, ms]) => element("span", { textContent: `${name} ${spent(ms)}` }));
  $("timing").replaceChildren(bar, element("p", { className: "small words" }, words));
}

// Controls

const set = (field, then) => {
  field.oninput = () => {
    $(`${field.id}-told`).textContent = `${field.value}%`;
    then();
  };
};
set($("opacity"), () => {
  stage.opacity = $("opacity").value / 100;
  stage.look();
});
set($("sure"), () => shown && legend.tell());
$("compare").onchange = () => {
  $("split").hidden = !$("compare").checked;
  stage.look();
};
$("larger").onclick = () => stage.zoom(1.5);
$("smaller").onclick = () => stage.zoom(1 / 1.5);
$("fit").onclick = () => stage.fit();
for (const each of document.querySelectorAll(".save"))
  each.onclick = () => tell("save", { what: each.dataset.what, opacity: stage.opacity });

// The models, and the key

async function look() {
  const found = await models();
  if (found.problem) {
    problem((lacking = found.problem));
    if (found.problem.status !== 401) setTimeout(look, 1000 * (found.problem.after ?? 5));
    return;
  }
  const first = served.length === 0;
  served = found.models;
  const chosen = $("model").value;
  $("model").replaceChildren(...served.map(({ name }) => element("option", { value: name, textContent: name })));
  if (served.some(({ name }) => name === chosen)) $("model").value = chosen;
  $("model").parentElement.hidden = served.length < 2;
  $("only-model").textContent = served.length === 1 ? served[0].name : "";
  $("change-key").hidden &&= !key.get();
  about();
  if (!first) return;
  if (told === lacking) say();
  if (sent) ask();
}

$("model").onchange = () => {
  about();
  if (sent) ask();
};

function about() {
  const model = served.find(({ name }) => name === $("model").value);
  if (!model) return;
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
    Runs: `${model.engine} on ${model.device} in ${model.precision}: ${model.why}`,
  };
  const rows = Object.entries(facts).filter(([, value]) => value);
  $("about").querySelector("dl").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]),
  );
  $("about").hidden = false;
}

function askForKey(why) {
  const dialog = $("key-asked");
  $("key-why").textContent = why;
  $("key").value = "";
  if (!dialog.open) dialog.showModal();
}
$("change-key").onclick = () => askForKey("Another key may be used in its place.");
$("key-asked").querySelector(".cancel").onclick = () => $("key-asked").close();
$("key-asked").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key-asked").close();
  say();
  if (served.length && sent) ask();
  else look();
};

const button = (textContent, onclick) => element("button", { type: "button", textContent, onclick });
const spent = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const stem = (name) => name.replace(/\.[^.]*$/, "") || "picture";

look();
