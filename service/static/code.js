// Shows how to make the same request by curl or in Python, with the settings of the page.

const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const pythonQuote = JSON.stringify; // a string of JSON is one of Python
const OUTPUTS = { HW: "mask.png", T: "events.json", DHW: "labels.nii.gz" }; // by axes: the file that curl writes

const writers = {
  curl({ address, needsKey, file, model, classes, minConfidence, axes }) {
    const query = new URLSearchParams({ ...(model && { model }), ...(classes.length && { classes: classes.join(",") }), ...(minConfidence && { min_confidence: minConfidence }) });
    const url = `${address}v1/segment${query.size ? `?${query}` : ""}`;
    const lines = ["curl --fail-with-body", ...(needsKey ? ['-H "Authorization: Bearer $MASKSERVE_KEY"'] : []), `--data-binary ${shellQuote(`@${file}`)}`, shellQuote(url), `-o ${OUTPUTS[axes]}`];
    return lines.join(" \\\n  ");
  },
  python({ address, needsKey, file, model, classes, minConfidence, axes }) {
    const options = [
      model && `model=${pythonQuote(model)}`,
      classes.length && `classes=[${classes.map((name) => pythonQuote(name)).join(", ")}]`,
      minConfidence && `min_confidence=${minConfidence}`,
    ].filter(Boolean);
    const call = (method) => `client.${method}(${[pythonQuote(file), ...options].join(", ")})`;
    const body = {
      HW: [`mask = ${call("segment")}`, 'mask.save("mask.png")'],
      T: [`mask = ${call("segment")}`, "print(mask.events)"],
      DHW: [`mask = ${call("segment_volume")}`, 'mask.save("labels.nii.gz")'],
    }[axes];
    return [
      ...(needsKey ? ["import os", ""] : []),
      "from maskserve.client import Client", "",
      `with Client(${pythonQuote(address.replace(/\/$/, ""))}${needsKey ? ', api_key=os.environ["MASKSERVE_KEY"]' : ""}) as client:`,
      ...body.map((line) => `    ${line}`),
    ].join("\n");
  },
};

export class CodePanel {
  // container: <details> with buttons and a <pre>; getSettings() -> what the writers take
  constructor(container, getSettings) {
    this.container = container;
    this.getSettings = getSettings;
    this.language = "curl";
    const buttons = container.querySelectorAll("[data-language]");
    for (const button of buttons)
      button.onclick = () => {
        this.language = button.dataset.language;
        for (const each of buttons) each.ariaPressed = each === button;
        this.update();
      };
    const copy = container.querySelector("#copy");
    copy.hidden = !navigator.clipboard; // only on https and on this machine
    copy.onclick = async () => {
      await navigator.clipboard.writeText(this.text);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    };
    container.ontoggle = () => this.update();
  }

  update() {
    if (!this.container.open) return;
    this.text = writers[this.language](this.getSettings());
    this.container.querySelector("pre").textContent = this.text;
  }
}
