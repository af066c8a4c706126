"use strict";
// The token viewer: the answers to one prompt side by side, one of them current. The address holds which.
const VIEW = { source: null, prompt: 0, place: 0, kind: "", token: -1 };
const CONTROL = Object.fromEntries(
  ["source", "verdict", "flag", "place", "kind", "shade", "prompt"].map((id) => [id, document.getElementById(id)]));
const SIGNALS = { entropy: "entropy", self_certainty: "self-certainty", logprob: "log-probability" };

const CUT = 800; // tokens of an answer that is not the chosen one: more than fit into its card

// Without a reference answer nobody knows what is right; undecided is what could not be judged in time.
function verdict(answer) {
  if (answer.r !== null) return answer.r ? "right" : "wrong";
  return VIEW.source.prompts[answer.p].answer === undefined ? "no label" : "undecided";
}

function flags(answer) {
  return [...answer.g, ...(answer.o === "length" ? ["cut off"] : []), ...(answer.f ? [] : ["unformatted"])];
}

// The family of a way to draw: "training 3" is of "training".
function family(kind) {
  return kind.split(" ")[0] === "training" ? "training" : kind;
}

function ofPrompt(prompt) {
  return VIEW.source.byPrompt.get(prompt) || [];
}

function indexed(source) {
  source.byPrompt = new Map();
  for (const one of source.answers) {
    if (!source.byPrompt.has(one.p)) source.byPrompt.set(one.p, []);
    source.byPrompt.get(one.p).push(one);
  }
}

function passes(answer) {
  const wanted = CONTROL.verdict.value;
  return (!wanted || wanted === "flipped" || verdict(answer) === wanted)
    && (!CONTROL.flag.value || flags(answer).includes(CONTROL.flag.value))
    && (!CONTROL.place.value || String(answer.s) === CONTROL.place.value)
    && (!CONTROL.kind.value || family(answer.k) === CONTROL.kind.value);
}

// Whether a prompt has an answer that passes; flipped: right at one place and wrong at another, drawn in the same way.
function promptPasses(prompt) {
  const answers = ofPrompt(prompt).filter(passes);
  if (CONTROL.verdict.value !== "flipped") return answers.length > 0;
  return answers.some((a) => a.r === true && answers.some((b) => b.r === false && b.k === a.k));
}

function shownAnswers() {
  const kind = CONTROL.kind.value;
  return ofPrompt(VIEW.prompt)
    .filter((one) => !kind || family(one.k) === kind)
    .sort((a, b) => a.s - b.s || a.k.localeCompare(b.k, "en", { numeric: true }));
}

function current() {
  const answers = shownAnswers();
  return answers.find((one) => one.s === VIEW.place && one.k === VIEW.kind)
    || answers.find((one) => one.s === VIEW.place) || answers.find(passes) || answers[0];
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => {
    const option = make("option", { value }, text);
    option.selected = String(value) === String(chosen);
    return option;
  }));
}

function short(text, most) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > most ? `…${line.slice(line.length - most + 1)}` : line;
}

// 0 (sure) to 1 (unsure) for a token's signal, in nats.
function unsure(name, nats) {
  const [low, high] = VIEW.source.ranges[name];
  if (name === "entropy") return Math.sqrt(Math.min(1, nats / 3));
  if (name === "logprob") return Math.sqrt(Math.min(1, -nats / 3));
  return Math.min(1, Math.max(0, (high - nats) / (high - low)));
}

function shade(span, answer, i) {
  const name = CONTROL.shade.value;
  const value = answer.v ? answer.v[name][i] : null;
  if (value !== null) span.style.setProperty("--u", unsure(name, value / PAGE.scales[name]).toFixed(3));
}

// The tokens as elements, ``most`` of them.
function tokenSpans(answer, most) {
  const words = new Set();
  for (const [first, end] of answer.w) for (let i = first; i < end; i++) words.add(i);
  return answer.t.slice(0, most).map((text, i) => {
    const span = make("span", { "data-i": i }, text);
    if (words.has(i)) span.className = "word";
    shade(span, answer, i);
    return span;
  });
}

function placeName(answer) {
  const place = VIEW.source.places[answer.s];
  return VIEW.source.axis === "step" ? `step ${place}` : place;
}

function facts(answer) {
  const said = [verdict(answer), answer.f ? "formatted" : "not formatted"];
  if (answer.x !== null) said.push(`read as ${short(answer.x, 40)}`);
  said.push(`${answer.n} tokens`, ...answer.g, ...(answer.o === "length" ? ["cut off"] : []));
  for (const [name, words] of Object.entries(SIGNALS)) if (answer.m[name] !== null) said.push(`${words} ${answer.m[name].toFixed(3)}`);
  if (answer.a !== undefined) said.push(`advantage ${answer.a}`);
  return said;
}

