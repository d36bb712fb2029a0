// The playground. Whatever comes from a server or a file is put in as text, never as markup.
"use strict";
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let models = [], model = null, stop = null, samples = [];

// An element with attributes and children; texts become text nodes.
const el = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true || (value !== false && value != null)) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(child => child != null));
  return made;
};
const say = text => { $("said").textContent = text; };
const key = () => sessionStorage.getItem("key");
const shown = value => typeof value === "number" ? String(+value.toPrecision(5)) : value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);

// ---- asking ----
async function ask(path, body, { signal, headers } = {}) {
  const given = { ...headers };
  if (key()) given.authorization = "Bearer " + key();
  if (body !== undefined) given["content-type"] = "application/json";
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers: given, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  if (answer.status === 401) { $("keyform").hidden = false; }
  if (!answer.ok) {
    const text = await answer.text();
    let message = text;
    try { const error = JSON.parse(text).error; message = typeof error === "string" ? error : error.message; } catch { /* plain text */ }
    throw new Error(`${answer.status}: ${message}`);
  }
  return answer;
}
async function timed(body, path = model.path + model.endpoint) {
  const start = performance.now();
  const found = await (await ask(path, body)).json();
  note({ ms: performance.now() - start, version: found.version });
  return found;
}
// A form whose submission runs `work`, with its error beside it and its button off meanwhile.
function form(work, button, ...children) {
  const wrong = el("p", { class: "wrong", role: "alert" }), send = el("button", {}, button);
  const made = el("form", { class: "card", submit: async event => {
    event.preventDefault();
    wrong.textContent = ""; send.disabled = true;
    try { await work(made); } catch (error) { wrong.textContent = error.name === "AbortError" ? "stopped" : error.message; }
    send.disabled = false;
  } }, ...children);
  const last = children.at(-1);
  (last && last.className === "row" ? last : made.appendChild(el("div", { class: "row" }))).prepend(send);
  made.append(wrong);
  return made;
}
const field = (label, input, wide) => el("label", { class: wide ? "wide" : null }, label, input);
const number = (name, value, more = {}) => el("input", { name, type: "number", value, ...more });
const base64 = file => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(new Error("the file cannot be read"));
  reader.readAsDataURL(file);
});

