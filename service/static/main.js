// The page: a picture comes in, its classes are shown. What takes long is done by worker.js.

import * as camera from "./camera.js";
import { about, spent, timing } from "./model_info.js";
import { element, Legend, percent } from "./legend.js";
import { advice, here, key, models, ofPicture, passes, retryable } from "./api_client.js";
import { Stage } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const tell = (name, more = {}, given = []) => worker.postMessage({ do: name, ...more }, given);

const stage = new Stage({ view: $("view"), canvas: $("canvas"), split: $("split"), readout: $("readout") }, tell);
const legend = new Legend($("legend"), (table) => tell("colour", { table, least: Math.round($("sure").value * 2.55) }));

let served = []; // the models, as /v1/models tells them
let came = 0; // how many pictures
let sent = null; // {number, name}: the picture that is asked about, or was last
let shown = null; // {number, name, facts}: the one on the screen; facts are null until it is labelled
let lacking = { title: "No model is there yet", detail: "The picture waits until the service has told which it has." };
let told = null; // the problem that is on the screen
let later = null; // the timer of another look at the models
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
  sent = { number: ++came, name: file.name };
  tell("show", { ...sent, file });
  ask();
}

function ask() {
  if (!$("model").value) return problem(lacking, sent.name); // the picture is kept, and asked about once there is a model
  say(element("p", { className: "done", textContent: `Labelling ${sent.name} …` }));
  $("stop").hidden = true;
  send();
}

function send() {
  working((seconds) => (seconds < 2 ? "Labelling …" : `Labelling … ${seconds} s`));
  tell("label", { ...sent, at: here, model: $("model").value, key: key.get() });
}

// words(seconds since it began): what is said of what is under way or waited for; then(): what comes after `until` of them.
function working(words, until = Infinity, then = null) {
  clearInterval(clock);
  const began = performance.now();
  const tick = () => {
    const seconds = Math.floor((performance.now() - began) / 1000);
    if (seconds >= until) return then();
    $("waiting").textContent = words(seconds);
    $("stop").hidden &&= seconds < 2;
  };
  clock = setInterval(tick, 500);
  tick();
  $("working").hidden = false;
}

function again(seconds) {
  $("stop").hidden = false;
  working((gone) => `Asked again in ${seconds - gone} s`, seconds, send);
}

$("stop").onclick = () => {
  tell("stop");
  idle();
  problem({ title: "Stopped", detail: "Nothing is asked now. Your picture is still here." }, sent.name, "Try again");
};

function idle() {
  clearInterval(clock);
  $("working").hidden = true;
}