function card(answer) {
  const said = facts(answer);
  const line = make("p", { class: "facts" }, make("strong", { class: said[0].replace(" ", "-") }, said[0]), `, ${said.slice(1).join(", ")}`);
  const title = `${placeName(answer)}, ${answer.k}`;
  const node = make("article", { class: "card", tabindex: "-1", "aria-label": `${title}: ${said.join(", ")}` },
    make("h3", {}, title), line, make("p", { class: "tokens", dir: "auto" }, ...tokenSpans(answer, CUT)));
  node.answer = answer;
  return node;
}

function tellToken(answer, i) {
  const said = i < 0 || !answer.v ? "" : Object.entries(SIGNALS)
    .map(([name, words]) => [words, answer.v[name][i] / PAGE.scales[name]])
    .map(([words, nats]) => `${words} ${nats.toFixed(3)}`).join(", ");
  const text = said ? `token ${i + 1} of ${answer.t.length}, “${answer.t[i].replace(/\n/g, "⏎")}”: ${said} nats` : "";
  document.getElementById("token").textContent = text;
  for (const one of document.querySelectorAll(".tokens .here")) one.classList.remove("here");
}

function showToken(node, i) {
  tellToken(node.answer, i);
  const span = node.querySelector(`[data-i="${i}"]`);
  if (!span) return;
  span.classList.add("here");
  span.scrollIntoView({ block: "nearest" });
}

function address() {
  const prompt = VIEW.source.prompts[VIEW.prompt], answer = current();
  const parts = { prompt: prompt.id };
  if (answer) Object.assign(parts, { [VIEW.source.axis]: VIEW.source.places[answer.s], drawn: answer.k });
  if (PAGE.sources.length > 1) parts.of = VIEW.source.label;
  return `#${new URLSearchParams(parts)}`;
}

function markCurrent(focus) {
  const chosen = current();
  for (const node of document.querySelectorAll(".card")) {
    const here = node.answer === chosen;
    node.setAttribute("aria-current", String(here));
    node.tabIndex = here ? 0 : -1;
    const tokens = node.querySelector(".tokens");
    if (here && tokens.children.length < node.answer.t.length) tokens.replaceChildren(...tokenSpans(node.answer, Infinity));
    if (here && focus) node.focus({ preventScroll: false });
  }
}

function showPrompt() {
  const prompt = VIEW.source.prompts[VIEW.prompt];
  const asked = document.getElementById("asked");
  asked.replaceChildren(prompt ? prompt.text : "No answer passes these filters.");
  if (prompt && prompt.answer !== undefined) asked.append(make("div", { class: "note" }, `reference answer: ${prompt.answer}`));
}

function show({ focus = false, move = true } = {}) {
  const prompts = VIEW.source.prompts.map((_, i) => i).filter(promptPasses);
  if (move && !prompts.includes(VIEW.prompt)) VIEW.prompt = prompts.length ? prompts[0] : -1;
  const entry = (i) => [i, `${VIEW.source.prompts[i].of_evaluation ? "" : "training: "}${short(VIEW.source.prompts[i].text, 90)}`];
  options(CONTROL.prompt, prompts.map(entry), VIEW.prompt);
  document.getElementById("count").textContent = `${prompts.length} of ${VIEW.source.prompts.length} prompts, `
    + `${VIEW.source.answers.filter(passes).length} of ${VIEW.source.answers.length} answers pass the filters`;
  showPrompt();
  document.getElementById("cards").replaceChildren(...shownAnswers().map(card));
  showLegend();
  markCurrent(focus);
  tellToken({}, -1);
}

function showLegend() {
  const name = CONTROL.shade.value;
  const [low, high] = VIEW.source.ranges[name];
  const [sure, least] = name === "self_certainty" ? [`${high.toFixed(1)} nats or more`, `${low.toFixed(1)} or less`]
    : name === "entropy" ? ["0 nats", "3 or more"] : ["0 nats", "−3 or less"];
  const known = VIEW.source.answers.some((one) => one.v);
  for (const node of document.querySelectorAll(".of-tokens")) node.hidden = !known;
  document.getElementById("legend").replaceChildren(...(known
    ? [`${SIGNALS[name]} of a token: ${sure}`, make("i"), least]
    : ["No signal of single tokens was kept here."]));
}