// ---- tables ----
const WIDE = new Set(["text", "sequence", "vector", "characters", "image", "audio", "audio_frames"]);
const FILES = { image: "image/*", audio: "audio/*", audio_frames: "audio/*" };
function control(feature, value) {
  const text = value == null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  if (FILES[feature.kind]) return el("input", { type: "file", accept: FILES[feature.kind] });
  if (feature.kind === "numeric") return el("input", { type: "number", step: "any", value: text });
  if (feature.kind === "boolean") {
    const select = el("select", {}, ...["true", "false", ""].map(v => el("option", { value: v }, v || "missing")));
    select.value = text;
    return select;
  }
  if (WIDE.has(feature.kind)) { const area = el("textarea", { class: feature.kind === "text" ? null : "code" }); area.value = text; return area; }
  return el("input", { type: "text", value: text });
}
// What was written, as the feature's kind wants it; nothing is a missing value.
function parsed(kind, text, example) {
  if (text === "") return null;
  if (kind === "numeric") return Number.isNaN(Number(text)) ? text : Number(text);
  if (kind === "boolean") return text === "true" ? true : text === "false" ? false : text;
  if (kind === "sequence" || kind === "vector") { try { return JSON.parse(text); } catch { throw new Error(`${JSON.stringify(text.slice(0, 40))} is not a JSON list`); } }
  if (kind === "categorical" && typeof example === "number" && !Number.isNaN(Number(text))) return Number(text);
  if (kind === "categorical" && typeof example === "boolean") return text === "true" ? true : text === "false" ? false : text;
  return text;
}
async function rowOf(controls, example) {
  const row = Object.create(null);
  for (const [feature, input] of controls) {
    if (input.type === "file") row[feature.name] = input.files[0] ? await base64(input.files[0]) : example[feature.name] ?? null;
    else row[feature.name] = parsed(feature.kind, input.value, example[feature.name]);
  }
  return row;
}
function predictPanel() {
  const example = model.example.rows[0], answer = el("div", { "aria-live": "polite" });
  const controls = model.features.map(feature => [feature, control(feature, example[feature.name])]);
  const many = controls.length > 24;
  const fields = el("div", { class: many ? "fields many" : "fields", ...(many ? { tabindex: 0, role: "group", "aria-label": "features" } : {}) },
    ...controls.map(([feature, input]) => field(feature.name, input, WIDE.has(feature.kind))));
  const ran = form(async () => {
    const found = await timed({ rows: [await rowOf(controls, example)] });
    answer.replaceChildren(predicted(found));
  }, "Predict", el("h3", {}, "One row"), fields);
  return [ran, answer, csvPanel(example)];
}
function predicted(found) {
  const value = found.predictions[0], likely = found.probabilities && found.probabilities[0];
  const card = el("section", { class: "card", "aria-label": "Answer" });
  const text = Array.isArray(value) ? value.map(shown).join(", ") || "none" : shown(value);
  card.append(el("p", { class: "answer" }, text.length > 400 ? text.slice(0, 400) + " …" : text, el("small", {}, `version ${shown(found.version ?? null)}`)));
  if (likely && Object.values(likely).every(p => typeof p === "number")) card.append(bars(likely));
  if (Array.isArray(value) && value.length > 1 && value.every(v => typeof v === "number")) card.append(plot(value));
  if (found.quantiles) card.append(grid([found.quantiles[0]].map(q => Object.fromEntries(Object.entries(q).map(([k, v]) => [k, shown(v)])))));
  card.append(el("details", {}, el("summary", {}, "JSON"), el("pre", { tabindex: 0 }, JSON.stringify(found, null, 1).slice(0, 20000))));
  return card;
}
function bars(likely) {
  const sorted = Object.entries(likely).sort((a, b) => b[1] - a[1]).slice(0, 12);
  return el("table", { class: "bars", "aria-label": "Probabilities" }, ...sorted.map(([name, p], i) => {
    const bar = el("span", { class: "bar" });
    bar.style.width = `${100 * p}%`;
    return el("tr", { class: i ? null : "best" }, el("th", { scope: "row" }, name), el("td", {}, bar), el("td", {}, p.toFixed(3)));
  }));
}
function grid(rows, most = 50) {
  const columns = [...new Set(rows.slice(0, most).flatMap(row => Object.keys(row)))];
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Rows" }, el("table", {},
    el("thead", {}, el("tr", {}, ...columns.map(c => el("th", { scope: "col" }, c)))),
    el("tbody", {}, ...rows.slice(0, most).map(row => el("tr", {}, ...columns.map(c => el("td", {}, shown(row[c] ?? null))))))));
}
// ---- CSV ----
function readCsv(text) {
  const rows = []; let row = [], cell = "", quoted = false;
  const separator = (text.split("\n", 1)[0].match(/;/g) || []).length > (text.split("\n", 1)[0].match(/,/g) || []).length ? ";" : ",";
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) { if (c !== '"') cell += c; else if (text[i + 1] === '"') { cell += '"'; i++; } else quoted = false; }
    else if (c === '"' && cell === "") quoted = true;
    else if (c === separator) { row.push(cell); cell = ""; }
    else if (c === "\n" || c === "\r") { if (c === "\r" && text[i + 1] === "\n") i++; row.push(cell); cell = ""; rows.push(row); row = []; }
    else cell += c;
  }
  if (cell !== "" || row.length) { row.push(cell); rows.push(row); }
  const [head, ...rest] = rows.filter(r => r.length > 1 || r[0] !== "");
  if (!head) throw new Error("the file is empty");
  return rest.map(cells => Object.fromEntries(head.map((name, i) => [name.replace(/^\uFEFF/, ""), cells[i] ?? ""])));
}
const writeCsv = rows => [Object.keys(rows[0]), ...rows.map(Object.values)].map(cells => cells.map(v => {
  const text = v === null ? "" : typeof v === "object" ? JSON.stringify(v) : String(v);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}).join(",")).join("\n") + "\n";
