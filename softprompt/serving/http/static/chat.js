// One conversation: its turns, the answer as it grows, and a field for what is said next.

import { curl, events } from "./api.js";
import { Card, duration, make } from "./card.js";

const NAMES = { system: "System", user: "You", assistant: "Answer", tool: "Tool" };

export class ConversationCard extends Card {
  // kept: the system message beside the virtual tokens, where none is sent
  constructor({ kept, ...options }) {
    super(options);
    this.kept = kept;
    this.messages = options.body.messages;
  }

  waiting() {
    return [this.turns(), make("p", { class: "soft" }, "Waiting for the answer…")];
  }

  // what was said so far, and behind it what grows
  turns(...growing) {
    const given = this.messages[0].role === "system" || !this.kept ? this.messages : [{ role: "system", content: this.kept }, ...this.messages];
    const said = given.map(({ role, content }) => turn(role, make("p", { class: "completion said", dir: "auto" }, content)));
    return make("ol", { class: "turns", "aria-label": `Conversation with ${this.title}` }, ...said, ...growing);
  }

  async complete(signal) {
    const answer = make("p", { class: "completion", dir: "auto" });
    const thoughts = make("p", { dir: "auto", class: "completion said" });
    const thinking = make("details", { class: "thoughts", hidden: true }, make("summary", {}, "Thoughts"), thoughts);
    const warnings = [];
    const calls = [];
    let [first, end, last] = [null, null, {}];
    for await (const event of events(this.path, this.body, this.key, signal)) {
      if (first === null) {
        first = performance.now();
        this.content.replaceChildren(this.turns(turn("assistant", thinking, answer)));
      }
      last = event;
      warnings.push(...(event.warnings ?? []));
      for (const { delta, finish_reason } of event.choices) {
        answer.append(delta.content ?? "");
        thoughts.append(delta.reasoning_content ?? "");
        if (delta.reasoning_content) thinking.hidden = false;
        for (const one of delta.tool_calls ?? []) calls.push(`${one.function.name}(${one.function.arguments})`);
        if (finish_reason) end = finish_reason;
      }
    }
    const took = performance.now() - this.began;
    const content = answer.textContent;
    if (calls.length) answer.append(make("code", {}, calls.join("\n")));
    if (!answer.textContent.trim()) answer.append(make("span", { class: "soft" }, "(no words)"));
    this.said = "answered";
    const notes = [...warnings, ...(end === "length" ? ["It ends at the limit of tokens."] : [])];
    this.measured([duration(took), first === null ? "" : `, first words after ${duration(first - this.began)}`], notes, last);
    if (content.trim()) this.content.append(this.reply(content));
  }

  // the field for the next turn, behind an answer that then is a part of the conversation
  reply(answered) {
    const text = make("textarea", { rows: "2", "aria-label": `Reply to ${this.title}`, placeholder: "Say something more" });
    const form = make("form", { class: "reply" }, text, make("button", { class: "quiet small" }, "Send", make("span", { class: "unseen" }, ` to ${this.title}`)));
    text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!text.value.trim()) return text.focus();
      this.messages = this.body.messages = [...this.messages, { role: "assistant", content: answered }, { role: "user", content: text.value.trim() }];
      this.code.textContent = curl(this.path, this.body, this.keyed);
      this.element.focus(); // the field goes away
      await this.ask();
      this.content.querySelector("textarea")?.focus();
      this.element.dispatchEvent(new CustomEvent("over", { bubbles: true }));
    });
    return form;
  }
}

function turn(role, ...parts) {
  return make("li", { class: `turn ${role}` }, make("span", { class: "hint" }, NAMES[role]), ...parts);
}
