// The parts of every chart, and the charts beside the tables.

// A figure that is drawn anew when its width changes. `draw(width)` returns [height, elements].
const drawn = [];
function figure(title, note, description, draw) {
  const svg = s("svg", { class: "chart", role: "img", "aria-label": visible(description) });
  const caption = title ? h("figcaption", {}, visible(title), note ? h("small", {}, visible(note)) : null) : null;
  const node = h("figure", {}, caption, svg);
  drawn.push({ node, svg, draw, width: 0 });
  return node;
}
function redraw() {
  for (const chart of drawn) {
    const width = Math.floor(chart.node.clientWidth);
    if (!width || width === chart.width || !chart.node.isConnected) continue;
    chart.width = width;
    const [height, elements] = chart.draw(width);
    fill(chart.svg, { viewBox: `0 0 ${width} ${height}` }, []);
    chart.svg.replaceChildren(...elements.flat(3).filter(Boolean));
  }
}
new ResizeObserver(() => requestAnimationFrame(redraw)).observe(document.body);

const columnsOf = (head, rows) =>
  h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Data of the chart" },
    h("table", { class: "numbers plain" },
      h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, visible(text))))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((text, i) => (i ? h("td", {}, visible(text)) : h("th", { scope: "row" }, visible(text)))))))));
const asTable = (head, rows) => h("details", {}, h("summary", {}, "As a table"), columnsOf(head, rows));

function choice(words, options, chosen, act) {
  const select = h("select", { on: { change: () => act(select.value) } });
  for (const option of options) {
    const optionOf = (o) => h("option", { value: o.value, selected: o.value === chosen }, visible(o.text));
    select.append(option.options ? h("optgroup", { label: visible(option.text) }, option.options.map(optionOf)) : optionOf(option));
  }
  return h("label", { class: "field" }, words, select);
}

function bottomAxis(scale, marks, from, to, y) {
  return [
    s("path", { class: "axis", d: `M${from},${y + 0.5}H${to}` }),
    marks.map((t) => [s("path", { class: "axis", d: `M${scale(t.value)},${y}v4` }), s("text", { class: "soft", x: scale(t.value), y: y + 15, "text-anchor": "middle" }, t.text)]),
  ];
}

// Rows of marks with intervals (leaderboard) or of bars (cost): a label, a mark, words at the right.
function rowsChart(width, rows, { unit, reference = null, bars = false, right = 44 }) {
  const step = 22;
  const gutter = Math.min(Math.max(...rows.map((r) => measure(r.label))) + 32, width * 0.5);
  const [from, to, bottom] = [gutter, width - right, rows.length * step + 6];
  const [low, high] = domain([...rows.flatMap((r) => [r.value, r.low, r.high, ...(r.seeds || [])]), reference], { zero: bars, unit });
  const scale = linear(low, high, from, to);
  const parts = bars ? [] : bottomAxis(scale, axisTicks(low, high, Math.max(2, (to - from) / 55), unit), from, to, bottom);
  if (reference !== null) parts.push(s("path", { class: "ref", d: `M${scale(reference)},0V${bottom}` }));
  rows.forEach((row, i) => {
    const y = i * step + 14;
    parts.push(symbol(row.method, 7, y - 4, 0.8), label(row.label, 18, y, gutter - 26));
    if (row.value === null) parts.push(s("text", { class: "soft", x: from, y }, "missing"));
    else if (bars) {
      const x = Math.min(scale(0), scale(row.value));
      parts.push(s("g", { class: colour(row.method) }, s("rect", { class: "rect", x, y: y - 10, width: Math.max(1, Math.abs(scale(row.value) - scale(0))), height: 12, rx: 1 })));
      parts.push(s("text", { class: "soft", x: scale(Math.max(0, row.value)) + 5, y }, row.words));
    } else {
      parts.push(s("g", { class: colour(row.method) }, row.low === null ? null : s("path", { class: "whisker", d: `M${scale(row.low)},${y - 4}H${scale(row.high)}` })));
      for (const seed of row.seeds) if (seed !== null) parts.push(s("g", { class: colour(row.method) }, s("circle", { class: "seed", cx: scale(seed), cy: y - 4, r: 1.8 })));
      parts.push(symbol(row.method, scale(row.value), y - 4));
      if (row.verdict) parts.push(s("text", { class: row.verdict, x: width, y, "text-anchor": "end" }, data.marks[row.verdict]));
    }
  });
  return [bottom + (bars ? 0 : 20), parts];
}

function forests() {
  for (const holder of document.querySelectorAll("[data-forest]")) {
    const section = data.sections[Number(holder.dataset.forest)];
    const base = section.measured.map((i) => section.rows[i]).filter((row) => row.method === data.base);
    for (const column of section.columns) {
      const rows = section.measured.map((i) => {
        const row = section.rows[i];
        const cell = row.cells[column.name];
        return { label: visible(row.label), method: row.method, value: cell.value, low: cell.low, high: cell.high, verdict: cell.difference && cell.difference.verdict, seeds: cell.by_seed.length > 1 ? cell.by_seed : [], cell };
      });
      if (rows.every((row) => row.value === null)) continue;
      const reference = base.length === 1 ? base[0].cells[column.name].value : null;
      const words = rows.map((row) => `${row.label} ${bounded(row.cell, column.unit)}${row.verdict ? ` ${row.verdict}` : ""}`).join("; ");
      holder.append(figure(column.name, unitNote(column), `${column.name}: ${words}`, (width) => rowsChart(width, rows, { unit: column.unit, reference })));
    }
  }
}
