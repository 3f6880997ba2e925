"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const order = [...body.rows];
  const of = (row, column) => {
    const cell = row.cells[column];
    return column === 0 ? cell.textContent.trim() : "value" in cell.dataset ? Number(cell.dataset.value) : NaN;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const sortable = column === 0 || order.some((row) => "value" in row.cells[column].dataset);
    if (!sortable) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const sign = down ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [of(a, column), of(b, column)];
        if (typeof x === "string") return sign * x.localeCompare(y);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      };
      body.append(...[...order].sort(compare));
    });
  });
}
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
window.addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
