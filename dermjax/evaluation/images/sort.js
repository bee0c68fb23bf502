for (const head of document.querySelectorAll("table.sortable thead th")) {
  head.tabIndex = 0;
  const sort = () => {
    const rows = head.closest("table").tBodies[0];
    const falling = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = row => {
      const text = row.children[head.cellIndex].textContent.trim();
      const number = parseFloat(text);
      return isNaN(number) ? text : number;
    };
    const sorted = [...rows.rows].sort((a, b) => (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0));
    rows.append(...(falling ? sorted.reverse() : sorted));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}
