"use strict";
// The page can be read without this; it adds sorting and filters.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const has = (text, words) => words.toLowerCase().split(/\s+/).every((w) => text.includes(w));

for (const table of all("table.results")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  all("thead th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      // Best first, then worst first, then as it was; names begin with A.
      const order = column ? ["descending", "ascending"] : ["ascending", "descending"];
      const now = was === null ? order[0] : was === order[0] ? order[1] : null;
      all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
      if (now) head.setAttribute("aria-sort", now);
      const sign = now === "descending" ? -1 : 1;
      const value = (row) => row.cells[column].dataset.value ?? "";
      const rows = [...original];
      if (now) rows.sort((a, b) => compare(value(a), value(b), sign));
      body.append(...rows);
    });
  });
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // nothing comes last, either way
  const [x, y] = [Number(a), Number(b)];
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
}

for (const controls of all(".controls")) {
  const items = all(controls.dataset.of);
  const count = controls.querySelector("output");
  const more = controls.querySelector("button");
  let limit = Number(controls.dataset.limit ?? Infinity);
  const apply = () => {
    let found = 0;
    for (const item of items) {
      const keep = all("[data-filter]", controls).every((input) => {
        const value = item.getAttribute("data-" + input.dataset.filter) ?? "";
        if (input.type === "checkbox") return !input.checked || value === "1";
        if (input.type === "search") return has(value, input.value);
        return !input.value || value.split("\n").includes(input.value);
      });
      item.hidden = !keep || found >= limit;
      found += keep;
    }
    count.textContent = `${Math.min(found, limit)} of ${items.length}`;
    if (more) more.hidden = found <= limit;
  };
  more?.addEventListener("click", () => {
    limit = Infinity;
    apply();
  });
  controls.addEventListener("input", apply);
  controls.hidden = false;
  apply();
}
