// The panel "Look inside": certainty of the image on the screen, and what the class of a clicked pixel depends on.

import { createElement, formatPercent } from "./legend.js";
import { parseProblem } from "./segment_api.js";

const TITLES = { prediction: "prediction", confidence: "confidence", entropy: "entropy", margin: "margin", spread: "spread under flips and scales", occlusion: "occlusion" };

// panel: the <details>; request() -> {file, baseUrl, model, apiKey} or null while there is no image.
export class ExplainPanel {
  constructor(panel, request) {
    this.panel = panel;
    this.request = request;
    this.file = null; // the image that the views are of
    panel.ontoggle = () => panel.open && this.update();
  }

  // A new image: its views are fetched when the panel is open.
  update() {
    const request = this.request();
    if (!this.panel.open || !request || request.file === this.file) return;
    this.file = request.file;
    this.images = createElement("div", { className: "explain-images" });
    this.text = createElement("p", { className: "small", role: "status" });
    this.panel.querySelector("div").replaceChildren(this.images, this.text);
    this.load({ view: "certainty" });
  }

  async load(params) {
    const request = this.request();
    this.text.textContent = "Looking …";
    const url = new URL("v1/explain", request.baseUrl);
    url.search = new URLSearchParams({ model: request.model, ...params });
    const headers = { "Content-Type": "application/octet-stream", ...(request.apiKey ? { Authorization: `Bearer ${request.apiKey}` } : {}) };
    try {
      const response = await fetch(url, { method: "POST", body: request.file, headers });
      if (request.file !== this.file) return; // another image was opened meanwhile
      if (!response.ok) return void (this.text.textContent = (await parseProblem(response)).detail);
      await this.show(await response.json());
    } catch {
      this.text.textContent = "No response from the service.";
    }
  }

  async show({ view, numbers, images }) {
    for (const [name, png] of Object.entries(images)) await this.draw(name, png);
    this.text.textContent = view === "certainty"
      ? `Mean confidence ${formatPercent(numbers.confidence)}; ${formatPercent(numbers.tta_changed)} of the pixels have another label when the image is flipped or scaled. Click an image to see what the class of a pixel depends on.`
      : `${numbers.class} (${formatPercent(numbers.probability)}), then ${numbers.runner_up} (${formatPercent(numbers.runner_up_probability)}). Red: hiding this part lowers the probability.`;
  }

  async draw(name, png) {
    const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const canvas = createElement("canvas", { width: bitmap.width, height: bitmap.height, role: "img", ariaLabel: TITLES[name] ?? name });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    canvas.onclick = ({ offsetX, offsetY }) => {
      const [x, y] = [offsetX / canvas.clientWidth, offsetY / canvas.clientHeight];
      const size = this.request().size;
      this.load({ view: "occlusion", at: [x * size.width, y * size.height].map((each) => Math.floor(each)).join(",") });
    };
    const figure = createElement("figure", { className: `explain-${name}` }, [canvas, createElement("figcaption", { textContent: TITLES[name] ?? name })]);
    this.images.querySelector(`.explain-${name}`)?.remove();
    this.images.append(figure);
  }
}