function csvPanel(example) {
  const file = el("input", { type: "file", accept: ".csv,text/csv" }), answer = el("div", { "aria-live": "polite" });
  return form(async () => {
    if (!file.files[0]) throw new Error("choose a file first");
    const rows = readCsv(await file.files[0].text()), features = model.features, out = [];
    const lacking = features.map(f => f.name).filter(name => rows.length && !(name in rows[0]));
    if (!rows.length || lacking.length) throw new Error(rows.length ? `the file lacks: ${lacking.join(", ")}` : "the file has no rows");
    for (let at = 0; at < rows.length; at += 1000) {
      const part = rows.slice(at, at + 1000);
      const found = await timed({ rows: part.map(row => Object.fromEntries(features.map(f => [f.name, parsed(f.kind, row[f.name], example[f.name])]))) });
      part.forEach((row, i) => out.push({ ...row, prediction: found.predictions[i], ...Object.fromEntries(Object.entries((found.probabilities || [])[i] || {}).map(([c, p]) => [`probability_${c}`, p])) }));
      say(`${out.length} of ${rows.length} rows`);
    }
    const link = el("a", { href: URL.createObjectURL(new Blob([writeCsv(out)], { type: "text/csv" })), download: "predictions.csv" }, "predictions.csv");
    const first = out.map(row => ({ prediction: row.prediction, ...row }));
    answer.replaceChildren(el("p", {}, `${out.length} rows: `, link), grid(first, 20));
  }, "Predict rows", el("h3", {}, "A CSV file"), field("File with the columns above", file), el("div", { class: "row" }), answer);
}

// ---- texts ----
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/gm, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message ?? event.error);
      yield event;
    }
  }
}
async function streamed(path, body, write) {
  stop = new AbortController();
  const start = performance.now();
  let first = 0, parts = 0;
  try {
    for await (const event of events(await ask(model.path + path, { ...body, model: model.name, stream: true }, { signal: stop.signal }))) {
      if (!first) { first = performance.now() - start; note({ ms: first, version: event.version }); }
      parts++;
      const choice = (event.choices || [])[0] || {};
      write(choice.delta ? choice.delta.content || "" : choice.text || "");
    }
  } finally { stop = null; }
  say(`first token after ${Math.round(first)} ms, ${parts} parts in ${((performance.now() - start) / 1000).toFixed(1)} s`);
}
function textPanel() {
  const limit = number("max", 200, { min: 1, max: 100000 }), heat = number("heat", 0.8, { min: 0, max: 2, step: 0.1 }), seed = number("seed", "", { min: 0 });
  const settings = () => ({ max_tokens: Number(limit.value) || 16, temperature: Number(heat.value), ...(seed.value === "" ? {} : { seed: Number(seed.value) }) });
  const row = el("div", { class: "row" }, el("button", { type: "button", class: "quiet", click: () => stop && stop.abort() }, "Stop"),
    field("Tokens", limit), field("Temperature", heat), field("Seed", seed));
  const input = el("textarea", {}), talk = el("ol", { class: "talk", "aria-label": "Conversation", "aria-live": "polite" }), messages = [];
  const chat = model.chat === true;
  input.value = chat ? "" : model.example.prompt ?? "";
  input.addEventListener("keydown", event => { if (event.key === "Enter" && !event.shiftKey && chat) { event.preventDefault(); input.form.requestSubmit(); } });
  const line = (who, text) => { const said = el("span", {}, text); talk.append(el("li", { class: who }, el("small", {}, who), said)); return said; };
  const ran = form(async () => {
    const text = input.value;
    if (!chat) {
      talk.replaceChildren();
      const said = line("completion", text);
      await streamed("/v1/completions", { prompt: text, ...settings() }, part => said.append(part));
      return;
    }
    if (!text.trim()) throw new Error("write something first");
    messages.push({ role: "user", content: text });
    line("user", text); input.value = "";
    const said = line("assistant", "");
    try { await streamed("/v1/chat/completions", { messages, ...settings() }, part => said.append(part)); }
    finally { messages.push({ role: "assistant", content: said.textContent }); }
  }, chat ? "Send" : "Complete", el("h3", {}, chat ? "Chat" : "Completion"), field(chat ? "Message" : "Prompt", input, true), row);
  return [el("section", { class: "card talkcard", "aria-label": "Texts" }, talk), ran];
}