function choose(answer, focus) {
  VIEW.place = answer.s;
  VIEW.kind = answer.k;
  VIEW.token = -1;
  markCurrent(focus);
  history.replaceState(null, "", address());
}

function otherPrompt(by) {
  const values = [...CONTROL.prompt.options].map((one) => Number(one.value));
  const next = values[values.indexOf(VIEW.prompt) + by];
  if (next === undefined) return;
  VIEW.prompt = next;
  show({ focus: true });
  history.replaceState(null, "", address());
}

function otherAnswer(by) {
  const answers = shownAnswers();
  const next = answers[answers.indexOf(current()) + by];
  if (next) choose(next, true);
}

function otherToken(by) {
  const node = document.querySelector('.card[aria-current="true"]');
  VIEW.token = Math.min(node.answer.t.length - 1, Math.max(0, VIEW.token + by));
  showToken(node, VIEW.token);
}

const KEYS = {
  ArrowLeft: () => otherAnswer(-1), ArrowRight: () => otherAnswer(1),
  ArrowUp: () => otherPrompt(-1), ArrowDown: () => otherPrompt(1),
  "[": () => otherToken(-1), "]": () => otherToken(1),
};

function setSource(source) {
  VIEW.source = source;
  VIEW.prompt = VIEW.place = 0;
  const last = source.axis === "step" ? "step by step" : "model by model";
  document.getElementById("places-are").textContent = last;
  for (const node of [document.getElementById("place-word"), ...document.querySelectorAll(".place-word")]) node.textContent = source.axis;
  options(CONTROL.place, [["", "any"], ...source.places.map((place, i) => [i, place])], "");
  const kinds = [...new Set(source.answers.map((one) => family(one.k)))].sort();
  options(CONTROL.kind, [["", "in any way"], ...kinds.map((kind) => [kind, kind])], kinds.includes("greedy") ? "greedy" : "");
}

function clearFilters() {
  for (const control of [CONTROL.verdict, CONTROL.flag, CONTROL.place, CONTROL.kind]) control.value = "";
}

// What an address asks for, as far as it is here; false if it names no prompt of this page.
function follow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!asked.has("prompt")) return false;
  const wanted = PAGE.sources.filter((one) => !asked.has("of") || one.label === asked.get("of"));
  const place = (source) => source.places.indexOf(asked.get(source.axis));
  const fits = (source, prompt) => source.prompts[prompt].id === asked.get("prompt");
  for (const source of wanted) {
    const answers = source.answers.filter((one) => fits(source, one.p));
    if (!answers.length) continue;
    const answer = answers.find((one) => one.s === place(source) && one.k === asked.get("drawn"))
      || answers.find((one) => one.s === place(source) && one.k === "greedy")
      || answers.find((one) => one.s === place(source)) || answers[0];
    setSource(source);
    CONTROL.source.value = String(PAGE.sources.indexOf(source));
    clearFilters();
    if (family(answer.k) === answer.k) CONTROL.kind.value = answer.k;
    Object.assign(VIEW, { prompt: answer.p, place: answer.s, kind: answer.k });
    show();
    document.getElementById("answers").scrollIntoView();
    return true;
  }
  return false;
}

function setUpViewer() {
  PAGE.sources.forEach(indexed);
  options(CONTROL.source, PAGE.sources.map((source, i) => [i, source.label]), 0);
  CONTROL.source.parentNode.hidden = PAGE.sources.length < 2;
  CONTROL.source.addEventListener("change", () => { setSource(PAGE.sources[Number(CONTROL.source.value)]); show(); });
  for (const control of [CONTROL.verdict, CONTROL.flag, CONTROL.place, CONTROL.kind, CONTROL.shade]) {
    control.addEventListener("change", () => show());
  }
  CONTROL.prompt.addEventListener("change", () => {
    VIEW.prompt = Number(CONTROL.prompt.value);
    show();
    history.replaceState(null, "", address());
  });
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  const cards = document.getElementById("cards");
  const at = (event) => event.target.closest(".tokens span");
  cards.addEventListener("click", (event) => {
    const node = event.target.closest(".card");
    if (node) choose(node.answer, false);
    if (at(event)) { VIEW.token = Number(at(event).dataset.i); showToken(node, VIEW.token); }
  });
  cards.addEventListener("pointerover", (event) => {
    if (at(event)) tellToken(event.target.closest(".card").answer, Number(at(event).dataset.i));
  });
  cards.addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  window.addEventListener("hashchange", follow);
  setSource(PAGE.sources[0]);
  if (!follow()) show();
}

if (PAGE.sources.length) setUpViewer();
