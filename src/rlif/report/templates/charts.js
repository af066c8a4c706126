"use strict";
// The curves: a chart is drawn when it comes into view, again when its groups or the colours of the page change.
const PAGE = JSON.parse(document.getElementById("data").textContent);
const BANDS = 6; // lines of a chart that may all have their bands
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function theme() {
  return document.documentElement.dataset.theme;
}

// Plotly reads a few tags in texts; a name from a file is no tag.
function plain(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// What a guard says, from the surest colours to tell apart; the shapes say it, too.
const LEVELS = [
  { word: "ok", symbol: "circle", sign: "●", size: 7, light: "#7a8794", dark: "#8a97a4" },
  { word: "warn", symbol: "triangle-up", sign: "▲", size: 11, light: "#c98500", dark: "#f0b030" },
  { word: "stop", symbol: "square", sign: "■", size: 11, light: "#c02020", dark: "#ff6a5a" },
];

function transparent(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},.16)`;
}

function lineName(panel, line) {
  return panel.groups.length > 1 ? `${panel.groups[line.group]}: ${line.name}` : line.name;
}

// The place in LEVELS; of several seeds the mean is drawn as the next higher one.
function levelOf(value) {
  return Math.min(2, Math.ceil(value));
}

// One row a guard, one mark a look: a trace a level, so that each has its colour and its shape.
function states(panel, chart, shown) {
  const lines = chart.lines.filter((one) => shown.has(one.group));
  return LEVELS.map((level, at) => {
    const points = lines.flatMap((line) => line.x.map((x, i) => [x, line.y[i], plain(lineName(panel, line))]))
      .filter(([, value]) => value !== null && levelOf(value) === at);
    return {
      x: points.map((one) => one[0]), y: points.map((one) => one[2]), name: level.word, mode: "markers",
      marker: { symbol: level.symbol, size: level.size, color: level[theme()] },
      hovertemplate: `%{y}: ${level.word} at step %{x}<extra></extra>`,
    };
  });
}

// The rows from top to bottom, those of no mark as well.
function rows(panel, chart, shown) {
  return chart.lines.filter((one) => shown.has(one.group)).map((line) => plain(lineName(panel, line)));
}

// A line is one colour a group; where there is a single group, one colour a metric.
function traces(panel, chart, shown) {
  if (chart.kind === "states") return states(panel, chart, shown);
  const found = [];
  const lines = chart.lines.filter((one) => shown.has(one.group));
  for (const line of lines) {
    const palette = PAGE.colours[theme()];
    const colour = palette[(panel.groups.length > 1 ? line.group : line.style) % palette.length];
    if (line.e && (line.style === 0 || lines.length <= BANDS)) {
      const known = line.y.map((y, i) => i).filter((i) => line.y[i] !== null && line.e[i] !== null);
      const edge = (sign) => known.map((i) => line.y[i] + sign * line.e[i]);
      const x = known.map((i) => line.x[i]);
      const band = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
      found.push({ ...band, y: edge(-1) });
      found.push({ ...band, y: edge(1), fill: "tonexty", fillcolor: transparent(colour) });
    }
    found.push({
      x: line.x, y: line.y, name: plain(lineName(panel, line)), mode: line.x.length > 40 ? "lines" : "lines+markers",
      line: { color: colour, dash: DASHES[line.style % DASHES.length], width: 2 }, marker: { size: 5 },
      hovertemplate: "%{y:.4g}",
    });
  }
  return found;
}

// To 1, or where nothing drawn is above a third, to what is.
function shares(chart, shown) {
  const values = chart.lines.filter((one) => shown.has(one.group)).flatMap((one) => one.y.filter((y) => y !== null));
  const most = values.reduce((a, b) => Math.max(a, b), 0.1);
  const top = most > 1 / 3 ? 1 : most;
  return { range: [-0.02 * top, 1.05 * top] };
}

function layout(panel, chart, shown) {
  const dark = theme() === "dark";
  const grid = dark ? "#38424d" : "#e3e7eb";
  const axis = { gridcolor: grid, zerolinecolor: grid };
  const names = chart.kind === "states" ? rows(panel, chart, shown) : [];
  const category = { type: "category", categoryorder: "array", categoryarray: names, autorange: "reversed", automargin: true };
  const share = chart.kind === "states" ? category : chart.unit === "share" ? shares(chart, shown) : { rangemode: chart.zero ? "tozero" : "normal" };
  return {
    margin: { l: 48, r: 12, t: 8, b: 36 }, showlegend: false, hovermode: names.length ? "closest" : "x unified",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: dark ? "#e6edf3" : "#1b1f23", size: 12 },
    hoverlabel: { bgcolor: dark ? "#1b2129" : "#ffffff", namelength: 60 },
    xaxis: { ...axis, title: { text: chart.axis === "tenth" ? "tenth of the answer" : "step", standoff: 6 } },
    yaxis: { ...axis, ...share },
  };
}

// Where each guard first says more than ok.
function toldStates(panel, chart, shown) {
  const words = chart.lines.filter((one) => shown.has(one.group)).flatMap((line) => [1, 2].flatMap((level) => {
    const at = line.y.findIndex((value) => value !== null && levelOf(value) >= level);
    return at < 0 ? [] : [`${lineName(panel, line)} says ${LEVELS[level].word} at step ${line.x[at]}`];
  }));
  return words.length ? words.join("; ") : "all guards say ok at every look";
}

// What a chart shows, in words: for those who do not see it.
function told(panel, chart, shown) {
  if (chart.kind === "states") return `${chart.title}: ${toldStates(panel, chart, shown)}`;
  const number = (value) => (value === null ? "unknown" : String(+value.toPrecision(3)));
  const words = chart.lines.filter((one) => shown.has(one.group)).slice(0, 12).map((line) =>
    `${lineName(panel, line)} from ${number(line.y[0])} to ${number(line.y[line.y.length - 1])}`);
  return `${chart.title}, ${chart.unit}: ${words.join("; ")}`;
}

function numbers(panel, chart) {
  const steps = [...new Set(chart.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const head = make("tr", {}, make("th", { scope: "col" }, chart.axis || "step"));
  for (const line of chart.lines) head.append(make("th", { scope: "col" }, lineName(panel, line)));
  const body = make("tbody");
  const values = chart.lines.map((line) => new Map(line.x.map((x, i) => [x, line.y[i]])));
  for (const step of steps) {
    const row = make("tr", {}, make("th", { scope: "row" }, String(step)));
    for (const one of values) row.append(make("td", {}, one.has(step) && one.get(step) !== null ? String(one.get(step)) : ""));
    body.append(row);
  }
  return make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Numbers: ${chart.title}` },
    make("table", {}, make("thead", {}, head), body));
}

