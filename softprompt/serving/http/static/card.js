// One answer: who gave it, labels with bars or a completion as it grows, how long it took, and the request as curl.

import { Problem, curl, events, post, sentence } from "./api.js";

const FEW = 8; // labels that are shown at once

// an element; strings among its children are text, and never read as HTML
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

// what a name or a template came with is seen, and turns the direction of nothing else: as in softprompt/shown.py
export const visible = (text) =>
  text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => ("\u200c\u200d".includes(one) ? one : `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`));

const percent = (value) => `${(100 * value).toFixed(1)}%`;
export const duration = (ms) => (ms < 999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

export class Card {
  // classifies: whether labels are asked for, or completions; path, body: the request; texts: what it asks
  constructor({ kind, title, note, classifies, path, body, texts, labels, key, keyed }) {
    Object.assign(this, { title, classifies, path, body, texts, labels, key, keyed });
    this.content = make("div");
    this.facts = make("div");
    this.code = make("code", {}, curl(path, body, keyed));
    this.element = make(
      "article",
      { class: `card ${kind}`, "aria-label": title, tabindex: "-1" },
      make("h4", {}, title),
      make("p", { class: "hint" }, note),
      this.content,
      make("footer", {}, this.facts, this.request()),
    );
  }

  // resolves when it is over, however it ends
  async ask(signal) {
    this.element.setAttribute("aria-busy", "true");
    this.content.replaceChildren(...this.waiting());
    this.facts.replaceChildren();
    this.failed = false;
    this.status = 0;
    this.said = "";
    this.began = performance.now();
    try {
      await (this.classifies ? this.classify(signal) : this.complete(signal));
    } catch (error) {
      this.failed = true;
      this.tell(error);
    }
    this.element.removeAttribute("aria-busy");
  }

  // what is shown until there is something of the answer
  waiting() {
    return [make("p", { class: "soft" }, "Waiting for the answer…")];
  }

  async classify(signal) {
    const answer = await post(this.path, this.body, this.key, signal);
    const took = performance.now() - this.began;
    const results = answer.results;
    if (results.length === 1) {
      const { label, probabilities } = results[0];
      this.said = `${visible(label)}, ${percent(probabilities[label])}`;
      this.content.replaceChildren(headline(results[0]), ...bars(probabilities, this.labels.length ? this.labels : Object.keys(probabilities)));
    } else {
      this.said = "answered";
      this.content.replaceChildren(this.list(results.map((one) => [headline(one), bar(one.probabilities[one.label])])));
    }
    this.measured([duration(took), ""], answer.warnings ?? [], answer);
  }

  async complete(signal) {
    const grown = this.texts.map(() => make("p", { class: "completion", dir: "auto" }));
    const ends = [];
    const warnings = [];
    let first = null;
    let last = {};
    for await (const event of events(this.path, this.body, this.key, signal)) {
      if (first === null) {
        first = performance.now();
        this.content.replaceChildren(grown.length > 1 ? this.list(grown.map((one) => [one])) : grown[0]);
      }
      last = event;
      warnings.push(...(event.warnings ?? []));
      for (const { index, text, finish_reason } of event.choices) {
        // a completion has the white space between it and its text
        grown[index].append(grown[index].textContent ? text : text.trimStart());
        if (finish_reason) ends[index] = finish_reason;
      }
    }
    const took = performance.now() - this.began;
    for (const one of grown) if (!one.textContent.trim()) one.append(make("span", { class: "soft" }, "(no words)"));
    this.said = "answered";
    const notes = [...warnings, ...(ends.includes("length") ? ["It ends at the limit of tokens."] : [])];
    this.measured([duration(took), first === null ? "" : `, first words after ${duration(first - this.began)}`], notes, last);
  }

  // an answer for each text, under it
  list(answers) {
    const rows = answers.map((parts, index) => make("li", {}, make("blockquote", { dir: "auto" }, this.texts[index]), ...parts));
    return make("ol", { class: "many" }, ...rows);
  }

  measured([time, more], notes, { model, usage }) {
    const told = [...notes.map(sentence), `Answered by ${model}`];
    if (usage) {
      const wrote = usage.completion_tokens ? `, ${usage.completion_tokens.toLocaleString("en")} written` : "";
      told.push(`${usage.prompt_tokens.toLocaleString("en")} tokens read${wrote}`);
    }
    this.facts.append(make("p", {}, make("b", {}, time), more), ...told.map((one) => make("p", {}, one)));
  }

  // what came before it stays
  tell(error) {
    if (!this.content.querySelector(".completion")) this.content.replaceChildren();
    if (error.name === "AbortError") {
      this.said = "stopped";
      this.content.append(make("p", { class: "soft" }, "Stopped."));
      return;
    }
    const problem = error instanceof Problem ? error : new Problem("This page failed.", String(error));
    this.said = problem.what;
    this.status = problem.status;
    const again = make("button", { type: "button", class: "quiet small" }, "Try again", make("span", { class: "unseen" }, `: ${this.title}`));
    again.addEventListener("click", async () => {
      this.element.focus(); // the button goes away
      await this.ask();
      this.element.dispatchEvent(new CustomEvent("over", { bubbles: true }));
    });
    const detail = problem.detail ? make("p", {}, problem.detail) : null;
    this.content.append(make("div", { class: "problem" }, make("p", { class: "what" }, problem.what), detail ?? "", again));
  }

  request() {
    const { code } = this;
    const said = make("span", { role: "status", class: "hint" });
    const copy = make("button", { type: "button", class: "quiet small" }, "Copy", make("span", { class: "unseen" }, ` the curl command of ${this.title}`));
    copy.addEventListener("click", async () => {
      said.textContent = (await copied(code)) ? " Copied." : " Selected: copy it with your keyboard.";
    });
    return make("details", {}, make("summary", {}, "The request as curl"), make("pre", { tabindex: "0" }, code), copy, said);
  }
}

function headline({ label, probabilities }) {
  return make("p", { class: "label" }, make("span", {}, make("bdi", {}, visible(label))), make("span", {}, percent(probabilities[label])));
}

function bar(share) {
  const filled = make("i");
  filled.style.width = `${100 * share}%`;
  return make("div", { class: "bar", "aria-hidden": "true" }, filled);
}

// in the task's order, which is the same in every card; of many labels only the likeliest ones
function bars(probabilities, labels) {
  const likeliest = [...labels].sort((a, b) => probabilities[b] - probabilities[a]);
  const shown = labels.length > FEW ? likeliest.slice(0, FEW) : labels;
  const row = (label) =>
    make(
      "li",
      { class: label === likeliest[0] ? "top" : null },
      make("bdi", {}, visible(label)),
      bar(probabilities[label]),
      make("span", { class: "number" }, percent(probabilities[label])),
    );
  const list = (some) => make("ul", { class: "bars" }, ...some.map(row));
  const others = likeliest.slice(shown.length);
  const rest = others.length ? [make("details", {}, make("summary", {}, `${others.length} more labels`), list(others))] : [];
  return [list(shown), ...rest];
}

async function copied(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    // where the page came by plain HTTP from another machine, there is no clipboard to write to
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}
