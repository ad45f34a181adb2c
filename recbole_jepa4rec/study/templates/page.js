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

  const filter = document.getElementById("filter");
  filter?.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of document.querySelectorAll(".sortable tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });

  const plots = JSON.parse(document.getElementById("figures").textContent);
  if (!plots.length) return;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function colours(style) {
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

  async function paint(node) {
    const style = getComputedStyle(node);
    await Plotly.relayout(node, colours(style));
    const withErrors = node.data.flatMap((trace, i) => (trace.error_x ? [i] : []));
    const colour = style.getPropertyValue("--text").trim();
    if (withErrors.length) await Plotly.restyle(node, { "error_x.color": colour }, withErrors);
  }

  const drawn = plots.map(async (plot) => {
    await Plotly.newPlot(plot.id, plot.figure.data, plot.figure.layout, {
      responsive: true,
      displayModeBar: false,
    });
    await paint(document.getElementById(plot.id));
  });
  Promise.all(drawn).then(() => document.body.setAttribute("data-drawn", plots.length));
  dark.addEventListener("change", () => plots.forEach((plot) => paint(document.getElementById(plot.id))));

  // What is saved is for paper: black on white, with a legend of its own.
  async function save(plot, format) {
    const shown = document.getElementById(plot.id);
    const copy = document.body.appendChild(document.createElement("div"));
    copy.className = "paper";
    const data = structuredClone(shown.data);
    const named = new Map();
    for (const trace of data) {
      if (trace.meta?.length === 1 && trace.visible !== false) named.set(trace.meta[0], trace);
    }
    for (const [entry, trace] of named) Object.assign(trace, { name: nameOf(entry), showlegend: true });
    for (const trace of data) trace.showlegend ??= false;
    const layout = { ...structuredClone(shown.layout), paper_bgcolor: "#fff", showlegend: named.size > 0 };
    const size = { width: 720, height: layout.height + 20 * named.size };
    await Plotly.newPlot(copy, data, { ...layout, ...size, legend: { orientation: "h", y: -0.2 } });
    await paint(copy);
    await Plotly.downloadImage(copy, { ...size, format, filename: plot.title, scale: format === "png" ? 3 : 1 });
    Plotly.purge(copy);
    copy.remove();
  }

  for (const button of document.querySelectorAll(".export button")) {
    const plot = plots.find((each) => each.id === button.dataset.plot);
    button.addEventListener("click", () => save(plot, button.dataset.kind));
  }

  const buttonOf = (entry) => document.querySelector(`.legend button[data-entry="${CSS.escape(entry)}"]`);
  const shows = (entry) => buttonOf(entry).getAttribute("aria-pressed") === "true";
  const nameOf = (entry) => buttonOf(entry).querySelector(".name").textContent;

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
