// The page: which prompts there are, what is asked, and the answers side by side.

import { Problem, model, models } from "./api.js";
import { Card, make, visible } from "./card.js";
import { ConversationCard } from "./chat.js";

const AT_ONCE = 6; // requests: a browser would hold back more, and that is no time of the server
const NAMED = 6; // labels in a sentence
const MANY = 8; // prompts from which on they can be filtered
const at = (id) => document.getElementById(id);
const [access, form, list, filter, text, lines] = ["access", "ask", "prompts", "filter", "text", "lines"].map(at);
const [written, bare, results, status, stop] = ["written", "bare", "results", "status", "stop"].map(at);

let key = ""; // of the API: here, and nowhere else
const keyed = document.documentElement.dataset.keys === "yes"; // whether the server wants one
let arranged = 0; // times that the fields were
let cards = []; // answers that are shown
let running = null; // the AbortController of what is being asked
const known = new Map(); // id -> facts of a prompt, as far as the server has them

// ---- which prompts there are

async function look() {
  known.clear();
  list.replaceChildren();
  access.hidden = !keyed;
  if (keyed && !key) {
    at("about").textContent = status.textContent = "This server wants an API key.";
    return;
  }
  let data;
  try {
    data = await models(key);
  } catch (error) {
    at("about").textContent = "";
    if (!(error instanceof Problem)) throw error;
    at(error.status === 401 ? "key-alert" : "prompts-alert").textContent = `${error.what} ${error.detail}`;
    return;
  }
  at("key-alert").textContent = at("prompts-alert").textContent = "";
  const names = new Map();
  for (const one of data.filter((one) => one.softprompt)) {
    known.set(one.id, one.softprompt);
    const name = one.id.split("@")[0];
    names.set(name, [...(names.get(name) ?? []), one]);
  }
  const base = data.find((one) => !one.softprompt);
  for (const ids of names.values()) list.append(offered(ids));
  const count = `${names.size} ${names.size === 1 ? "prompt" : "prompts"}`;
  at("about").textContent = base ? `${count} on the frozen model ${base.id}.` : `${count} for this API key.`;
  status.textContent = names.size ? "Pick one or several learned prompts, type a text, and ask." : "There are no prompts to ask yet.";
  filter.hidden = names.size <= MANY;
  written.disabled = bare.disabled = !base;
  at("baseline-hint").hidden = Boolean(base);
  if (!base) written.checked = bare.checked = false;
  const first = [...list.querySelectorAll("input")].find((one) => !known.get(one.value).error);
  if (first) first.checked = true;
  await arrange();
}

// a prompt of the list: its name, and its versions where there are several
function offered([bareName, ...others]) {
  const facts = bareName.softprompt;
  const item = make("li", { "data-name": bareName.id }, choice(bareName.id, make("b", {}, bareName.id), summary(facts)));
  const several = others.some((one) => one.softprompt.version !== facts.version);
  if (several) {
    const versions = others.map((one) => {
      const number = one.softprompt.version.split("@")[1];
      const which = one.id.split("@")[1];
      return choice(one.id, which === number ? `version ${number}` : `${which} (version ${number})`);
    });
    item.append(make("details", {}, make("summary", {}, "Versions", make("span", { class: "unseen" }, ` of ${bareName.id}`)), ...versions));
  }
  return item;
}

function choice(id, ...told) {
  return make("label", { class: "check" }, make("input", { type: "checkbox", value: id }), make("span", {}, ...told));
}

function summary(facts) {
  if (facts.error) return make("span", { class: "hint bad" }, "cannot be used now");
  const kind = facts.loaded && (facts.kind === "generation" ? "completions" : `${facts.labels.length} labels`);
  return make("span", { class: "hint" }, [kind, `version ${facts.version.split("@")[1]}`].filter(Boolean).join(" · "));
}

// each isolated, lest one written from right to left moves the others
const listed = (names, most) => [
  ...names.slice(0, most).flatMap((one, at) => [at ? ", " : "", make("bdi", {}, visible(one))]),
  names.length > most ? ` and ${(names.length - most).toLocaleString("en")} more` : "",
];
const inLines = (template) => template.split("\n").map(visible).join("\n");

// what the prompts of a task do, what to type for them, and how well they were found to do it
function guide({ kind, template, labels, chat, columns, prompts }) {
  const ids = prompts.map((one) => one.id).join(", ");
  const does = kind === "generation" ? ["writes an answer to your text"] : ["tells which label a text has: ", ...listed(labels, NAMED)];
  const parts = [
    make("p", {}, make("b", {}, ids), " ", ...does, "."),
    chat && template === "{{ text }}"
      ? make("p", {}, "Your text is what you say first: the conversation goes on under the answer.")
      : columns.includes("text")
      ? make("p", {}, "Your text stands where the template has ", make("code", {}, "text"), ": ", make("code", { class: "template" }, inLines(template)))
      : make("p", {}, `Fill in ${columns.map(visible).join(" and ")}, which stand in the template: `, make("code", { class: "template" }, inLines(template))),
    ...prompts.map(({ id, facts }) => measured(prompts.length > 1 ? `${id}: ` : "", facts)),
  ];
  const example = prompts.map((one) => one.facts.example).find(Boolean);
  if (example) {
    const use = make("button", { type: "button", class: "quiet small" }, "Use this example", make("span", { class: "unseen" }, ` of ${ids}`));
    use.addEventListener("click", () => {
      text.value = example;
      text.focus();
    });
    parts.push(make("p", { dir: "auto", class: "example" }, example), use);
  }
  return parts.filter(Boolean);
}

