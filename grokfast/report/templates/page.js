"use strict";

const cells = (line) => [...line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g)]
  .map((found) => found[1] === undefined ? found[2] : found[1].replaceAll('""', '"'));
const data = (within) => within.closest("figure").querySelector("template.csv").content.textContent;

// What is wider than the page scrolls inside of itself, with the keyboard, too.
const watched = new ResizeObserver((changes) => {
  for (const { target } of changes) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
});
for (const box of document.querySelectorAll(".scroll")) watched.observe(box);

for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data(button)], { type: "text/csv;charset=utf-8" }));
    link.download = button.dataset.download;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
  });
}

// Curves: a cursor that the pointer, or the range below with the keyboard, moves over the rows of the figure's data.
for (const curves of document.querySelectorAll(".curves")) {
  const [names, ...rows] = data(curves).trim().split("\n").map(cells);
  const at = JSON.parse(curves.dataset.at);
  const svg = curves.querySelector("svg");
  const box = curves.querySelector(".scroll");
  const lines = curves.querySelectorAll(".cursor");
  const range = curves.querySelector("input");
  const output = curves.querySelector("output");
  const readout = curves.querySelector(".readout");
  const show = (i) => {
    for (const line of lines) {
      line.setAttribute("x1", at[i]);
      line.setAttribute("x2", at[i]);
    }
    range.value = i;
    output.textContent = `${names[0]} ${rows[i][0]}`;
    readout.replaceChildren(...names.slice(1).map((name, j) => {
      const pair = document.createElement("div");
      const term = pair.appendChild(document.createElement("dt"));
      const value = pair.appendChild(document.createElement("dd"));
      term.textContent = name;
      value.textContent = rows[i][j + 1] || "–";
      return pair;
    }));
    range.setAttribute("aria-valuetext", names.map((name, j) => `${name} ${rows[i][j] || "none"}`).join(", "));
  };
  const follow = (event) => {
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    show(at.reduce((best, own, i) => Math.abs(own - x) < Math.abs(at[best] - x) ? i : best, 0));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  range.addEventListener("input", () => {
    show(+range.value);
    box.scrollLeft = at[range.value] / svg.viewBox.baseVal.width * box.scrollWidth - box.clientWidth / 2;
  });
  show(+range.value);
}

for (const slider of document.querySelectorAll(".slider")) {
  const frames = slider.querySelectorAll(".frame");
  const range = slider.querySelector("input");
  const output = slider.querySelector("output");
  range?.addEventListener("input", () => {
    frames.forEach((frame, i) => { frame.hidden = i !== +range.value; });
    output.textContent = frames[range.value].dataset.label;
    range.setAttribute("aria-valuetext", output.textContent);
  });
}

// Tables: a click on a column's name sorts by it, numbers by their size.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const key = (row) => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent.trim();
    const compare = (a, b) => a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b);
    body.append(...[...body.rows].sort((a, b) => way * compare(key(a), key(b))));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
  });
}