function levelKey(chart) {
  const small = make("small");
  for (const [at, level] of LEVELS.entries()) {
    small.append(make("span", { class: "sign", "data-level": at, "aria-hidden": "true" }, level.sign), ` ${level.word}  `);
  }
  if (chart.quiet) small.append(`(${chart.quiet} guards that were ok at every look are left out)`);
  return small;
}

function drawing(panel, chart, shown) {
  const plot = make("div", { class: "plot", role: "img" });
  const details = make("details", {}, make("summary", {}, "Numbers"));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(numbers(panel, chart));
  });
  const styles = [...new Map(chart.lines.map((line) => [line.style, line.name])).entries()];
  const key = panel.groups.length > 1 && styles.length > 1
    ? styles.map(([style, name]) => `${name}: ${DASHES[style % DASHES.length]}`).join(", ")
    : new Set(chart.lines.map((line) => line.name)).size > 1 ? "" : styles[0][1];
  const caption = make("figcaption", {}, chart.title);
  if (chart.kind === "states") caption.append(levelKey(chart));
  else caption.append(make("small", {}, [chart.unit, key].filter(Boolean).join("; ")));
  if (panel.groups.length === 1 && styles.length > 1) {
    const small = make("small");
    for (const [style, name] of styles) {
      const swatch = make("span", { class: "swatch", "data-colour": style });
      small.append(swatch, name, " ");
    }
    caption.append(small);
  }
  if (chart.thinned) caption.append(make("small", {}, `${chart.thinned} lines have more points than are drawn`));
  const figure = make("figure", {}, caption, plot, details);
  const draw = () => {
    plot.setAttribute("aria-label", told(panel, chart, shown));
    if (typeof Plotly === "undefined" || !figure.dataset.seen) return;
    if (chart.kind === "states") plot.style.height = `${4.5 + 1.5 * Math.max(2, rows(panel, chart, shown).length)}rem`;
    Plotly.react(plot, traces(panel, chart, shown), layout(panel, chart, shown), { displayModeBar: false, responsive: true });
  };
  return { figure, draw };
}

function paintSwatches() {
  for (const one of document.querySelectorAll("[data-colour]")) {
    const palette = PAGE.colours[theme()];
    one.style.background = palette[Number(one.dataset.colour) % palette.length];
  }
}

function paintSigns() {
  for (const one of document.querySelectorAll("[data-level]")) one.style.color = LEVELS[Number(one.dataset.level)][theme()];
}

function choices(panel, field, shown, changed) {
  if (panel.groups.length < 2) {
    field.hidden = true;
    return;
  }
  panel.groups.forEach((name, i) => {
    const box = make("input", { type: "checkbox" });
    box.checked = shown.has(i);
    box.addEventListener("change", () => {
      if (box.checked) shown.add(i); else shown.delete(i);
      changed();
    });
    field.append(make("label", {}, box, make("span", { class: "swatch", "data-colour": i }), name));
  });
}

const REDRAW = [];

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  paintSwatches();
  paintSigns();
  for (const draw of REDRAW) draw();
}

function setUpCharts() {
  const seen = new Map();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      entry.target.dataset.seen = "1";
      watcher.unobserve(entry.target);
      seen.get(entry.target)();
    }
  }, { rootMargin: "300px" });
  for (const node of document.querySelectorAll("[data-panel]")) {
    const panel = PAGE.panels[Number(node.dataset.panel)];
    const shown = new Set(panel.groups.map((_, i) => i).slice(0, 8));
    const [usual, machinery] = node.querySelectorAll(".charts");
    const draws = [];
    for (const chart of panel.charts) {
      const { figure, draw } = drawing(panel, chart, shown);
      (chart.machinery ? machinery : usual).append(figure);
      draws.push(draw);
      seen.set(figure, draw);
      watcher.observe(figure);
    }
    machinery.parentNode.hidden = !machinery.children.length;
    choices(panel, node.querySelector(".groups"), shown, () => draws.forEach((draw) => draw()));
    REDRAW.push(...draws);
  }
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => setTheme(theme() === "dark" ? "light" : "dark"));
}

setUpCharts();
