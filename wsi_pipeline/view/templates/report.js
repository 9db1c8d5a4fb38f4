"use strict";
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

// One set of controls for all slides: the map, its opacity, and what is drawn over it.
const tools = document.querySelector(".tools");
const layers = all("[data-key]");
if (layers.length) {
  const keys = [...new Set(layers.map((e) => e.dataset.key))];
  const select = tools.elements.map;
  for (const key of keys) select.add(new Option(key, key));
  select.value = layers.find((e) => !e.hasAttribute("hidden")).dataset.key;
  select.addEventListener("input", () => {
    for (const e of layers) e.toggleAttribute("hidden", e.dataset.key !== select.value);
  });
  tools.elements.opacity.addEventListener("input", (event) => {
    for (const e of all(".map")) e.style.opacity = event.target.value / 100;
  });
  for (const name of ["outlines", "marks"]) {
    tools.elements[name].addEventListener("input", (event) => {
      document.body.classList.toggle(`no-${name}`, !event.target.checked);
    });
  }
  tools.hidden = false;
}

// A click on a column's header sorts by it; a second click reverses the order.
for (const table of all(".sortable")) {
  const heads = all("thead th", table);
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const rows = Array.from(table.tBodies[0].rows);
    rows.sort((a, b) => value(a, column).localeCompare(value(b, column), "en", { numeric: true }));
    if (down) rows.reverse();
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  }));
}
