"use strict";

// The opacity of all masks.
const slider = document.getElementById("opacity");
if (slider) {
  const shown = document.getElementById("opacity-shown");
  const apply = () => {
    document.documentElement.style.setProperty("--opacity", slider.value / 100);
    shown.textContent = slider.value + "%";
  };
  slider.addEventListener("input", apply);
  apply();
}

// A click on an image of the gallery enlarges it, a click anywhere closes it.
const dialog = document.getElementById("enlarged");
if (dialog) {
  for (const pane of document.querySelectorAll("button.pane")) {
    pane.addEventListener("click", () => {
      const photo = getComputedStyle(pane).getPropertyValue("--photo");
      dialog.style.setProperty("--photo", photo);
      dialog.style.setProperty("--ratio", pane.style.aspectRatio);
      dialog.replaceChildren(pane.cloneNode(true));
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", () => dialog.close());
}

// A click on a column's head sorts by it, a second click reverses the order; absent values stay at the bottom.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const descending = head.getAttribute("aria-sort") !== "descending";
    const sign = descending ? -1 : 1;
    const value = (row) => row.cells[head.cellIndex].dataset.value;
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    });
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...rows);
  });
}

// The hint above a table or matrix is shown where it is wider than the screen.
const hints = [...document.querySelectorAll(".scroll-hint")];
const showHints = () => {
  for (const hint of hints) {
    const box = hint.nextElementSibling;
    hint.hidden = box.scrollWidth <= box.clientWidth;
  }
};
addEventListener("resize", showHints);
showHints();

// The text of a cell of the confusion matrix, also on touch screens, where nothing hovers.
const heat = document.querySelector(".heat");
if (heat) {
  const output = document.getElementById("cell");
  const show = (event) => {
    const title = event.target.closest("rect")?.querySelector("title");
    if (title) output.textContent = title.textContent;
  };
  heat.addEventListener("pointerover", show);
  heat.addEventListener("click", show);
}
