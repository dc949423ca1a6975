// Numbers in words, ticks of an axis.

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
const unitNote = (column) => `${column.unit === "share" ? "per cent" : ""}${column.unit === "share" && column.better !== "neither" ? ", " : ""}${column.better === "neither" ? "" : `${column.better} is better`}`;

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999) || power;
  const positions = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) positions.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  if (positions.length < 2 && count < 16 && high > low) return ticks(low, high, 2 * count);
  const n = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return positions.map((value) => ({ value, text: step < 1e-4 ? (value ? value.toExponential(0) : "0") : Math.abs(value) >= 10000 ? `${Number((value / 1000).toPrecision(3)).toLocaleString("en")}k` : value.toFixed(n) }));
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
