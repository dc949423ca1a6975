// Inside the model, and what fits recorded.

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
      return figure(group.metric, unitNote(group), `${group.metric} by layer. ${words}`, (width) => lineChart(width, lines, { unit: group.unit, across: "layer", whole: true }));
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
      const curves = data.curves.filter((c) => c.kind === kind);
      if (!curves.length) continue;
      const longest = Math.max(...curves.map((c) => c.values.length));
      holder.append(h("h3", { class: "subhead" }, words), h("div", { class: "multiples" }, curves.map(panel)),
        kind === "layer"
          ? asTable(["configuration", "list", ...Array.from({ length: longest }, (_, i) => String(i))], curves.map((c) => [c.labels.join(", "), c.name, ...Array.from({ length: longest }, (_, i) => amount(c.values[i]))]))
          : asTable(["configuration", "list", "steps", "first", "lowest", "last"], curves.map((c) => {
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
