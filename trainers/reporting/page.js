"use strict";
// Tables are sorted by their headings; cells without a figure stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const body = heading.closest("table").tBodies[0];
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const numeric = !heading.classList.contains("words");
    const key = (row) => {
      const cell = row.cells[heading.cellIndex];
      if (!numeric) return cell.textContent.trim();
      return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    };
    const compare = (one, other) => numeric ? one - other : one.localeCompare(other, "en", { numeric: true });
    const rows = Array.from(body.rows, (row) => [key(row), row]);
    rows.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      return ascending ? compare(one, other) : compare(other, one);
    });
    body.append(...rows.map(([, row]) => row));
  });
}