const heard = {
  // Not always the picture that came last: when that one is none, this one stays.
  show({ number, name, width, height }) {
    shown = { number, name, facts: null };
    $("empty").hidden = $("result").hidden = true;
    $("view").hidden = $("again").hidden = false;
    stage.show({ width, height });
    $("about").open = false;
  },
  answer({ number, facts, model, stages, trip }) {
    if (number !== shown?.number) return;
    shown.facts = facts;
    legend.show(facts);
    $("summary").textContent = facts.classes.length
      ? `In the picture: ${legend.classes.map(({ name, share }) => `${name} ${percent(share)}`).join(", ")}.`
      : "No class is in the picture.";
    $("of").textContent = [shown.name, model?.split("@")[0]].filter(Boolean).join(", by ");
    timing($("timing"), stages, trip);
    $("result").hidden = false;
    if (number !== sent?.number) return; // another is under way
    idle();
    say(element("p", { className: "done", textContent: `Labelled in ${spent(trip)}.` }));
    if (!served.some((each) => model?.endsWith(each.hash.slice(0, 12)))) look(); // exchanged since
  },
  async problem({ number, problem: met }) {
    if (number !== sent?.number) return;
    if (!passes(met)) idle();
    const gone = met.status === 404; // the model: the picker turns to one that is there
    if (gone && !((await look()) && number === sent?.number)) return;
    problem(met, sent.name, gone ? `Ask ${$("model").value}` : retryable(met) ? "Try again" : "");
    if (passes(met)) again(met.after ?? 2);
    if (ofPicture(met)) sent = shown; // what is on the screen is what another model is asked about
  },
  at({ x, y, label, confidence }) {
    const found = shown?.facts?.classes.find((entry) => entry.label === label);
    const name = element("bdi", { textContent: found?.name ?? "no class" });
    stage.read({ x, y }, [name, ` · ${percent(confidence)} sure`], found?.rgb ?? [128, 128, 128]);
  },
  save({ what, blob }) {
    const ending = { mask: "mask.png", overlay: "overlay.jpg", json: "json" }[what];
    const link = element("a", { href: URL.createObjectURL(blob), download: `${stem(shown.name)}.${ending}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  },
};
worker.onmessage = ({ data }) => keepFocus(() => heard[data.did](data));
worker.onerror = ({ message }) =>
  problem(message
    ? { title: "The picture cannot be drawn", detail: message }
    : { title: "This browser is too old", detail: "The page needs Chrome 110, Firefox 115, Safari 16.4 or later." });

// What has the focus may go: the focus then goes where things go on, not to the beginning of the page.
function keepFocus(change) {
  const had = document.activeElement;
  change();
  const now = document.activeElement;
  if (had !== document.body && (now === document.body || !now.getClientRects().length)) $(told || !shown ? "status" : "view").focus();
}

function say(part = "", met = null) {
  told = met;
  keepFocus(() => $("status").replaceChildren(part));
}

// A problem leaves what is on the screen as it is. name: of the file that it is about; does: what a button asks it again by.
function problem(met, name = "", does = "") {
  const locked = met.status === 401;
  const detail = locked && !key.get() ? "Whoever runs the service gives you one." : met.detail;
  $("change-key").hidden &&= !locked;
  if (locked) askForKey(detail);
  if (told?.title === met.title && told.detail === met.detail) return void (told = met); // nothing is said twice
  const small = (textContent) => element("p", { className: "small", textContent });
  const parts = [element("h2", { textContent: met.title }), element("p", { textContent: detail })];
  if (name) parts.unshift(small(name));
  const advised = met.advice ?? advice(met);
  if (advised) parts.push(element("p", { textContent: advised }));
  if (locked) parts.push(button("Enter a key", () => askForKey(detail)));
  else if (does) parts.push(button(does, ask));
  if (met.request) parts.push(small(`Request ${met.request}`));
  say(element("div", { className: "problem" }, parts), met);
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
set($("sure"), () => shown?.facts && legend.tell());
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

// Which models there are now; whether that was told.
async function look() {
  const found = await models();
  clearTimeout(later);
  if (found.problem) {
    problem((lacking = { ...found.problem, advice: found.problem.status === 401 ? "" : "It is asked again by itself." }));
    if (lacking.status !== 401) later = setTimeout(look, 1000 * (lacking.after ?? 5));
    return false;
  }
  const first = served.length === 0;
  served = found.models;
  const chosen = $("model").value;
  $("model").replaceChildren(...served.map(({ name }) => element("option", { value: name, textContent: name })));
  if (served.some(({ name }) => name === chosen)) $("model").value = chosen;
  $("model").parentElement.hidden = served.length < 2;
  $("only-model").textContent = served.length === 1 ? served[0].name : "";
  $("change-key").hidden &&= !key.get();
  describe();
  const waited = first || told === lacking;
  if (told === lacking) say();
  if (waited && sent && !(sent.number === shown?.number && shown.facts)) ask();
  return true;
}

$("model").onchange = () => {
  describe();
  if (sent) ask();
};

function describe() {
  const model = served.find(({ name }) => name === $("model").value);
  if (model) about($("about"), model);
}

function askForKey(why) {
  const dialog = $("key-asked");
  $("key-why").textContent = why;
  if (dialog.open) return; // what is typed stays
  $("key").value = "";
  dialog.showModal();
}
$("change-key").onclick = () => askForKey("Another key may be used in its place.");
$("key-asked").querySelector(".cancel").onclick = () => $("key-asked").close();
$("key-asked").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  const typed = $("key").value.trim();
  if (!/^[!-~]+$/.test(typed)) return void ($("key-why").textContent = "A key has only plain letters, digits and signs (ASCII), and no space.");
  key.set(typed);
  $("key-asked").close();
  say();
  if (served.length && sent) ask();
  else look();
};

const button = (textContent, onclick) => element("button", { type: "button", textContent, onclick });
const stem = (name) => name.replace(/\.[^.]*$/, "") || "picture";

look();
