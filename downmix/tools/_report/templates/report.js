"use strict";
(() => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Plots take the page's colours, which only computed styles tell.
  function look(layout) {
    const text = getComputedStyle(document.body).color;
    const line = getComputedStyle(document.querySelector("header")).borderBottomColor;
    const found = { "font.color": text };
    for (const name of Object.keys(layout)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      for (const part of ["gridcolor", "linecolor", "zerolinecolor"]) found[`${name}.${part}`] = line;
    }
    return found;
  }

  function draw(plot) {
    if (plot.dataset.drawn) return;
    plot.dataset.drawn = "yes";
    const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
    Object.assign(layout, {
      paper_bgcolor: "rgba(0, 0, 0, 0)",
      plot_bgcolor: "rgba(0, 0, 0, 0)",
      font: { family: "system-ui, sans-serif", size: 13 },
      margin: { l: 10, r: 10, t: 10, b: 10 },
      legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", traceorder: "normal" },
      // A drag on a touch screen scrolls the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    });
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) Object.assign(layout[name], { automargin: true, zeroline: false });
    }
    Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
    Plotly.relayout(plot, look(layout));
  }

  function recolour() {
    for (const plot of plots) if (plot.dataset.drawn) Plotly.relayout(plot, look(plot.layout));
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "600px" });
  plots.forEach((plot) => seen.observe(plot));

  // Dark or light: the system's choice until the button is pressed.
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  function settle() {
    button.setAttribute("aria-pressed", isDark());
    recolour();
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    settle();
  });
  dark.addEventListener("change", settle);
  settle();

  // On paper: light, all plots, as wide as the sheet.
  let before;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    plots.forEach(draw);
    recolour();
    for (const plot of plots) Plotly.relayout(plot, { width: 660 });
  });
  addEventListener("afterprint", () => {
    if (before) root.dataset.theme = before;
    else delete root.dataset.theme;
    for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
    recolour();
  });

  // A press on a column's name sorts by it; places without a value stay last.
  function sort(table, column, header) {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const isNumber = header.classList.contains("number");
    const key = ({ cells }) => (isNumber ? parseFloat(cells[column].dataset.value) : cells[column].textContent.trim());
    const isEmpty = (value) => value === "" || value === "–" || Number.isNaN(value);
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
      const order = isNumber ? a - b : a.localeCompare(b, "en", { numeric: true });
      return ascending ? order : -order;
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }
  for (const table of document.querySelectorAll("table")) {
    if (table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const press = document.createElement("button");
      press.type = "button";
      press.textContent = header.textContent;
      press.addEventListener("click", () => sort(table, column, header));
      header.replaceChildren(press);
      header.setAttribute("aria-sort", "none");
    });
  }
})();
