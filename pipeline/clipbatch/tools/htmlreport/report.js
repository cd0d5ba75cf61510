"use strict";
// Filters over what the page already holds; without them everything is shown.
for (const form of document.querySelectorAll("[data-filters]")) {
  const list = document.getElementById(form.dataset.filters);
  const items = [...list.querySelectorAll("[data-item]")];
  const groups = [...list.querySelectorAll("[data-group]")];
  const texts = items.map((item) => {
    const heading = item.closest("section[data-group]")?.querySelector("h3");
    return `${heading ? heading.textContent : ""} ${item.textContent}`.toLowerCase();
  });
  const apply = () => {
    const wanted = form.elements.text.value.trim().toLowerCase();
    let shown = 0;
    items.forEach((item, at) => {
      const chosen = [...form.querySelectorAll("select")].every((s) => !s.value || item.dataset[s.name] === s.value);
      item.hidden = !(chosen && texts[at].includes(wanted));
      shown += item.hidden ? 0 : 1;
    });
    for (const group of groups) group.hidden = !group.querySelector("[data-item]:not([hidden])");
    form.querySelector("output").textContent = `${shown} of ${items.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply(); // a browser may bring back what was chosen before
}
