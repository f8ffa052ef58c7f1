// Charts and heat maps are drawn when they come into view; what they share is on the page once.
(() => {
  "use strict";
  const store = JSON.parse(document.getElementById("store").textContent);
  const NONE = 65535;
  const known = new Map();

  /** The numbers of a column, those in two bytes taken apart: see `packed` in charts.py. */
  function column(index) {
    if (!known.has(index)) known.set(index, unpacked(store.columns[index]));
    return known.get(index);
  }

  function unpacked(found) {
    if (Array.isArray(found)) return found;
    if (!found.p) return new Array(found.n).fill(null);
    const bytes = Uint8Array.from(atob(found.p), (character) => character.charCodeAt(0));
    const step = (found.b - found.a) / (NONE - 1);
    return Array.from(new Uint16Array(bytes.buffer), (code) => {
      const value = found.m + found.s * Math.sinh(found.a + code * step);
      return code === NONE ? null : Math.abs(value) < 1e-6 * found.s ? 0 : value; // what rounding leaves of a zero
    });
  }

  function rows(table) {
    const names = Object.keys(table), parts = names.map((name) => column(table[name]));
    return Array.from({ length: parts[0]?.length ?? 0 }, (_, row) =>
      Object.fromEntries(names.map((name, at) => [name, parts[at][row]])));
  }

  // Colours are custom properties, so what is drawn follows the theme, and paper.
  const dim = "var(--dim)", line = "var(--line)";
  const config = {
    font: "system-ui, sans-serif",
    background: "transparent",
    view: { stroke: null },
    mark: { color: "var(--accent)" },
    line: { strokeWidth: 1.75 },
    point: { filled: true, size: 36 },
    rule: { color: dim },
    area: { opacity: 0.9 },
    axis: {
      domainColor: line, tickColor: line, gridColor: line, gridOpacity: 0.7, labelColor: dim, titleColor: dim,
      labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400, tickSize: 4, labelPadding: 4, titlePadding: 8,
    },
    axisX: { grid: false, labelAngle: 0 },
    axisY: { domain: false, ticks: false, tickCount: 5 },
    legend: { labelColor: dim, titleColor: dim, labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400, orient: "top" },
    header: { labelColor: dim, titleColor: dim, labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400 },
    title: { color: "var(--ink)", fontSize: 12, fontWeight: 600, anchor: "start" },
    text: { color: dim, fontSize: 11 },
    range: { category: [1, 2, 3, 4, 5, 6, 7, 8].map((index) => `var(--series-${index})`) },
  };

  /** What is drawn of an entry leads to it. */
  function goToEntry(name) {
    const found = name && [...document.querySelectorAll(".entry .name")].find((place) => place.textContent === name);
    if (found) location.hash = `#${encodeURIComponent(found.closest(".entry").id)}`;
  }

  async function drawChart(place) {
    const [index, tables] = store.charts[Number(place.dataset.chart)];
    const given = store.specs[index], parts = ["facet", "repeat", "concat", "hconcat", "vconcat"];
    const size = parts.some((part) => part in given) ? {} : { width: "container", height: 180 };
    const spec = { ...size, ...structuredClone(given) };
    spec.datasets = Object.fromEntries(Object.entries(tables).map(([name, table]) => [name, rows(table)]));
    const options = { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, config };
    try {
      const { view } = await vegaEmbed(place, spec, options);
      view.addEventListener("click", (_, item) => goToEntry(item?.datum?.entry));
      place.dataset.drawn = "yes";
    } catch (error) {
      place.textContent = `This chart could not be drawn: ${error.message}`;
    }
  }

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const show = (value) => {
    if (value === null) return "none";
    if (value === 0 || (Number.isInteger(value) && Math.abs(value) < 1e5)) return String(value);
    const size = Math.abs(value);
    return (size < 1e-3 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(3)))).replace("-", "\u2212");
  };

  /** Median, and the distance from it that half of the values lie within. */
  function middle(values) {
    const half = (list) => [...list].sort((one, other) => one - other)[Math.floor(list.length / 2)] ?? 0;
    const held = values.filter((value) => value !== null), center = half(held);
    const away = held.map((value) => Math.abs(value - center));
    return [center, half(away) || Math.max(0, ...away) || 1];
  }

  const FULL = Math.asinh(10); // ten times as far as half of the values: the full colour

  function paint(canvas, parts) {
    const brush = canvas.getContext("2d"), image = brush.createImageData(canvas.width, canvas.height);
    parts.forEach((values, row) => {
      const [center, spread] = middle(values);
      values.forEach((value, at) => {
        const far = value === null ? 0 : Math.asinh((value - center) / spread) / FULL;
        const [red, green, blue] = value === null ? [128, 128, 128] : far < 0 ? [37, 111, 184] : [214, 96, 20];
        const opacity = value === null ? 90 : Math.min(1, Math.abs(far)) ** 1.25 * 255;
        image.data.set([red, green, blue, opacity], 4 * (row * canvas.width + at));
      });
    });
    brush.putImageData(image, 0, 0);
  }

  function numbers(heat, parts, names) {
    const head = make("tr", {}, ...["", "least", heat.noun, "median", "most", heat.noun].map((text, at) =>
      make("th", { scope: "col", textContent: text, className: at ? "number" : "" })));
    const body = parts.map((values, row) => {
      const held = values.map((value, at) => [value, at]).filter(([value]) => value !== null).sort((a, b) => a[0] - b[0]);
      const first = held[0], last = held[held.length - 1], half = held[Math.floor(held.length / 2)];
      const cells = held.length
        ? [show(first[0]), names[first[1]], show(half[0]), show(last[0]), names[last[1]]] : ["none", "", "", "", ""];
      return make("tr", {}, make("th", { scope: "row", textContent: heat.labels[row] }),
        ...cells.map((text) => make("td", { className: "number", textContent: text })));
    });
    return make("div", { className: "table" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  function drawHeatmap(place) {
    const heat = store.heatmaps[Number(place.dataset.heatmap)];
    const parts = heat.rows.map(column), names = column(heat.names);
    const canvas = make("canvas", { width: names.length, height: parts.length, tabIndex: 0 });
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${names.length} ${heat.noun}s by ${heat.labels.join(", ")}; left and right go through them`);
    const cursor = make("i", { className: "cursor", hidden: true });
    const rest = `Point at a ${heat.noun}, or go through them by the arrow keys.`;
    const readout = make("output", { className: "readout", textContent: rest });
    readout.setAttribute("aria-live", "polite");
    let chosen = -1;
    const choose = (at) => {
      chosen = Math.max(0, Math.min(names.length - 1, at));
      cursor.hidden = false;
      cursor.style.left = `${(100 * chosen) / names.length}%`;
      cursor.style.width = `max(2px, ${100 / names.length}%)`;
      readout.replaceChildren(make("b", { textContent: `${heat.noun} ${names[chosen]}` }),
        ...heat.labels.map((label, row) => make("span", {}, make("small", { textContent: label }), ` ${show(parts[row][chosen])}`)));
    };
    canvas.addEventListener("pointermove", (event) => choose(Math.floor((event.offsetX / canvas.clientWidth) * names.length)));
    canvas.addEventListener("pointerdown", (event) => choose(Math.floor((event.offsetX / canvas.clientWidth) * names.length)));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -names.length, End: names.length }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      choose(chosen + step);
    });
    const table = make("details", { className: "numbers" }, make("summary", { textContent: "Numbers" }));
    table.addEventListener("toggle", () => table.children.length > 1 || table.append(numbers(heat, parts, names)));
    const labels = make("div", { className: "labels" }, ...heat.labels.map((textContent) => make("span", { textContent })));
    labels.setAttribute("aria-hidden", "true");
    const frame = make("div", { className: "frame" }, canvas, cursor);
    frame.style.height = `${parts.length * 20}px`;
    place.append(make("div", { className: "heat" }, labels, frame), readout, table);
    paint(canvas, parts);
    place.dataset.drawn = "yes";
  }

  const watcher = new IntersectionObserver((changes) => {
    for (const change of changes) {
      if (!change.isIntersecting) continue;
      watcher.unobserve(change.target);
      if (change.target.dataset.chart === undefined) drawHeatmap(change.target); else drawChart(change.target);
    }
  }, { rootMargin: "300px" });
  for (const place of document.querySelectorAll(".drawing")) watcher.observe(place);
})();
