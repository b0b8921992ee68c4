// Thumbnails of the images that a bundle holds, to try the model without an image.

import { apiKey, baseUrl } from "./api_client.js";
import { createButton, createElement } from "./legend.js";

const MAX_EXAMPLES = 4;
let current = ""; // hash of the model whose examples are shown

// model: an entry of /v1/models; onChoose(File)
export async function showExamples(container, model, onChoose) {
  if (model.hash === current) return;
  current = model.hash;
  const headers = apiKey.get() ? { Authorization: `Bearer ${apiKey.get()}` } : {};
  const names = model.examples.slice(0, MAX_EXAMPLES);
  const files = await Promise.all(names.map(async (name) => {
    const response = await fetch(new URL(`v1/examples/${encodeURIComponent(model.name)}/${name}`, baseUrl), { headers }).catch(() => null);
    return response?.ok ? new File([await response.blob()], name) : null;
  }));
  if (model.hash !== current) return;
  const buttons = files.filter(Boolean).map((file, index) => {
    const text = `Example ${index + 1}`, onclick = () => onChoose(file);
    if (!file.name.endsWith(".png")) return createButton(text, onclick);
    const image = createElement("img", { src: URL.createObjectURL(file), alt: text });
    image.onload = () => URL.revokeObjectURL(image.src);
    return createElement("button", { type: "button", onclick }, [image]);
  });
  container.replaceChildren(createElement("p", { textContent: "or try an example" }), ...buttons);
  container.hidden = !buttons.length;
}