function measured(front, { measured, learned_in }) {
  const told = [];
  if (measured) {
    const { metric, value, low, high, n, split } = measured;
    const [middle, least, most] = [value, low, high].map((one) => one.toFixed(Math.abs(high) <= 1 ? 3 : 1));
    told.push(`${metric.replaceAll("_", " ")} ${middle} [${least}, ${most}] on ${n.toLocaleString("en")} ${split} rows when it was learned`);
  }
  if (learned_in) told.push(`learned in ${learned_in}, answered in another precision`);
  return told.length ? make("p", {}, `${front}${told.join("; ")}.`) : null;
}

const chosen = () => [...list.querySelectorAll("input:checked")].map((input) => input.value);

// what is to be known of a prompt before it is asked; of one that cannot be asked there is not all
async function factsOf(id) {
  if (known.get(id).loaded) return known.get(id);
  try {
    known.set(id, (await model(id, key)).softprompt);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
  }
  return known.get(id);
}

// prompts of one task stand side by side: they share what is learned for
async function tasks() {
  const found = new Map();
  for (const id of chosen()) {
    const facts = await factsOf(id);
    const { kind = "", template = id, labels = [], chat = null } = facts; // what is not known is a task of its own
    const task = JSON.stringify([kind, template, labels, chat]);
    if (!found.has(task)) found.set(task, { task, kind, template, labels, chat, columns: facts.columns ?? ["text"], prompts: [] });
    found.get(task).prompts.push({ id, facts });
  }
  return [...found.values()];
}

// ---- fields that depend on what is chosen

async function arrange() {
  const turn = ++arranged;
  const all = await tasks();
  if (turn !== arranged) return; // more was chosen meanwhile
  keep(at("columns"), [...new Set(all.flatMap((one) => one.columns))].filter((name) => name !== "text"), (name) => {
    const input = make("input", { id: `column-${name}`, "data-key": name });
    return make("div", { class: "field" }, make("label", { for: input.id }, name), input);
  });
  const guided = new Map(all.filter((one) => one.kind).map((one) => [JSON.stringify([one.task, one.prompts.map(({ id }) => id)]), one]));
  keep(at("guide"), [...guided.keys()], (which) => make("div", {}, make("div", { "data-key": which }, ...guide(guided.get(which)))));
  // where no template takes a text there is none to type
  const textless = all.length > 0 && all.every((one) => one.kind === "classification" && !one.columns.includes("text")) && !bare.checked;
  for (const one of document.querySelectorAll(".typing")) one.hidden = textless;
  at("length").hidden = !all.some((one) => one.kind === "generation");
  const kept = all.filter((one) => one.kind === "generation").flatMap((one) => one.prompts.map(({ facts }) => facts.chat)).filter((one) => one?.takes_system);
  at("system-field").hidden = !kept.length;
  const usual = kept.find((one) => one.system)?.system;
  at("system").placeholder = usual ? `${usual.slice(0, 200)}${usual.length > 200 ? "…" : ""}` : "none";
  const usable = all.filter((one) => one.kind);
  at("instructions").hidden = !(written.checked && usable.length);
  keep(at("instructions"), usable.map((one) => one.task), (task) => {
    const { prompts, template, chat } = usable.find((one) => one.task === task);
    const id = `instruction-${prompts[0].id}`;
    return make(
      "div",
      {},
      make("label", { for: id }, `Instruction for ${prompts[0].id.split("@")[0]}`),
      make("textarea", { id, maxlength: "4000", "data-key": task, "aria-describedby": `${id}-hint`, placeholder: chat ? (chat.system ?? "none") : "none: only the template" }),
      chat
        ? make("p", { class: "hint", id: `${id}-hint` }, "Is the system message of the conversation")
        : make("p", { class: "hint", id: `${id}-hint` }, "Stands in front of the template ", make("code", {}, inLines(template))),
    );
  });
}

// one field for each key, those that were there before with what was typed into them
function keep(place, keys, field) {
  const before = new Map([...place.children].map((one) => [one.querySelector("[data-key]").dataset.key, one]));
  if (keys.length === before.size && keys.every((one) => before.has(one))) return;
  place.replaceChildren(...keys.map((one) => before.get(one) ?? field(one)));
}

const typed = (place, name) => [...place.querySelectorAll("[data-key]")].find((one) => one.dataset.key === name)?.value ?? "";

// ---- asking

