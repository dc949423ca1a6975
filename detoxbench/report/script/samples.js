// The sample browser.

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

function matchingHits() {
  const query = state.query.trim().toLowerCase();
  const section = data.sections[state.section];
  const isShown = (row) => !state.methods || state.methods.has(row);
  const baseRow = section.rows.findIndex((r) => r.method === data.base);
  const hits = [];
  for (const block of blocksOf()) {
    block.requests.forEach(([id, record, kind, prompt], i) => {
      if (state.kind && kind !== state.kind) return;
      const outputs = block.outputs[i].map((stored) => output(block, stored)).filter((o) => isShown(o.row));
      if (!outputs.some(matches)) return;
      if (query && !prompt.toLowerCase().includes(query) && !outputs.some((o) => o.lower.includes(query))) return;
      if (state.verdict === "split" && new Set(outputs.map(verdictOf).filter((v) => v === "toxic" || v === "civil")).size < 2) return;
      const mains = outputs.map((o) => o.main).filter((v) => v !== null);
      const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
      const base = mean(outputs.filter((o) => o.row === baseRow && o.main !== null).map((o) => o.main));
      const gap = base === null ? Math.max(0, ...mains) - Math.min(1, ...mains) : Math.max(0, ...mains.map((v) => Math.abs(v - base)));
      hits.push({ id, record, kind, prompt, outputs, given: block.given, rank: state.order === "score" ? Math.max(-1, ...mains) : state.order === "gap" ? gap : 0 });
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
  const otherScores = Object.entries(known).filter(([name, value]) => !["main/degenerate", "broken", "nll"].includes(name) && !name.endsWith("/tokens") && !(name.endsWith("/truncated") && !value) && !(name.startsWith("main/") && value === o.main))
    .map(([name, value]) => {
      const tokens = name.endsWith("/nll") ? known[name.replace(/nll$/, "tokens")] : null;
      const words = name.replace("main/", "").replace("/", " ");
      return tokens ? `${words.replace(/ ?nll$/, "")} ${(value / tokens).toFixed(2)} nats a token` : `${[...new Set(words.split(" "))].join(" ")} ${Number(value.toPrecision(3))}`;
    });
  return h("p", { class: "scores" }, o.stop === "given" ? null : [h("b", { class: `v ${verdictOf(o) === "toxic" ? "worse" : ""}` }, verdict), o.main === null ? "" : ` ${o.main.toFixed(2)}`],
    [o.broken ? "broken" : "", o.stop === "length" ? "cut off at the limit" : "", o.stop === "missing" ? "no text was stored" : "", o.nll === null ? "" : `${(o.nll / Math.max(1, o.tokens)).toFixed(2)} nats a token`, ...otherScores].filter(Boolean).map((text, i) => (i || o.stop !== "given" ? " · " : "") + visible(text)));
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
  const rows = section.measured.filter((i) => hit.outputs.some((o) => o.row === i));
  const answers = rows.map((i) => {
    const outputs = hit.outputs.filter((o) => o.row === i).sort((a, b) => matches(b) - matches(a));
    const seeds = new Set(outputs.map((o) => o.seed)).size > 1;
    const many = new Set(outputs.map((o) => o.sample)).size > 1;
    const items = outputs.map((o) => sampleOf(o, seeds, many));
    const rest = items.slice(AT_ONCE);
    return h("div", { class: `answer ${colour(section.rows[i].method)}` }, h("h4", {}, h("span", {}, key(section.rows[i].method), visible(section.rows[i].label))), items.slice(0, AT_ONCE),
      rest.length ? h("details", {}, h("summary", {}, `${rest.length} more ${rest.length === 1 ? "sample" : "samples"}`), rest) : null);
  });
  return h("article", { class: "card" },
    h("h3", {}, `${visible(hit.kind)} · ${visible(hit.id)}`),
    hit.prompt ? h("p", { class: "prompt" }, marked(hit.prompt)) : null,
    hit.given ? h("div", { class: "sample" }, h("p", { class: "scores" }, "the text that is read after it"), foldable(hit.outputs[0], foldWords(hit.outputs[0]))) : null,
    h("div", { class: "answers" }, answers));
}

let cards = null;
let status = null;
let more = null;
function show(from = 0) {
  const hits = matchingHits();
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
