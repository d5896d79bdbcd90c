"use strict";
// Texts of models and names of runs reach the page as textContent alone; Plotly's own markup is escaped.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plain = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

function element(kind, parent, text, style) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (style) made.className = style;
  parent.append(made);
  return made;
}

// ------------------------------------------------------------------ curves

// an exponential mean, without the weight of what was before the first value
function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map(value => {
    if (value === null) return null;
    sum = weight * sum + value;
    total = weight * total + 1;
    return sum / total;
  });
}

function traces(chart) {
  const axis = $("axis").value, weight = Number($("smooth").value);
  return chart.traces.flatMap((trace, place) => {
    const several = data.runs.length > 1;
    const name = several ? `${data.runs[trace.run]}: ${trace.name}` : trace.name;
    const held = trace.name.startsWith("eval/");
    const line = {color: colour(`--c${(several ? trace.run : place) % 8}`), width: 1.6, dash: held ? "dot" : "solid"};
    const few = trace.y.length < 30;
    const drawn = {x: trace.x[axis], y: trace.y, name: plain(name), type: "scatter", line,
                   mode: held || few ? "lines+markers" : "lines", marker: {size: 5}};
    if (!weight || few) return [drawn];
    return [{...drawn, opacity: 0.25, showlegend: false, hoverinfo: "skip"},
            {...drawn, y: smoothed(trace.y, weight)}];
  });
}

function layout(chart) {
  const grid = {gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true};
  return {paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 40, r: 8, t: 8, b: 30},
          font: {color: colour("--ink"), size: 12}, hovermode: "x unified",
          hoverlabel: {bgcolor: colour("--paper"), font: {color: colour("--ink")}},
          xaxis: {...grid, rangemode: "tozero"}, yaxis: {...grid, type: $("log").checked ? "log" : "linear"},
          showlegend: chart.traces.length > 1, legend: {orientation: "h", y: -0.15, font: {size: 11}}};
}

const drawn = new Map();  // the place of a chart -> the chart, once it has been seen

function draw(place) {
  Plotly.react(place, traces(drawn.get(place)), layout(drawn.get(place)), {displaylogo: false, responsive: true});
}

function show(charts, parent) {
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries.filter(entry => entry.isIntersecting && !drawn.has(entry.target))) {
      drawn.set(entry.target, charts[Number(entry.target.dataset.chart)]);
      draw(entry.target);
    }
  });
  charts.forEach((chart, number) => {
    const section = element("section", parent, undefined, "chart");
    const lost = chart.lost ? ` (${chart.lost} values not finite)` : "";
    element("h3", section, chart.title + lost);
    const place = element("div", section, undefined, "plot");
    place.dataset.chart = number;
    seen.observe(place);
  });
}

const redraw = () => drawn.forEach((_, place) => draw(place));
for (const id of ["axis", "log"]) $(id).addEventListener("change", redraw);
$("smooth").addEventListener("input", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
show(data.main, $("main"));
show(data.further, $("further"));
if (!data.further.length) $("more").remove();

// ------------------------------------------------------------------ samples

const AT_ONCE = 20;

function showSamples(limit = AT_ONCE) {
  const kind = data.samples[$("kind").value], words = $("search").value.toLowerCase();
  const found = kind.rows.filter(row => [row.prompt, ...row.answers.flatMap(each => [each.text, each.note])].some(
    text => text.toLowerCase().includes(words)));
  $("count").textContent = `${found.length} of ${kind.rows.length}` + (
    kind.total > kind.rows.length ? `, the first of ${kind.total}` : "");
  $("samples").replaceChildren();
  for (const row of found.slice(0, limit)) {
    const place = element("div", $("samples"), undefined, "sample");
    for (const each of [{note: "prompt", text: row.prompt}, ...row.answers]) {
      const part = element("div", place);
      element("span", part, each.note, "faint");
      element("pre", part, each.text);
    }
  }
  if (found.length > limit) {
    const more = element("button", $("samples"), `${found.length - limit} more`);
    more.addEventListener("click", () => showSamples(Infinity));
  }
}

if (data.samples.length) {
  data.samples.forEach((kind, number) => element("option", $("kind"), kind.title).value = number);
  $("kind").addEventListener("change", () => showSamples());
  $("search").addEventListener("input", () => showSamples());
  showSamples();
}