// ---- generators ----
function rowsPanel() {
  const answer = el("div", { "aria-live": "polite" }), images = model.task === "images";
  const count = number("rows", images ? 12 : 10, { min: 1, max: 1000 }), seed = number("seed", 0, { min: 0 });
  const where = model.conditions || [], given = model.example.where || {};
  const controls = where.map(name => [name, el("input", { type: "text", value: given[name] ?? "", placeholder: "any" })]);
  const ran = form(async () => {
    const chosen = controls.filter(([, input]) => input.value !== "").map(([name, input]) => [name, parsed("categorical", input.value, given[name])]);
    const found = await timed({ rows: Number(count.value), ...(seed.value === "" ? {} : { seed: Number(seed.value) }), ...(chosen.length ? { where: Object.fromEntries(chosen) } : {}) });
    const picture = images && Object.keys(found.rows[0]).find(name => typeof found.rows[0][name] === "string" && /^[A-Za-z0-9+/]+=*$/.test(found.rows[0][name]) && found.rows[0][name].length > 60);
    const made = picture ? el("div", { class: "pictures" }, ...found.rows.map((row, i) => {
      const rest = Object.entries(row).filter(([name]) => name !== picture).map(([name, value]) => `${name} ${shown(value)}`).join(", ");
      return el("img", { src: "data:image/png;base64," + row[picture], alt: rest || `image ${i + 1}` });
    })) : grid(found.rows, 200);
    answer.replaceChildren(el("section", { class: "card", "aria-label": "Made" }, el("h3", {}, `${found.rows.length} of version ${shown(found.version ?? null)}`), made));
  }, "Generate", el("h3", {}, images ? "Images" : "Rows"), el("div", { class: "row" }, field("How many", count), field("Seed", seed), ...controls.map(([name, input]) => field(name, input))));
  return [ran, answer];
}

