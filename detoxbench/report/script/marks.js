// The methods' colours and marks, and labels that fit.

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
