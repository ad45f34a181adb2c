"use strict";
(() => {
  const valueOf = (row, column) => row.cells[column].dataset.value ?? "";

  function sortBy(header) {
    const table = header.closest("table");
    const column = header.cellIndex;
    const numeric = header.classList.contains("number");
    const before = header.getAttribute("aria-sort");
    const rising = before === "none" ? !numeric : before === "descending";
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, other) => {
      const [a, b] = [valueOf(one, column), valueOf(other, column)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = numeric ? Number(a) - Number(b) : a.localeCompare(b);
      return rising ? order : -order;
    });
    for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", rising ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }

  for (const header of document.querySelectorAll(".sortable th[aria-sort]")) {
    header.querySelector("button").addEventListener("click", () => sortBy(header));
  }

  const plots = JSON.parse(document.getElementById("figures").textContent);
  if (!plots.length) return;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const found = {
      "font.color": read("--quiet"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "hoverlabel.bgcolor": read("--panel"),
      "hoverlabel.bordercolor": read("--line"),
      "hoverlabel.font.color": read("--text"),
    };
    for (const axis of ["xaxis", "yaxis"]) {
      found[`${axis}.gridcolor`] = read("--line");
      found[`${axis}.linecolor`] = read("--line");
    }
    return found;
  }

  const errorColour = () => getComputedStyle(document.documentElement).getPropertyValue("--text").trim();

  async function paint(plot) {
    const node = document.getElementById(plot.id);
    await Plotly.relayout(node, colours());
    const withErrors = plot.figure.data.flatMap((trace, i) => (trace.error_x ? [i] : []));
    if (withErrors.length) await Plotly.restyle(node, { "error_x.color": errorColour() }, withErrors);
  }

  const drawn = plots.map(async (plot) => {
    await Plotly.newPlot(plot.id, plot.figure.data, plot.figure.layout, {
      responsive: true,
      displayModeBar: false,
    });
    await paint(plot);
  });
  Promise.all(drawn).then(() => document.body.setAttribute("data-drawn", plots.length));
  dark.addEventListener("change", () => plots.forEach(paint));

  const shows = (entry) => document.querySelector(`.legend button[data-entry="${CSS.escape(entry)}"]`)
    .getAttribute("aria-pressed") === "true";

  function show() {
    for (const plot of plots) {
      plot.figure.data.forEach((trace, i) => {
        if (trace.meta.length > 1) {
          Plotly.restyle(plot.id, { "marker.opacity": [trace.meta.map((entry) => (shows(entry) ? 1 : 0.2))] }, [i]);
        } else {
          Plotly.restyle(plot.id, { visible: shows(trace.meta[0]) }, [i]);
        }
      });
    }
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      show();
    });
  }
})();
