// Everything that takes long happens here, so that the page answers at once: decoding, asking, colouring, drawing.
// What comes in is {do: name, ...}; what goes out is {did: name, ...}.

import { bare, label, Refused } from "./segment_api.js";
import * as paint from "./renderer.js";

const files = new Map(); // number -> promise of a Blob: of the picture on the screen, and of the one that came last
let newest = 0; // the number of the picture that came, or was asked about, last
let asking = null; // AbortController of the request that is under way
let shown = { number: 0, name: "", width: 0, height: 0 }; // the picture on the screen
let showing = null; // the promise that one will be, or cannot be
let mask = null; // {labels, confidence, width, height, number, png, json}

const tell = (did, more = {}, given = []) => postMessage({ did, ...more }, given);

const doors = {
  canvas: ({ canvas }) => paint.onto(canvas),
  look: ({ view }) => paint.look(view),
  colour: ({ table, least }) => mask && paint.colour(mask, table, least),
  stop: () => asking?.abort(),
  at: ({ x, y }) => {
    if (!mask || x < 0 || y < 0 || x >= mask.width || y >= mask.height) return;
    const place = y * mask.width + x;
    tell("at", { x, y, label: mask.labels[place], confidence: mask.confidence[place] / 255 });
  },

  show({ number, name, file }) {
    newest = number;
    asking?.abort();
    for (const old of files.keys()) if (old !== shown.number) files.delete(old);
    // Its bytes: a file on a disk may change, or go, before the picture is asked about again.
    const bytes = file.arrayBuffer().then((all) => new Blob([all]));
    files.set(number, bytes);
    showing = bytes.then((blob) => put({ number, name }, blob)).catch(() => {}); // the service may read it; if not, it says why
  },

  async label(asked) {
    const { number, name } = asked;
    newest = number;
    asking?.abort();
    const own = (asking = new AbortController());
    try {
      const file = await files.get(number).catch(unread);
      const answer = await label({ ...asked, file, signal: own.signal });
      const { width, height } = answer.facts;
      await showing;
      if (shown.number !== number || shown.width !== width || shown.height !== height) {
        await put({ number, name }, await bare({ ...asked, file, signal: own.signal }));
      }
      if (own.signal.aborted) return;
      mask = { width, height, number, labels: answer.labels, confidence: answer.confidence, png: answer.mask, json: answer.json };
      const { facts, model, stages, trip } = answer;
      tell("answer", { number, facts, model, stages, trip });
    } catch (error) {
      await showing; // the page has to know what is on the screen when it hears of a problem
      if (own.signal.aborted) return;
      tell("problem", { number, problem: error instanceof Refused ? error.problem : lost(error) });
    } finally {
      if (asking === own) asking = null;
    }
  },

  async save({ what, opacity }) {
    if (!mask) return;
    const blob = what === "overlay" ? await paint.composed(opacity) : what === "mask" ? mask.png : mask.json;
    tell("save", { what, blob });
  },
};

// A picture that the browser cannot read stays off the screen, and the one before on it.
async function put(picture, file) {
  const size = await paint.show(file, () => picture.number === newest);
  if (!size) return;
  mask = null;
  shown = { ...picture, ...size };
  tell("show", shown);
}

function unread() {
  const detail = "It may be a folder, or the file was changed or taken away; choose it again.";
  throw new Refused({ status: null, title: "The file cannot be read", detail });
}

// fetch has one error for all that can happen on the way, and says nothing of it.
function lost(error) {
  const read = error instanceof TypeError;
  return {
    status: 0,
    title: read ? "No answer came" : "The answer could not be read",
    detail: read
      ? "The service may be down, or the connection to it was lost. Your picture is still here."
      : `${error.message}. Your picture is still here.`,
  };
}

onmessage = async ({ data }) => {
  try {
    await doors[data.do](data);
  } catch (error) {
    tell("problem", { number: shown.number, problem: lost(error) });
  }
};
