"use strict";

// The masks' opacity, of all pictures at once.
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

// A click on a column's head sorts by it, a second one the other way round; what is absent stays below.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const falls = head.getAttribute("aria-sort") !== "descending";
    const sign = falls ? -1 : 1;
    const value = (row) => row.cells[head.cellIndex].dataset.value;
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    });
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    body.append(...rows);
  });
}

// What a cell of the confusion matrix says, also where a finger cannot hover.
const heat = document.querySelector(".heat");
if (heat) {
  const told = document.getElementById("cell");
  const tell = (event) => {
    const title = event.target.closest("rect")?.querySelector("title");
    if (title) told.textContent = title.textContent;
  };
  heat.addEventListener("pointerover", tell);
  heat.addEventListener("click", tell);
}