// ---- plots ----
function plot(values) {
  const svg = document.createElementNS(SVG, "svg"), top = Math.max(...values, 1e-9), low = Math.min(...values, 0), n = Math.max(values.length - 1, 1);
  svg.setAttribute("viewBox", "0 0 100 30"); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("aria-hidden", "true");
  const line = values.map((v, i) => `${i ? "L" : "M"}${(100 * i / n).toFixed(2)} ${(29 - 28 * (v - low) / (top - low)).toFixed(2)}`).join("");
  for (const [kind, d] of [["under", `${line}L100 30L0 30Z`], [null, line]]) {
    const path = document.createElementNS(SVG, "path");
    if (kind) path.setAttribute("class", kind);
    path.setAttribute("d", d); svg.append(path);
  }
  return el("div", { class: "plot" }, svg);
}
function strip(versions, names) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 30"); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("aria-hidden", "true");
  versions.forEach((version, i) => {
    const mark = document.createElementNS(SVG, "rect");
    for (const [name, value] of [["x", i * 100 / 60], ["width", 1.4], ["y", 6], ["height", 24], ["class", `v${names.indexOf(version) % 4}`]]) mark.setAttribute(name, value);
    svg.append(mark);
  });
  return svg;
}
const median = values => [...values].sort((a, b) => a - b)[values.length >> 1];
function note(sample) { samples.push(sample); samples = samples.slice(-240); draw(); }
function draw() {
  const took = samples.filter(s => s.ms !== undefined).map(s => s.ms).slice(-60), load = samples.filter(s => s.load !== undefined).slice(-60);
  const versions = samples.map(s => s.version).filter(v => v != null).map(String).slice(-60), names = [...new Set(versions)];
  const rates = load.filter(s => s.rate !== undefined);
  const card = (title, ...inside) => el("section", { class: "plot" }, el("h3", {}, title), ...inside);
  $("state").hidden = !model;
  $("state").replaceChildren(
    card("Latency", took.length ? plot(took).firstChild : null, el("p", {}, took.length ? el("strong", {}, `${median(took).toFixed(took.length && median(took) < 10 ? 1 : 0)} ms`) : "no request yet", took.length ? " median of this page's requests" : "")),
    card("Load", rates.length ? plot(rates.map(s => s.rate)).firstChild : null, el("p", {}, el("strong", {}, shown(load.length ? load.at(-1).load : 0)), " in hand", rates.length ? `, ${shown(Math.round(rates.at(-1).rate * 10) / 10)} ${rates.at(-1).unit}/s` : "")),
    card("Versions", strip(versions, names), el("p", {}, names.length ? names.map(v => `version ${v}: ${versions.filter(x => x === v).length} answers`).join(" · ") : "none yet")));
}
let before = null;
async function watch() {
  if (!model || document.hidden) return;
  const asked = model;
  try {
    const start = performance.now(), found = await (await ask(model.path + "/healthz")).json(), at = performance.now();
    if (asked !== model) return;
    const unit = ["rows", "tokens", "requests"].find(name => name in found), done = found[unit];
    const rate = before && done >= before.done ? (done - before.done) * 1000 / (at - before.at) : undefined;
    before = { done, at };
    note({ ms: at - start, load: (found.queued || 0) + (found.running || 0), rate, unit, version: found.version });
  } catch { /* the next one may be answered */ }
}

// ---- the page ----
function choose() {
  const name = decodeURIComponent(location.hash.slice(1));
  if (name === "panel") return;
  model = models.find(m => m.name === name) || models[0] || null;
  samples = []; before = null; say("");
  if (stop) stop.abort();
  for (const link of $("models").querySelectorAll("a")) {
    if (link.getAttribute("href") === "#" + encodeURIComponent(model.name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!model) { $("panel").replaceChildren(el("p", {}, "No model answers. Serve one with: seekray serve up MODEL")); draw(); return; }
  const panel = model.endpoint === "/v1/predict" ? predictPanel : model.endpoint === "/v1/generate" ? rowsPanel : textPanel;
  const about = el("p", { class: "about" }, `${model.task}${model.version ? ` · version ${model.version}` : ""} · `, el("a", { href: model.path + "/docs" }, "documentation"));
  $("panel").replaceChildren(el("h2", {}, model.name), about, ...panel());
  document.title = `${model.name} · seekray`;
  draw(); watch();
}
async function load() {
  try {
    models = (await (await ask("/v1/models")).json()).models;
    $("keyform").hidden = true;
  } catch (error) {
    $("panel").replaceChildren(el("p", { class: "wrong" }, error.message));
    return;
  }
  $("where").textContent = `${models.length} ${models.length === 1 ? "model" : "models"} at ${location.host}`;
  $("models").replaceChildren(...models.map(m => el("li", {}, el("a", { href: "#" + encodeURIComponent(m.name) }, m.name, el("small", {}, `${m.task}${m.version ? ` · version ${m.version}` : ""}`)))));
  choose();
}
$("keyform").addEventListener("submit", event => { event.preventDefault(); sessionStorage.setItem("key", $("key").value.trim()); load(); });
addEventListener("hashchange", choose);
setInterval(watch, 2000);
load();
