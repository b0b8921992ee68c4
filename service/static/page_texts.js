// Changes texts of the page to those of a kind of model, or back.

// texts: by selector; saved: an object that keeps the page's own
export function exchangeTexts(active, texts, saved) {
  for (const [selector, text] of Object.entries(texts)) {
    const element = document.querySelector(selector);
    saved[selector] ??= element.textContent;
    element.textContent = active ? text : saved[selector];
  }
}
