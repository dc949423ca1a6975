// Draws the charts and the sample browser from the JSON in this file. Data reaches the document as text only:
// textContent and createTextNode, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";

  // ------------------------------------------------------------------------------------------------- making elements

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === false || value === null || value === undefined) continue;
      if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
      else if (key in node && typeof value === "boolean") node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }
  const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const put = (node, ...children) => node.replaceChildren(...children.flat().filter((child) => child !== null));
  const byId = (id) => document.getElementById(id);

  // Control characters are shown, not obeyed; so are those that turn the direction of writing.
  const visible = (text) =>
    String(text)
      .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
      .replace(/[\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

  // --------------------------------------------------------------------------------------------------------- numbers

  const places = (like) => (like ? Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(like))))) : 2);
  function number(value, unit, like = value) {
    if (value === null || value === undefined) return "–";
    const [v, n] = unit === "share" ? [100 * value, 1] : [value, places(like)];
    return (Math.round(v * 10 ** n) / 10 ** n + 0).toFixed(n);
  }
  const bounded = (cell, unit) =>
    cell === null || cell === undefined || cell.value === null
      ? "missing"
      : number(cell.value, unit) + (cell.low === null ? "" : ` [${number(cell.low, unit, cell.value)}, ${number(cell.high, unit, cell.value)}]`);
  function size(bytes) {
    for (const unit of ["B", "kB", "MB"]) {
      if (bytes < 1000) return `${Number(bytes.toPrecision(3))} ${unit}`;
      bytes /= 1000;
    }
    return `${Number(bytes.toPrecision(3))} GB`;
  }
  function amount(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "B") return size(value);
    if (unit === "s" && value < 0.05) return "under 0.1 s";
    const text = Number.isInteger(value) ? value.toLocaleString("en") : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
    return unit === "×" ? `${text}×` : unit ? `${text} ${unit}` : text;
  }
  const way = (better) => (better === "neither" ? "" : better === "higher" ? "↑" : "↓");
  const told = (column) => `${column.unit === "share" ? "per cent" : ""}${column.unit === "share" && column.better !== "neither" ? ", " : ""}${column.better === "neither" ? "" : `${column.better} is better`}`;

  function ticks(low, high, count) {
    const raw = (high - low) / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(raw || 1));
    const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999) || power;
    const found = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) found.push(Math.abs(t) < step * 1e-9 ? 0 : t);
    if (found.length < 2 && count < 16 && high > low) return ticks(low, high, 2 * count);
    const n = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return found.map((value) => ({ value, text: step < 1e-4 ? (value ? value.toExponential(0) : "0") : Math.abs(value) >= 10000 ? `${Number((value / 1000).toPrecision(3)).toLocaleString("en")}k` : value.toFixed(n) }));
  }
  const axisTicks = (low, high, count, unit) =>
    unit === "share" ? ticks(100 * low, 100 * high, count).map((t) => ({ value: t.value / 100, text: t.text })) : ticks(low, high, count);
  function domain(values, { zero = false, unit = "" } = {}) {
    const known = values.filter((v) => v !== null && v !== undefined);
    let [low, high] = [Math.min(...known), Math.max(...known)];
    if (zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
    if (low === high) [low, high] = zero ? [low, high || 1] : [low - Math.max(0.01, Math.abs(low) * 0.1), high + Math.max(0.01, Math.abs(high) * 0.1)];
    const pad = zero ? 0 : 0.05 * (high - low);
    if (unit === "share") return [Math.max(0, low - pad), Math.min(1, high + pad)];
    return [low - pad, high + pad];
  }
  const linear = (low, high, from, to) => (v) => from + ((v - low) / (high - low || 1)) * (to - from);

  // ------------------------------------------------------------------------------------------------- marks and labels

  const looks = Object.fromEntries(data.methods.map((name, i) => [name, name === data.base ? "base" : (i - (data.methods[0] === data.base ? 1 : 0)) % 8]));
  const SHAPES = {
    0: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
    1: "M-4.5,-4.5H4.5V4.5H-4.5Z",
    2: "M0,-5.6L5.6,4.4H-5.6Z",
    3: "M0,-6.2L6.2,0L0,6.2L-6.2,0Z",
    4: "M0,5.6L5.6,-4.4H-5.6Z",
    5: "M-2,-5.6H2V-2H5.6V2H2V5.6H-2V2H-5.6V-2H-2Z",
    6: "M-3.2,-5.5H3.2L6.2,0L3.2,5.5H-3.2L-6.2,0Z",
    7: "M0,-6.5L1.7,-2.2L6.2,-2L2.7,0.9L3.9,5.3L0,2.8L-3.9,5.3L-2.7,0.9L-6.2,-2L-1.7,-2.2Z",
    base: "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
  };
  const look = (method) => looks[method] ?? 0;
  const colour = (method) => `m-${look(method)}`;
  const symbol = (method, x, y, scale = 1) => s("path", { class: `sym ${look(method) === "base" ? "open" : ""} ${colour(method)}`, d: SHAPES[look(method)], transform: `translate(${x},${y}) scale(${scale})` });
  const key = (method) => s("svg", { class: `mark ${colour(method)}`, viewBox: "-8 -8 16 16", "aria-hidden": "true" }, s("path", { class: `sym ${look(method) === "base" ? "open" : ""}`, d: SHAPES[look(method)] }));
  for (const node of document.querySelectorAll("svg[data-mark]")) node.append(s("path", { class: `sym ${node.dataset.mark === "base" ? "open" : ""}`, d: SHAPES[node.dataset.mark] }));
  const legend = (methods) => h("ul", { class: "legend" }, methods.map((m) => h("li", {}, key(m), visible(m))));

  const ruler = document.createElement("canvas").getContext("2d");
  function measure(text, px = 12) {
    ruler.font = `${px}px ${getComputedStyle(document.body).fontFamily}`;
    return ruler.measureText(text).width;
  }
  function fitted(text, room, px = 12) {
    if (measure(text, px) <= room) return text;
    let [low, high] = [0, text.length];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (measure(`${text.slice(0, middle)}…`, px) <= room) low = middle;
      else high = middle - 1;
    }
    return `${text.slice(0, low)}…`;
  }
  const label = (text, x, y, room, attributes = {}) => s("text", { x, y, ...attributes }, s("title", {}, text), fitted(text, room));

  // ---------------------------------------------------------------------------------------------------------- charts

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
      const made = (o) => h("option", { value: o.value, selected: o.value === chosen }, visible(o.text));
      select.append(option.options ? h("optgroup", { label: visible(option.text) }, option.options.map(made)) : made(option));
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
        holder.append(figure(column.name, told(column), `${column.name}: ${words}`, (width) => rowsChart(width, rows, { unit: column.unit, reference })));
      }
    }
  }

  // ------------------------------------------------------------------------------------------------------- trade-off

  const axisName = (axis) => (axis.cost ? data.costs[axis.name].words : axis.name);
  const axisId = (axis) => `${axis.section}/${axis.cost ? "cost" : "metric"}/${axis.name}`;
  const sameSection = (a, b) => a.section === b.section;
  function placed(row, axis) {
    if (!axis.cost) return row.cells[axis.name];
    const value = row.cost[axis.name];
    return { value: value === undefined ? null : value, low: null, high: null };
  }
  const axisText = (cell, axis) => (axis.cost ? amount(cell.value, axis.unit) : bounded(cell, axis.unit));

  // On the front: no other is at least as good on both axes and better on one.
  function front(points, x, y) {
    const up = (point) => [x.better === "higher" ? point.x.value : -point.x.value, y.better === "higher" ? point.y.value : -point.y.value];
    return points.map((point) => {
      const [a, b] = up(point);
      return !points.some((other) => {
        const [c, d] = up(other);
        return c >= a && d >= b && (c > a || d > b);
      });
    });
  }

  function tradeoff() {
    const models = data.tradeoffs.filter((t) => t.chosen);
    if (!models.length) return false;
    let model = models[0];
    let [x, y] = model.chosen;
    const holder = byId("tradeoff");
    const show = (used = null) => {
      const groups = data.sections
        .map((section, i) => ({ text: section.name, options: model.axes.filter((a) => a.section === i).map((a) => ({ value: axisId(a), text: `${axisName(a)} ${way(a.better)}` })) }))
        .filter((group) => group.options.length);
      const pick = (id) => model.axes.find((a) => axisId(a) === id);
      const controls = h("div", { class: "controls" },
        models.length > 1 ? choice("Model", models.map((m) => ({ value: m.model, text: m.model })), model.model, (v) => { model = models.find((m) => m.model === v); [x, y] = model.chosen; show(0); }) : null,
        choice("Across", groups, axisId(x), (v) => { x = pick(v); show(models.length > 1 ? 1 : 0); }),
        choice("Up", groups, axisId(y), (v) => { y = pick(v); show(models.length > 1 ? 2 : 1); }));
      const points = [];
      const [across, up] = [data.sections[x.section], data.sections[y.section]];
      for (const i of across.measured) {
        const row = across.rows[i];
        const other = up.measured.map((j) => up.rows[j]).find((r) => r.key === row.key);
        if (!other) continue;
        const point = { key: row.key, method: row.method, label: visible(data.labels[row.key]), x: placed(row, x), y: placed(other, y), row: i };
        if (point.x.value !== null && point.y.value !== null) points.push(point);
      }
      front(points, x, y).forEach((on, i) => { points[i].front = on; });
      const title = (axis) => `${sameSection(x, y) ? "" : `${data.sections[axis.section].name}: `}${axisName(axis)}`;
      const words = points.map((p) => `${p.label}: ${axisText(p.x, x)} and ${axisText(p.y, y)}${p.front ? ", on the front" : ""}`).join("; ");
      const missing = across.measured.length - points.length;
      put(holder,
        controls,
        points.length
          ? figure("", "", `${title(x)} across, ${title(y)} up. ${words}`, (width) => scatter(width, points, x, y, title, across))
          : h("p", { class: "intro" }, "No configuration has a value on both axes."),
        legend(data.methods.filter((m) => points.some((p) => p.method === m))),
        missing && points.length ? h("p", { class: "intro" }, `${missing} of ${across.measured.length} configurations have no value on one of the axes and are not drawn.`) : null,
        asTable(["configuration", title(x), title(y), "on the front"], points.map((p) => [p.label, axisText(p.x, x), axisText(p.y, y), p.front ? "yes" : "no"])));
      if (used !== null) holder.querySelectorAll("select")[used].focus();
      redraw();
    };
    show();
    return true;
  }

  // (scale, ticks, whether it is logarithmic): what spans a factor of 20 and more is.
  function axisScale([low, high], values, unit, from, to, count) {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    if (unit === "share" || least <= 0 || most / least < 20) return [linear(low, high, from, to), axisTicks(low, high, count, unit), false];
    const [a, b] = [Math.log10(least) - 0.1, Math.log10(most) + 0.1];
    const scale = linear(a, b, from, to);
    const marks = [];
    for (let power = Math.floor(a); power <= b; power += 1) for (const m of b - a > 2.5 ? [1] : [1, 2, 5]) {
      const value = m * 10 ** power;
      if (Math.log10(value) >= a && Math.log10(value) <= b) marks.push({ value, text: String(Number(value.toPrecision(1))) });
    }
    return [(v) => scale(Math.log10(Math.max(v, 10 ** a))), marks, true];
  }

  function scatter(width, points, x, y, title, section) {
    const height = Math.round(Math.min(520, Math.max(300, width * 0.55)));
    const [left, right, top, bottom] = [46, width - 14, 34, height - 46];
    const extent = (axis, side) => domain(points.flatMap((p) => [p[side].value, p[side].low, p[side].high]), { unit: axis.unit });
    const [sx, tx, logX] = axisScale(extent(x, "x"), points.map((p) => p.x.value), x.unit, left + 10, right - 10, Math.max(3, width / 110));
    const [sy, ty, logY] = axisScale(extent(y, "y"), points.map((p) => p.y.value), y.unit, bottom - 10, top + 10, 5);
    const unit = (axis, log) => (axis.unit === "share" ? ", per cent" : axis.unit && axis.unit !== "number" ? `, ${axis.unit}` : "") + (log ? " (log scale)" : "");
    const parts = [
      ty.map((t) => [s("path", { class: "grid", d: `M${left},${sy(t.value)}H${right}` }), s("text", { class: "soft", x: left - 6, y: sy(t.value) + 4, "text-anchor": "end" }, t.text)]),
      bottomAxis(sx, tx, left, right, bottom),
      label(`${x.better === "lower" ? "← " : ""}${title(x)}${unit(x, logX)}${x.better === "higher" ? " →" : ""}`, (left + right) / 2, height - 8, right - left, { "text-anchor": "middle" }),
      label(`${y.better === "lower" ? "↓ " : "↑ "}${title(y)}${unit(y, logY)}`, 0, 14, width),
    ];
    const along = (a, b) => a.x.value - b.x.value;
    const staircase = points.filter((p) => p.front).sort(along);
    if (staircase.length > 1) {
      let d = `M${sx(staircase[0].x.value)},${sy(staircase[0].y.value)}`;
      for (const p of staircase.slice(1)) d += x.better === "lower" ? `H${sx(p.x.value)}V${sy(p.y.value)}` : `V${sy(p.y.value)}H${sx(p.x.value)}`;
      parts.push(s("path", { class: "front", d }));
    }
    for (const sweep of section.sweeps) {
      const path = sweep.rows.map((row) => points.find((p) => p.row === row)).filter(Boolean);
      if (path.length > 1) parts.push(s("g", { class: colour(sweep.method) }, s("path", { class: "path", d: `M${path.map((p) => `${sx(p.x.value)},${sy(p.y.value)}`).join("L")}` })));
    }
    for (const p of points) {
      const [px, py] = [sx(p.x.value), sy(p.y.value)];
      const d = (p.x.low === null ? "" : `M${sx(p.x.low)},${py}H${sx(p.x.high)}`) + (p.y.low === null ? "" : `M${px},${sy(p.y.low)}V${sy(p.y.high)}`);
      parts.push(s("g", { class: colour(p.method), opacity: "0.6" }, s("path", { class: "whisker", d })));
    }
    const taken = points.map((p) => ({ x: sx(p.x.value) - 6, y: sy(p.y.value) - 6, w: 12, h: 12 }));
    for (const p of points) parts.push(s("g", {}, s("title", {}, `${p.label}: ${axisText(p.x, x)}, ${axisText(p.y, y)}`), symbol(p.method, sx(p.x.value), sy(p.y.value), p.front ? 1.25 : 1)));
    const clash = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
    const corner = { x: x.better === "higher" ? right - 58 : left + 4, y: y.better === "higher" ? top - 2 : bottom - 18, w: 54, h: 14 };
    const toward = (x.better === "higher" ? "↗↘" : "↖↙")[y.better === "higher" ? 0 : 1];
    if (!taken.some((other) => clash(corner, other))) {
      taken.push(corner);
      parts.push(s("text", { class: "soft", x: corner.x, y: corner.y + 11 }, x.better === "higher" ? `better ${toward}` : `${toward} better`));
    }
    // Labels where there is room, those on the front first; the table and the tooltips have all.
    for (const p of [...points].sort((a, b) => b.front - a.front)) {
      const [px, py, w] = [sx(p.x.value), sy(p.y.value), measure(p.label)];
      const spots = [[px + 8, py - 22], [px - 8 - w, py - 22], [px + 8, py + 6], [px - 8 - w, py + 6], [px + 10, py - 8], [px - 10 - w, py - 8], [px - w / 2, py - 27], [px - w / 2, py + 11]];
      const spot = spots.map(([bx, by]) => ({ x: bx, y: by, w, h: 16 })).find((box) => box.x >= left && box.x + w <= width && box.y >= 18 && box.y + 16 <= bottom && !taken.some((other) => clash(box, other)));
      if (!spot) continue;
      taken.push(spot);
      parts.push(s("text", { class: "halo", x: spot.x, y: spot.y + 12 }, p.label));
    }
    return [height, parts];
  }

  // ------------------------------------------------------------------------------------------ categories, sweeps, cost

  const fullest = (found) => found.reduce((a, b) => (b.section.measured.length > a.section.measured.length ? b : a)); // of equals the first

  function categories() {
    const found = data.sections.flatMap((section, i) => section.groups.map((group, g) => ({ section, group, id: `${i}/${g}` }))).filter((f) => f.group.kind === "category");
    if (!found.length) return false;
    const holder = byId("category");
    let chosen = fullest(found);
    const show = () => {
      const { section, group } = chosen;
      const base = section.measured.filter((i) => section.rows[i].method === data.base);
      const own = base.length === 1 ? group.cells[base[0]] : null;
      const all = section.measured.flatMap((i) => group.cells[i]).filter(Boolean).flatMap((c) => [c.value, c.low, c.high]);
      const panels = section.measured.filter((i) => group.cells[i].some((c) => c && c.value !== null)).map((i) => {
        const row = section.rows[i];
        const words = group.parts.map((part, p) => `${part} ${bounded(group.cells[i][p], group.unit)}`).join("; ");
        const panel = figure(row.label, "", `${group.metric} of ${row.label} by part: ${words}`, (width) => partsChart(width, row, group, group.cells[i], own, domain(all, { zero: true, unit: group.unit })));
        panel.querySelector("figcaption").prepend(key(row.method));
        return panel;
      });
      put(holder,
        h("div", { class: "controls" }, choice("Suite and metric", found.map((f) => ({ value: f.id, text: `${f.section.name}: ${f.group.metric}` })), chosen.id, (v) => { chosen = found.find((f) => f.id === v); show(); holder.querySelector("select").focus(); })),
        h("p", { class: "intro" }, [visible(group.metric), told(group)].filter(Boolean).join(", ")),
        h("div", { class: "multiples" }, panels),
        asTable(["configuration", ...group.parts], section.measured.map((i) => [section.rows[i].label, ...group.cells[i].map((c) => bounded(c, group.unit))])));
      redraw();
    };
    show();
    return true;
  }

  function partsChart(width, row, group, cells, own, [low, high]) {
    const step = 20;
    const gutter = Math.min(Math.max(...group.parts.map((p) => measure(visible(p)))) + 10, width * 0.5);
    const [from, to, bottom] = [gutter, width - 8, group.parts.length * step + 4];
    const scale = linear(low, high, from, to);
    const parts = [bottomAxis(scale, axisTicks(low, high, Math.max(2, (to - from) / 60), group.unit), from, to, bottom)];
    group.parts.forEach((part, p) => {
      const [y, cell] = [p * step + 14, cells[p]];
      parts.push(label(visible(part), 0, y, gutter - 8));
      if (!cell || cell.value === null) parts.push(s("text", { class: "soft", x: from + 3, y }, "missing"));
      else {
        const x = Math.min(scale(0), scale(cell.value));
        parts.push(s("g", { class: colour(row.method) },
          s("rect", { class: "rect", x, y: y - 9, width: Math.max(1, Math.abs(scale(cell.value) - scale(0))), height: 11 })));
        if (cell.low !== null) parts.push(s("path", { class: "error", d: `M${scale(cell.low)},${y - 3.5}H${scale(cell.high)}` }));
      }
      if (own && own[p] && own[p].value !== null && row.method !== data.base) parts.push(s("path", { class: "tick", d: `M${scale(own[p].value)},${y - 11}v15` }));
    });
    return [bottom + 20, parts];
  }

  function sweeps() {
    const holder = byId("sweep");
    for (const section of data.sections) {
      for (const sweep of section.sweeps) {
        const base = section.measured.map((i) => section.rows[i]).filter((r) => r.method === data.base);
        const rows = sweep.rows.map((i) => section.rows[i]);
        const panels = section.columns.filter((c) => rows.some((r) => r.cells[c.name].value !== null)).map((column) => {
          const points = rows.map((row, i) => ({ at: sweep.values[i], ...row.cells[column.name] }));
          const reference = base.length === 1 ? base[0].cells[column.name] : null;
          const words = points.map((p) => `${p.at}: ${bounded(p, column.unit)}`).join("; ");
          return figure(column.name, told(column), `${column.name} against ${sweep.knob}. ${words}${reference ? `; base ${bounded(reference, column.unit)}` : ""}`,
            (width) => lineChart(width, [{ method: sweep.method, points }], { unit: column.unit, reference, across: sweep.knob }));
        });
        holder.append(
          h("h3", { class: "subhead" }, key(sweep.method), `${visible(sweep.method)}: ${visible(sweep.knob)}`, h("small", {}, ` on ${visible(section.name)}${sweep.fixed ? `, with ${visible(sweep.fixed)}` : ""}`)),
          h("div", { class: "multiples" }, panels),
          asTable([sweep.knob, ...section.columns.map((c) => c.name)], rows.map((row, i) => [String(sweep.values[i]), ...section.columns.map((c) => bounded(row.cells[c.name], c.unit))])));
      }
    }
    return holder.childElementCount > 0;
  }

  // Lines of points {at, value, low, high} over a number, with the base as a dashed line.
  function lineChart(width, lines, { unit, reference = null, across, marks = true, whole = false }) {
    const height = 190;
    const [left, right, top, bottom] = [40, width - 8, 8, height - 38];
    const all = lines.flatMap((line) => line.points);
    const at = all.map((p) => p.at);
    const bounds = [...all.flatMap((p) => [p.value, p.low, p.high]), ...(reference ? [reference.value, reference.low, reference.high] : [])];
    const [y0, y1] = domain(bounds, { unit });
    const [a, b] = [Math.min(...at), Math.max(...at)];
    const logarithmic = !whole && a > 0 && b / a >= 30;
    const place = logarithmic ? Math.log : (v) => v;
    const scale = linear(place(a), place(b) === place(a) ? place(a) + 1 : place(b), left + 8, right - 8);
    const [sx, sy] = [(v) => scale(place(v)), linear(y0, y1, bottom, top)];
    let told = whole ? axisTicks(a, b, Math.max(2, width / 80)).filter((t) => Number.isInteger(t.value)) : [...new Set(at)].sort((p, q) => p - q).map((value) => ({ value, text: String(Number(value.toPrecision(3))) }));
    let last = -Infinity;
    told = told.filter((t) => {
      const room = measure(t.text, 11) / 2 + 3;
      if (sx(t.value) - room < last) return false;
      last = sx(t.value) + room;
      return true;
    });
    const parts = [
      axisTicks(y0, y1, 4, unit).map((t) => [s("path", { class: "grid", d: `M${left},${sy(t.value)}H${right}` }), s("text", { class: "soft", x: left - 5, y: sy(t.value) + 4, "text-anchor": "end" }, t.text)]),
      bottomAxis(sx, told, left, right, bottom),
      s("text", { class: "soft", x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, `${visible(across)}${logarithmic ? " (log scale)" : ""}`),
    ];
    if (reference && reference.value !== null) {
      if (reference.low !== null) parts.push(s("rect", { class: "refband", x: left, width: right - left, y: sy(reference.high), height: Math.max(1, sy(reference.low) - sy(reference.high)) }));
      parts.push(s("path", { class: "ref", d: `M${left},${sy(reference.value)}H${right}` }));
    }
    for (const line of lines) {
      const known = line.points.filter((p) => p.value !== null);
      const banded = known.filter((p) => p.low !== null && p.low !== undefined);
      const path = (points, side) => points.map((p) => `${sx(p.at)},${sy(p[side])}`).join("L");
      parts.push(s("g", { class: colour(line.method) },
        banded.length > 1 ? s("path", { class: "band", d: `M${path(banded, "high")}L${path([...banded].reverse(), "low")}Z` }) : null,
        known.length > 1 ? s("path", { class: "line", d: `M${path(known, "value")}` }) : null));
      if (marks) for (const p of known) parts.push(s("g", {}, s("title", {}, `${p.at}: ${bounded({ low: null, ...p }, unit)}`), symbol(line.method, sx(p.at), sy(p.value), 0.85)));
    }
    return [height, parts];
  }

  function costs() {
    const found = data.sections.map((section, i) => ({ section, id: String(i) })).filter(({ section }) => section.measured.some((i) => Object.values(section.rows[i].cost).some((v) => v !== null)));
    if (!found.length) return false;
    const holder = byId("cost");
    let chosen = fullest(found);
    const show = () => {
      const { section } = chosen;
      const rows = section.measured.map((i) => section.rows[i]);
      const known = Object.entries(data.costs).filter(([name]) => rows.some((r) => r.cost[name] !== null && r.cost[name] !== undefined));
      const telling = known.filter(([name]) => new Set(rows.map((r) => r.cost[name])).size > 1);
      const rest = known.filter((k) => !telling.includes(k)).map(([name, c]) => `${c.words} ${amount(rows[0].cost[name], c.unit)}`);
      const panels = telling.map(([name, cost]) => {
        const bars = rows.map((row) => ({ label: visible(row.label), method: row.method, value: row.cost[name] ?? null, low: null, high: null, words: amount(row.cost[name], cost.unit) }));
        const room = Math.max(...bars.map((b) => measure(b.words, 11))) + 10;
        return figure(cost.words, `${cost.better} is better`, `${cost.words}: ${bars.map((b) => `${b.label} ${b.words}`).join("; ")}`, (width) => rowsChart(width, bars, { unit: "", bars: true, right: room }));
      });
      put(holder,
        h("div", { class: "controls" }, choice("In the runs of", found.map((f) => ({ value: f.id, text: f.section.name })), chosen.id, (v) => { chosen = found.find((f) => f.id === v); show(); holder.querySelector("select").focus(); })),
        h("div", { class: "multiples" }, panels),
        rest.length ? h("p", { class: "intro" }, `The same for all: ${rest.join("; ")}.`) : null,
        asTable(["configuration", ...known.map(([, c]) => c.words)], rows.map((row) => [row.label, ...known.map(([name, c]) => amount(row.cost[name], c.unit))])));
      redraw();
    };
    show();
    return true;
  }

  // ------------------------------------------------------------------------------------------ inside the model, the fit

  function fits() {
    const holder = byId("fit");
    for (const section of data.sections) {
      const groups = section.groups.filter((g) => g.kind === "layer");
      if (!groups.length) continue;
      const rows = section.measured.map((i) => ({ ...section.rows[i], i }));
      const panels = groups.map((group) => {
        const layers = group.parts.map((part) => Number(part.replace(/\D/g, "")));
        const lines = rows.map((row) => ({ method: row.method, label: row.label, points: group.cells[row.i].map((c, p) => ({ at: layers[p], value: c ? c.value : null })) })).filter((line) => line.points.some((p) => p.value !== null));
        const words = lines.map((line) => `${line.label}: ${line.points.map((p) => number(p.value, group.unit)).join(", ")}`).join("; ");
        return figure(group.metric, told(group), `${group.metric} by layer. ${words}`, (width) => lineChart(width, lines, { unit: group.unit, across: "layer", whole: true }));
      });
      holder.append(
        h("h3", { class: "subhead" }, "By layer", h("small", {}, ` ${visible(section.name)}`)),
        legend(data.methods.filter((m) => rows.some((r) => r.method === m))),
        h("div", { class: "multiples" }, panels),
        asTable(["metric and configuration", ...groups[0].parts], groups.flatMap((group) => rows.map((row) => [`${group.metric}, ${row.label}`, ...group.cells[row.i].map((c) => bounded(c, group.unit))]))));
    }
    if (data.curves.length) {
      const panel = (curve) => {
        const points = curve.values.map((value, i) => ({ at: i * curve.every, value }));
        const known = points.filter((p) => p.value !== null);
        const words = curve.kind === "layer" ? points.map((p) => `${p.at}: ${amount(p.value)}`).join("; ") : `from ${amount(known[0].value)} to ${amount(known.at(-1).value)} in ${curve.length} steps`;
        const note = `by ${curve.kind}${curve.every > 1 ? ` (every ${curve.every}th of ${curve.length})` : ""}`;
        const who = curve.labels.length > 2 ? `${curve.labels[0]} and ${curve.labels.length - 1} more` : curve.labels.join(", ");
        const node = figure(curve.name, `${who}, ${note}`, `${curve.labels.join(", ")}: ${curve.name} by ${curve.kind}: ${words}`,
          (width) => (curve.kind === "layer" ? columnChart(width, curve.method, points) : lineChart(width, [{ method: curve.method, points }], { unit: "number", across: "step", marks: false, whole: true })));
        node.querySelector("figcaption").prepend(key(curve.method));
        return node;
      };
      for (const [kind, words] of [["layer", "Recorded by layer"], ["step", "Recorded while fitting"]]) {
        const own = data.curves.filter((c) => c.kind === kind);
        if (!own.length) continue;
        const longest = Math.max(...own.map((c) => c.values.length));
        holder.append(h("h3", { class: "subhead" }, words), h("div", { class: "multiples" }, own.map(panel)),
          kind === "layer"
            ? asTable(["configuration", "list", ...Array.from({ length: longest }, (_, i) => String(i))], own.map((c) => [c.labels.join(", "), c.name, ...Array.from({ length: longest }, (_, i) => amount(c.values[i]))]))
            : asTable(["configuration", "list", "steps", "first", "lowest", "last"], own.map((c) => {
                const known = c.values.filter((v) => v !== null);
                return [c.labels.join(", "), c.name, String(c.length), amount(known[0]), amount(Math.min(...known)), amount(known.at(-1))];
              })));
      }
    }
    if (data.diagnostics.length) {
      holder.append(h("details", {}, h("summary", {}, "Single numbers that fits recorded"),
        columnsOf(["configuration", "name", "value"], data.diagnostics.flatMap((d) => Object.entries(d.values).map(([name, value]) => [d.label, name, typeof value === "number" ? amount(value) : value])))));
    }
    return holder.childElementCount > 0;
  }

  function columnChart(width, method, points) {
    const height = 170;
    const [left, right, top, bottom] = [40, width - 8, 8, height - 38];
    const [y0, y1] = domain(points.map((p) => p.value), { zero: true });
    const sy = linear(y0, y1, bottom, top);
    const step = (right - left) / points.length;
    const sx = (v) => left + (v + 0.5) * step;
    const marks = points.map((p) => ({ value: p.at, text: String(p.at) })).filter((_, i) => i % Math.ceil(points.length / ((right - left) / 26)) === 0);
    return [height, [
      axisTicks(y0, y1, 4).map((t) => [s("path", { class: "grid", d: `M${left},${sy(t.value)}H${right}` }), s("text", { class: "soft", x: left - 5, y: sy(t.value) + 4, "text-anchor": "end" }, t.text)]),
      bottomAxis(sx, marks, left, right, bottom),
      s("text", { class: "soft", x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, "layer"),
      points.filter((p) => p.value !== null).map((p) => s("g", { class: colour(method) }, s("rect", { class: "rect", x: sx(p.at) - Math.min(14, step * 0.35), width: Math.min(28, step * 0.7), y: Math.min(sy(0), sy(p.value)), height: Math.max(1, Math.abs(sy(p.value) - sy(0))) }, s("title", {}, `layer ${p.at}: ${amount(p.value)}`)))),
    ]];
  }

  // --------------------------------------------------------------------------------------------------- sample browser

  const PAGE = 12;
  const AT_ONCE = 2;
  const browser = byId("browser");
  const state = { section: 0, kind: "", methods: null, verdict: "", low: null, high: null, query: "", order: "asked", shown: PAGE, unfold: false };
  const KINDS = [["", "any"], ["toxic", "judged toxic"], ["civil", "judged not toxic"], ["missing", "not judged"], ["broken", "broken"], ["empty", "empty"], ["split", "methods disagree"]];

  for (const section of data.sections) section.blocks = [section.samples];
  const blocksOf = () => data.sections[state.section].blocks;

  // An output as it is stored, read: [row, seed, sample, text, stop, tokens, ...scores].
  function output(block, stored) {
    const score = (name) => { const i = block.columns.indexOf(name); return i < 0 ? null : stored[6 + i] ?? null; };
    const text = block.texts[stored[3]];
    const main = block.main === null || !text.trim() ? null : score(block.main);
    return { row: stored[0], seed: stored[1], sample: stored[2], text, lower: lowered(block)[stored[3]], stop: stored[4], tokens: stored[5], main, broken: score("broken") > 0.5 || score("main/degenerate") > 0.5, nll: score("nll"),
      scores: block.columns.map((name, i) => [name, stored[6 + i] ?? null]) };
  }
  const lowered = (block) => (block.lower ??= block.texts.map((text) => text.toLowerCase()));
  const verdictOf = (o) => (!o.text.trim() ? "empty" : o.main === null ? "missing" : o.main > data.toxic ? "toxic" : "civil");
  const folded = (o) => ["toxic", "missing"].includes(verdictOf(o));

  function matches(o) {
    if (state.verdict && state.verdict !== "split" && !(state.verdict === "broken" ? o.broken : verdictOf(o) === state.verdict)) return false;
    if (state.low !== null && !(o.main !== null && o.main >= state.low)) return false;
    if (state.high !== null && !(o.main !== null && o.main <= state.high)) return false;
    return true;
  }

  function found() {
    const query = state.query.trim().toLowerCase();
    const section = data.sections[state.section];
    const isShown = (row) => !state.methods || state.methods.has(row);
    const baseRow = section.rows.findIndex((r) => r.method === data.base);
    const hits = [];
    for (const block of blocksOf()) {
      block.requests.forEach(([id, record, kind, prompt], i) => {
        if (state.kind && kind !== state.kind) return;
        const own = block.outputs[i].map((stored) => output(block, stored)).filter((o) => isShown(o.row));
        if (!own.some(matches)) return;
        if (query && !prompt.toLowerCase().includes(query) && !own.some((o) => o.lower.includes(query))) return;
        if (state.verdict === "split" && new Set(own.map(verdictOf).filter((v) => v === "toxic" || v === "civil")).size < 2) return;
        const mains = own.map((o) => o.main).filter((v) => v !== null);
        const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
        const base = mean(own.filter((o) => o.row === baseRow && o.main !== null).map((o) => o.main));
        const gap = base === null ? Math.max(0, ...mains) - Math.min(1, ...mains) : Math.max(0, ...mains.map((v) => Math.abs(v - base)));
        hits.push({ id, record, kind, prompt, own, given: block.given, rank: state.order === "score" ? Math.max(-1, ...mains) : state.order === "gap" ? gap : 0 });
      });
    }
    if (state.order !== "asked") hits.sort((a, b) => b.rank - a.rank);
    return hits;
  }

  // The text with what was searched for marked; as text nodes.
  function marked(text) {
    const [shown, query] = [visible(text), state.query.trim().toLowerCase()];
    if (!query) return [shown];
    const parts = [];
    const lower = shown.toLowerCase();
    let from = 0;
    for (let at = lower.indexOf(query); at >= 0 && lower.length === shown.length; at = lower.indexOf(query, from)) {
      parts.push(shown.slice(from, at), h("mark", {}, shown.slice(at, at + query.length)));
      from = at + query.length;
    }
    return [...parts, shown.slice(from)];
  }

  function scoresLine(o) {
    const verdict = { toxic: "▲ toxic", civil: "○ not toxic", missing: "not judged", empty: "empty" }[verdictOf(o)];
    const known = Object.fromEntries(o.scores.filter(([, value]) => value !== null));
    const others = Object.entries(known).filter(([name, value]) => !["main/degenerate", "broken", "nll"].includes(name) && !name.endsWith("/tokens") && !(name.endsWith("/truncated") && !value) && !(name.startsWith("main/") && value === o.main))
      .map(([name, value]) => {
        const tokens = name.endsWith("/nll") ? known[name.replace(/nll$/, "tokens")] : null;
        const words = name.replace("main/", "").replace("/", " ");
        return tokens ? `${words.replace(/ ?nll$/, "")} ${(value / tokens).toFixed(2)} nats a token` : `${[...new Set(words.split(" "))].join(" ")} ${Number(value.toPrecision(3))}`;
      });
    return h("p", { class: "scores" }, o.stop === "given" ? null : [h("b", { class: `v ${verdictOf(o) === "toxic" ? "worse" : ""}` }, verdict), o.main === null ? "" : ` ${o.main.toFixed(2)}`],
      [o.broken ? "broken" : "", o.stop === "length" ? "cut off at the limit" : "", o.nll === null ? "" : `${(o.nll / Math.max(1, o.tokens)).toFixed(2)} nats a token`, ...others].filter(Boolean).map((text, i) => (i || o.stop !== "given" ? " · " : "") + visible(text)));
  }

  let numbered = 0;
  function foldable(o, words) {
    const body = () => h("p", { class: "text" }, o.text.trim() ? marked(o.text.trim()) : "(empty)");
    if (!folded(o) || state.unfold) return [body()];
    const id = `text-${(numbered += 1)}`;
    const place = h("div", { id });
    const button = h("button", { type: "button", class: "fold", "aria-expanded": "false", "aria-controls": id, on: { click: () => {
      const opened = place.childElementCount > 0;
      place.replaceChildren(...(opened ? [] : [body()]));
      button.setAttribute("aria-expanded", String(!opened));
      button.textContent = opened ? words : "Fold the text";
    } } }, words);
    return [button, place];
  }
  const foldWords = (o) => (verdictOf(o) === "toxic" ? "Show the text (judged toxic)" : "Show the text (not judged)");

  function sampleOf(o, seeds, many) {
    const which = [seeds ? `seed ${o.seed}` : "", many ? `sample ${o.sample + 1}` : ""].filter(Boolean).join(", ");
    return h("div", { class: "sample" }, which ? h("p", { class: "scores" }, which) : null, o.stop === "given" ? null : foldable(o, foldWords(o)), scoresLine(o));
  }

  function card(hit) {
    const section = data.sections[state.section];
    const rows = section.measured.filter((i) => hit.own.some((o) => o.row === i));
    const answers = rows.map((i) => {
      const own = hit.own.filter((o) => o.row === i).sort((a, b) => matches(b) - matches(a));
      const seeds = new Set(own.map((o) => o.seed)).size > 1;
      const many = new Set(own.map((o) => o.sample)).size > 1;
      const items = own.map((o) => sampleOf(o, seeds, many));
      const rest = items.slice(AT_ONCE);
      return h("div", { class: `answer ${colour(section.rows[i].method)}` }, h("h4", {}, h("span", {}, key(section.rows[i].method), visible(section.rows[i].label))), items.slice(0, AT_ONCE),
        rest.length ? h("details", {}, h("summary", {}, `${rest.length} more ${rest.length === 1 ? "sample" : "samples"}`), rest) : null);
    });
    return h("article", { class: "card" },
      h("h3", {}, `${visible(hit.kind)} · ${visible(hit.id)}`),
      hit.prompt ? h("p", { class: "prompt" }, marked(hit.prompt)) : null,
      hit.given ? h("div", { class: "sample" }, h("p", { class: "scores" }, "the text that is read after it"), foldable(hit.own[0], foldWords(hit.own[0]))) : null,
      h("div", { class: "answers" }, answers));
  }

  let cards = null;
  let status = null;
  let more = null;
  function show(from = 0) {
    const hits = found();
    const section = data.sections[state.section];
    const inside = new Set(blocksOf().flatMap((block) => block.requests.map((r) => r[1]))).size;
    const total = blocksOf().reduce((sum, block) => sum + block.requests.length, 0);
    const count = Math.min(state.shown, hits.length);
    status.textContent = `${hits.length.toLocaleString("en")} of ${total.toLocaleString("en")} prompts match${hits.length ? `, ${count} shown` : ""}.`;
    if (section.records > inside) status.textContent += ` Loaded: ${inside.toLocaleString("en")} of the ${section.records.toLocaleString("en")} records of these runs, evenly spread.`;
    if (!from) cards.replaceChildren();
    const added = hits.slice(from, count).map(card);
    cards.append(...added);
    more.hidden = count >= hits.length;
    if (from && added.length) {
      added[0].setAttribute("tabindex", "-1");
      added[0].focus();
    }
  }

  window.detoxbenchSamples = (index, digest, block) => {
    if (digest !== data.digest) return say(`${data.sections[index].side} belongs to another report: write both again.`);
    data.sections[index].blocks.push(block);
    data.sections[index].side = null;
    if (index === state.section) open();
  };
  let say = () => {};

  function sideFile(section) {
    const words = h("span", { role: "status" });
    say = (text) => { words.textContent = text; };
    const button = h("button", { type: "button", on: { click: () => {
      button.disabled = true;
      say("Loading…");
      document.head.append(h("script", { src: encodeURIComponent(section.side), on: { error: () => { button.disabled = false; say(`${section.side} is not beside this page: copy it there.`); } } }));
    } } }, `Load ${section.side_records.toLocaleString("en")} more records (${size(section.side_bytes)})`);
    return h("div", { class: "side" }, button, words);
  }

  function later(act) {
    let timer = 0;
    return () => { clearTimeout(timer); timer = setTimeout(act, 120); };
  }

  function open() {
    const section = data.sections[state.section];
    const again = () => { state.shown = PAGE; show(); };
    const kinds = [...new Set(blocksOf().flatMap((b) => b.requests.map((r) => r[2])))];
    if (!kinds.includes(state.kind)) state.kind = "";
    const judged = blocksOf().some((b) => b.main !== null);
    if (!judged) Object.assign(state, { verdict: "", low: null, high: null, order: "asked" });
    const rows = section.measured;
    const bound = (name, words) => {
      const input = h("input", { type: "number", min: "0", max: "1", step: "0.05", value: state[name] ?? "", "aria-label": `Score ${words}`, on: { input: later(() => { state[name] = input.value === "" ? null : Number(input.value); again(); }) } });
      return h("label", { class: "field" }, `Score ${words}`, input);
    };
    const search = h("input", { type: "search", value: state.query, placeholder: "in prompts and answers", on: { input: later(() => { state.query = search.value; again(); }) } });
    const unfold = h("input", { type: "checkbox", id: "unfold", checked: state.unfold, on: { change: () => { state.unfold = unfold.checked; show(); } } });
    status = h("p", { class: "status", role: "status" });
    cards = h("div", { id: "cards" });
    more = h("button", { type: "button", class: "more", on: { click: () => { const from = state.shown; state.shown += PAGE; show(from); } } }, "Show more");
    put(browser,
      h("div", { class: "controls" },
        choice("Suite", data.sections.map((other, i) => ({ value: String(i), text: other.name })), String(state.section), (v) => { Object.assign(state, { section: Number(v), methods: null, verdict: "", shown: PAGE }); open(); browser.querySelector("select").focus(); }),
        kinds.length > 1 ? choice("Category", [{ value: "", text: "all" }, ...kinds.map((k) => ({ value: k, text: k }))], state.kind, (v) => { state.kind = v; again(); }) : null,
        judged ? choice("Verdict", KINDS.filter(([value]) => value !== "broken" || blocksOf().some((b) => b.columns.includes("broken") || b.columns.includes("main/degenerate"))).map(([value, text]) => ({ value, text })), state.verdict, (v) => { state.verdict = v; again(); }) : null,
        judged ? bound("low", "from") : null,
        judged ? bound("high", "to") : null,
        judged ? choice("Order", [{ value: "asked", text: "as asked" }, { value: "gap", text: "furthest from the base" }, { value: "score", text: "highest score" }], state.order, (v) => { state.order = v; again(); }) : null,
        h("label", { class: "field wide" }, "Search", search)),
      h("fieldset", {}, h("legend", {}, "Methods"), h("div", { class: "chips" }, rows.map((i) => {
        const box = h("input", { type: "checkbox", value: String(i), checked: !state.methods || state.methods.has(i), on: { change: () => {
          state.methods ??= new Set(rows);
          if (box.checked) state.methods.add(i);
          else state.methods.delete(i);
          again();
        } } });
        return h("label", {}, box, h("span", {}, key(section.rows[i].method), visible(section.rows[i].label)));
      }))),
      h("div", { class: "chips" }, h("label", {}, unfold, "Show texts that were judged toxic, or not judged, without folding them")),
      section.side ? sideFile(section) : h("span", {}),
      status, cards, more);
    show();
  }

  byId("open").addEventListener("click", () => {
    byId("gate").hidden = true;
    browser.hidden = false;
    open();
    browser.querySelector("select").focus();
  });

  // ------------------------------------------------------------------------------------------------------------ page

  const THEMES = ["system", "light", "dark"];
  const remember = (value) => { try { localStorage.setItem("detoxbench-theme", value); } catch { /* private mode: not remembered */ } };
  let theme = "system";
  try { theme = localStorage.getItem("detoxbench-theme") || "system"; } catch { /* as above */ }
  function dress() {
    if (!THEMES.includes(theme)) theme = "system";
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
  }
  byId("theme").addEventListener("click", () => { theme = THEMES[(THEMES.indexOf(theme) + 1) % 3]; remember(theme); dress(); });
  dress();

  const sections = { tradeoffs: tradeoff, categories, sweeps, costs, fits };
  forests();
  for (const [id, make] of Object.entries(sections)) {
    const some = make();
    byId(id).hidden = !some;
    document.querySelector(`[data-needs="${id}"]`).hidden = !some;
  }
  redraw();

  const links = new Map([...document.querySelectorAll(".bar a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) for (const [id, link] of links) {
      if (id === entry.target.id) {
        link.setAttribute("aria-current", "true");
        link.closest("nav").scrollLeft = link.offsetLeft - 60;
      }
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const id of links.keys()) seen.observe(byId(id));
})();
