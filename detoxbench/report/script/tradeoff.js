// Points of the trade-off, on axes that the reader chooses.

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
