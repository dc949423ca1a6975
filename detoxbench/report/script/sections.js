// Categories, sweeps and costs.

const fullest = (choices) => choices.reduce((a, b) => (b.section.measured.length > a.section.measured.length ? b : a)); // of equals the first

function categories() {
  const choices = data.sections.flatMap((section, i) => section.groups.map((group, g) => ({ section, group, id: `${i}/${g}` }))).filter((f) => f.group.kind === "category");
  if (!choices.length) return false;
  const holder = byId("category");
  let chosen = fullest(choices);
  const show = () => {
    const { section, group } = chosen;
    const base = section.measured.filter((i) => section.rows[i].method === data.base);
    const baseCells = base.length === 1 ? group.cells[base[0]] : null;
    const all = section.measured.flatMap((i) => group.cells[i]).filter(Boolean).flatMap((c) => [c.value, c.low, c.high]);
    const panels = section.measured.filter((i) => group.cells[i].some((c) => c && c.value !== null)).map((i) => {
      const row = section.rows[i];
      const words = group.parts.map((part, p) => `${part} ${bounded(group.cells[i][p], group.unit)}`).join("; ");
      const panel = figure(row.label, "", `${group.metric} of ${row.label} by part: ${words}`, (width) => partsChart(width, row, group, group.cells[i], baseCells, domain(all, { zero: true, unit: group.unit })));
      panel.querySelector("figcaption").prepend(key(row.method));
      return panel;
    });
    put(holder,
      h("div", { class: "controls" }, choice("Suite and metric", choices.map((f) => ({ value: f.id, text: `${f.section.name}: ${f.group.metric}` })), chosen.id, (v) => { chosen = choices.find((f) => f.id === v); show(); holder.querySelector("select").focus(); })),
      h("p", { class: "intro" }, [visible(group.metric), unitNote(group)].filter(Boolean).join(", ")),
      h("div", { class: "multiples" }, panels),
      asTable(["configuration", ...group.parts], section.measured.map((i) => [section.rows[i].label, ...group.cells[i].map((c) => bounded(c, group.unit))])));
    redraw();
  };
  show();
  return true;
}

function partsChart(width, row, group, cells, baseCells, [low, high]) {
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
    if (baseCells && baseCells[p] && baseCells[p].value !== null && row.method !== data.base) parts.push(s("path", { class: "tick", d: `M${scale(baseCells[p].value)},${y - 11}v15` }));
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
        return figure(column.name, unitNote(column), `${column.name} against ${sweep.knob}. ${words}${reference ? `; base ${bounded(reference, column.unit)}` : ""}`,
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
  let tickMarks = whole ? axisTicks(a, b, Math.max(2, width / 80)).filter((t) => Number.isInteger(t.value)) : [...new Set(at)].sort((p, q) => p - q).map((value) => ({ value, text: String(Number(value.toPrecision(3))) }));
  let last = -Infinity;
  tickMarks = tickMarks.filter((t) => {
    const room = measure(t.text, 11) / 2 + 3;
    if (sx(t.value) - room < last) return false;
    last = sx(t.value) + room;
    return true;
  });
  const parts = [
    axisTicks(y0, y1, 4, unit).map((t) => [s("path", { class: "grid", d: `M${left},${sy(t.value)}H${right}` }), s("text", { class: "soft", x: left - 5, y: sy(t.value) + 4, "text-anchor": "end" }, t.text)]),
    bottomAxis(sx, tickMarks, left, right, bottom),
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
  const choices = data.sections.map((section, i) => ({ section, id: String(i) })).filter(({ section }) => section.measured.some((i) => Object.values(section.rows[i].cost).some((v) => v !== null)));
  if (!choices.length) return false;
  const holder = byId("cost");
  let chosen = fullest(choices);
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
      h("div", { class: "controls" }, choice("In the runs of", choices.map((f) => ({ value: f.id, text: f.section.name })), chosen.id, (v) => { chosen = choices.find((f) => f.id === v); show(); holder.querySelector("select").focus(); })),
      h("div", { class: "multiples" }, panels),
      rest.length ? h("p", { class: "intro" }, `The same for all: ${rest.join("; ")}.`) : null,
      asTable(["configuration", ...known.map(([, c]) => c.words)], rows.map((row) => [row.label, ...known.map(([name, c]) => amount(row.cost[name], c.unit))])));
    redraw();
  };
  show();
  return true;
}