async function ask() {
  for (const alert of ["prompts-alert", "text-alert"]) at(alert).textContent = "";
  text.removeAttribute("aria-invalid");
  const texts = text.hidden ? [""] : (lines.checked ? text.value.split("\n") : [text.value]).filter((one) => one.trim());
  if (!texts.length) return complain("text-alert", "Type a text first.", text, true);
  if (!chosen().length) return complain("prompts-alert", "Pick a prompt first.", list.querySelector("input"));
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const all = await tasks();
  if (signal.aborted) return; // asked again meanwhile
  const groups = all.map((task) => ({ ...task, cards: cardsOf(task, texts) }));
  results.replaceChildren(...groups.map((one) => shown(one, groups.length > 1)));
  cards = groups.flatMap((one) => one.cards);
  busy(true);
  status.textContent = cards.length === 1 ? "Asking…" : `Asking for ${cards.length} answers…`;
  const { top } = at("answers").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) at("answers").scrollIntoView();
  // labels first, they are there soonest
  const waiting = [...cards].sort((one, other) => other.classifies - one.classifies);
  const inTurn = async () => {
    while (waiting.length) await waiting.shift().ask(signal);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, inTurn));
  if (running?.signal !== signal) return; // asked again meanwhile
  running = null;
  busy(false);
  tell();
}

function tell() {
  const failed = cards.filter((card) => card.failed).length;
  const told = cards.map((card) => `${card.title}: ${card.said}`.replace(/[^.]$/, "$&."));
  status.replaceChildren(
    `${cards.length - failed} of ${cards.length} answered. `,
    make("span", { class: "unseen" }, told.join(" ")),
  );
}

function complain(place, what, field, invalid = false) {
  at(place).textContent = what;
  if (invalid) field.setAttribute("aria-invalid", "true");
  field?.focus();
}

function busy(so) {
  stop.hidden = !so;
  results.setAttribute("aria-busy", String(so));
}

function shown({ prompts, cards }, named) {
  const names = [...new Set(prompts.map((one) => one.id.split("@")[0]))].join(", ");
  return make("section", { "aria-label": names }, make("h3", { class: named ? null : "unseen" }, names), make("div", { class: "cards" }, ...cards.map((one) => one.element)));
}

// the prompts of a task, and beside them what they are compared with
function cardsOf({ task, kind, labels, chat, columns, prompts }, texts) {
  const card = (more, title, note, model, extra = {}, facts = prompts[0].facts) => {
    const classifies = kind !== "generation";
    if (chat && !classifies && texts.length === 1) return conversation({ kind: more, title, note, model, texts, extra, facts, columns });
    const named = Object.fromEntries(columns.filter((name) => name !== "text").map((name) => [name, typed(at("columns"), name)]));
    const own = Object.keys(named).length > 0;
    const one = (some) => (some.length === 1 ? some[0] : some);
    const body = classifies
      ? { model, input: one(own ? texts.map((text) => ({ ...(text && (columns.includes("text") || extra.baseline?.template === false) && { text }), ...named })) : texts), ...extra }
      : { model, prompt: one(texts), ...(own && { columns: named }), ...limit(), ...extra, stream: true, stream_options: { include_usage: true } };
    const path = classifies ? "v1/classify" : "v1/completions";
    return new Card({ kind: more, title, note, classifies, path, body, texts, labels, key, keyed });
  };
  const cards = prompts.map(({ id, facts }) => card("learned", id, kind ? `Learned prompt, ${facts.virtual_tokens} virtual tokens` : "Cannot be used now", id, {}, facts));
  const first = prompts[0].id;
  if (kind && written.checked) {
    const instruction = typed(at("instructions"), task).trim();
    const note = chat ? "Only the system message" : instruction ? `“${instruction}”, and the template` : "Only the template";
    cards.push(card("written", "Written prompt", note, first, { baseline: instruction ? { instruction } : {} }));
  }
  if (kind && bare.checked) cards.push(card("bare", "No prompt", "Only the text", first, { baseline: { template: false } }));
  return cards;
}

function conversation({ kind, title, note, model, texts, extra, facts, columns }) {
  const system = facts.chat.takes_system ? at("system").value.trim() : "";
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: texts[0] }];
  const named = Object.fromEntries(columns.filter((name) => name !== "text").map((name) => [name, typed(at("columns"), name)]));
  const own = Object.keys(named).length ? { columns: named } : {};
  const body = { model, messages, ...own, ...limit(), ...extra, stream: true, stream_options: { include_usage: true } };
  const kept = extra.baseline?.instruction ?? (extra.baseline?.template === false ? null : facts.chat.system);
  return new ConversationCard({ kind, title, note, classifies: false, path: "v1/chat/completions", body, texts, labels: [], key, keyed, kept });
}

const limit = () => (Number(at("tokens").value) >= 1 ? { max_tokens: Math.floor(Number(at("tokens").value)) } : {});

// ---- events

list.addEventListener("change", arrange);
for (const one of [written, bare]) one.addEventListener("change", arrange);
filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const item of list.children) item.hidden = !item.dataset.name.toLowerCase().includes(wanted) && !item.querySelector("input:checked");
});
filter.addEventListener("keydown", (event) => {
  if (event.key === "Enter") event.preventDefault();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
access.addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  look();
});
results.addEventListener("over", tell); // of a card that was asked again
stop.addEventListener("click", () => {
  running?.abort();
  at("go").focus();
});
look();
