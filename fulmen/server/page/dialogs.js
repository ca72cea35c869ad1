// What opens above the page: settings, the tree, two branches side by side, tokens, shortcuts.

import { byId, fill, h } from "./dom.js";
import { language, number, say } from "./i18n.js";
import { button, plainTurns } from "./log.js";
import { markdown } from "./markdown.js";

const SHORTCUTS = [
  ["Enter", "key-send"],
  ["Shift+Enter", "key-line"],
  ["Esc", "key-stop"],
  ["Ctrl+Enter", "key-now"],
  ["↑", "key-edit"],
  ["/", "key-message"],
  ["j  k", "key-messages"],
  ["[  ]", "key-branches"],
  ["r", "key-again"],
  ["Ctrl+K", "search-conversations"],
  ["Ctrl+B", "key-sidebar"],
  ["Ctrl+Shift+O", "new"],
  ["?", "shortcuts"],
];

export class Dialogs {
  constructor(page) {
    this.page = page;
    this.element = byId("dialog");
    byId("dialog-close").addEventListener("click", () => this.close());
    this.element.addEventListener("click", (event) => {
      if (event.target === this.element) this.close();
    });
  }

  close() {
    this.element.close();
  }

  /** Show content under a title; kind is a class for its size. */
  open(title, kind, ...content) {
    fill(byId("dialog-title"), title);
    fill(byId("dialog-body"), ...content);
    this.element.className = kind;
    if (!this.element.open) this.element.showModal();
  }

  // ---- the key

  /** Return a promise of the API key that a person types. */
  askForKey(isWrong) {
    return new Promise((resolve) => {
      const input = h("input", { type: "password", autocomplete: "current-password", required: true, "aria-label": say("key-needed") });
      const form = h(
        "form",
        {
          method: "dialog",
          onsubmit: () => {
            this.element.oncancel = null;
            resolve(input.value);
          },
        },
        h("p", {}, isWrong ? say("key-wrong") : say("key-hint")),
        input,
        h("button", { type: "submit" }, say("save")),
      );
      this.element.oncancel = (event) => event.preventDefault();
      this.open(say("key-needed"), "small", form);
      input.focus();
    });
  }

  // ---- settings

  settings() {
    const conversation = this.page.conversation;
    const settings = conversation.settings;
    const field = (name, label, element) => [h("label", { for: `set-${name}` }, say(label)), Object.assign(element, { id: `set-${name}` })];
    const numeric = (name, step, min) => h("input", { type: "number", step, min, value: settings[name] ?? "", placeholder: say("default") });
    const area = (value, rows) => h("textarea", { rows, value: value ?? "", spellcheck: false });
    const inputs = {
      system: area(settings.system, 5),
      temperature: numeric("temperature", "0.05", 0),
      max_output_tokens: numeric("max_output_tokens", 1, 1),
      seed: numeric("seed", 1, 0),
      tools: area(settings.tools, 6),
      schema: area(settings.schema, 6),
    };
    const problem = h("p", { class: "problem", role: "alert" });
    const save = async (event) => {
      event.preventDefault();
      const found = { thinking_token_budget: this.page.composer.budget };
      for (const [name, input] of Object.entries(inputs)) {
        const value = input.value.trim();
        if (!value) continue;
        if (["tools", "schema"].includes(name)) {
          try {
            const parsed = JSON.parse(value);
            if (name === "tools" && !Array.isArray(parsed)) throw new Error("[…]");
          } catch (error) {
            fill(problem, `${say(`${name}-json`)}: ${say("not-json")} (${error.message})`);
            input.focus();
            return;
          }
        }
        found[name] = input.type === "number" ? Number(value) : value;
      }
      try {
        await this.page.conversations.note(conversation, { settings: JSON.stringify(found) });
        this.close();
      } catch (error) {
        fill(problem, error.message);
      }
    };
    this.open(
      say("settings-of"),
      "medium",
      h(
        "form",
        { class: "fields", onsubmit: save },
        ...field("system", "system-prompt", inputs.system),
        ...field("temperature", "temperature", inputs.temperature),
        ...field("max_output_tokens", "max-tokens", inputs.max_output_tokens),
        ...field("seed", "seed", inputs.seed),
        ...field("tools", "tools-json", inputs.tools),
        ...field("schema", "schema-json", inputs.schema),
        problem,
        h("button", { type: "submit" }, say("save")),
      ),
    );
  }

  // ---- one conversation

  conversation(conversation) {
    const page = this.page;
    const name = h("input", { type: "text", value: conversation.title, maxLength: 200, "aria-label": say("rename") });
    const rename = async (event) => {
      event.preventDefault();
      this.close();
      try {
        await page.conversations.note(conversation, { title: name.value.trim() });
        page.show();
      } catch (error) {
        page.tell(error);
      }
    };
    const loaded = async (work) => {
      this.close();
      try {
        if (!conversation.isNew) await page.conversations.load(conversation);
        await work();
      } catch (error) {
        page.tell(error);
      }
    };
    const remove = () => {
      const sure = h("p", {}, say("delete-sure"));
      const yes = h("button", { type: "button", class: "danger", onclick: () => {
        this.close();
        page.conversations.remove(conversation).then(() => {
          if (conversation === page.conversation) {
            page.conversation = null;
            page.begin();
          }
        }, (error) => page.tell(error));
      } }, say("delete"));
      this.open(say("delete"), "small", sure, h("div", { class: "row" }, yes, button("cancel", () => this.close())));
    };
    this.open(
      conversation.title || say("new"),
      "small",
      h("form", { class: "row", onsubmit: rename }, name, h("button", { type: "submit" }, say("rename"))),
      h(
        "div",
        { class: "column" },
        button("export-markdown", () => loaded(() => page.exportMarkdown(conversation))),
        button("export-json", () => loaded(() => page.exportJson(conversation))),
        button("delete", remove),
      ),
    );
  }

  // ---- the tree and two branches

  async tree() {
    const { conversation, conversations } = this.page;
    if (!conversation.isNew) await conversations.loadAll(conversation);
    const path = new Set(conversation.path.map((turn) => turn.id));
    const roots = [...conversation.turns.values()].filter((turn) => turn.parent === null);
    const item = (turn) => {
      // A stretch without branches is one item's list, so that depth shows choices, not length.
      const items = [];
      let next = turn;
      for (;;) {
        const shown = next;
        const text = shown.asked.at(-1)?.content ?? "";
        items.push(
          h("li", {}, h("button", {
            type: "button", class: `node ${path.has(shown.id) ? "here" : ""}`,
            "aria-current": path.has(shown.id) ? "true" : null,
            onclick: () => {
              this.close();
              this.page.goTo(shown);
            },
          }, h("b", {}, text.slice(0, 80) || "…"), h("span", {}, (shown.answer.content || shown.answer.thinking || "").slice(0, 100)))),
        );
        if (next.children.length !== 1) break;
        [next] = next.children;
      }
      if (next.children.length) items.push(h("li", {}, h("ul", {}, ...next.children.map((child) => h("li", {}, h("ul", {}, ...item(child)))))));
      return items;
    };
    this.open(say("tree"), "large", h("div", { class: "tree" }, ...roots.map((root) => h("ul", {}, ...item(root)))));
  }

  /** Show a turn's branch beside another one at its place. */
  compare(turn) {
    const { conversation } = this.page;
    const siblings = conversation.siblings(turn);
    const others = siblings.filter((other) => other !== turn);
    const line = (start) => {
      const branch = conversation.branchWith(start);
      const first = branch.turnIds.indexOf(start.id);
      return branch.turnIds.slice(first).map((id) => conversation.turns.get(id));
    };
    const column = (start) => h("div", { class: "side", tabIndex: 0, role: "region", "aria-label": `${say("branch")} ${siblings.indexOf(start) + 1}` },
      h("h3", {}, `${say("branch")} ${siblings.indexOf(start) + 1}`), ...plainTurns(line(start)));
    const right = h("div", {});
    const choice = h("select", { "aria-label": say("compare-with"), onchange: () => fill(right, column(others[choice.value])) },
      ...others.map((other, place) => h("option", { value: place }, `${say("branch")} ${siblings.indexOf(other) + 1}`)));
    fill(right, column(others[0]));
    this.open(say("compare"), "large", h("p", {}, say("compare-with"), " ", choice), h("div", { class: "sides" }, column(turn), right));
  }

  // ---- tokens

  async tokens(turn) {
    let tokens;
    try {
      tokens = await this.page.tokensOf(turn);
    } catch (error) {
      this.page.tell(error);
      return;
    }
    const detail = h("div", { class: "detail", role: "status" });
    const show = (token, place) => {
      const share = (logprob) => `${number(100 * Math.exp(logprob), 2)} %`;
      fill(
        detail,
        h("p", {}, h("code", {}, visible(token.text)), ` ${share(token.logprob)} · ${say("logprob")} ${number(token.logprob, 4)} · id ${token.id}`,
          token.is_forced ? ` · ${say("forced")}` : "", " ", button("branch-here", () => this.page.branchAt(turn, place))),
        h("p", {}, `${say("alternatives")}: `, ...token.top.map((other) =>
          h("button", { type: "button", class: "quiet", onclick: () => this.page.branchAt(turn, place, other.id), title: say("branch-here") },
            h("code", {}, visible(other.text)), ` ${share(other.logprob)}`))),
      );
    };
    const spans = tokens.map((token, place) => {
      const level = Math.min(4, Math.floor(-token.logprob));
      return h("button", {
        type: "button", class: `token p${level} ${token.kind}`, title: `${number(100 * Math.exp(token.logprob), 1)} %`,
        onmouseenter: () => show(token, place), onfocus: () => show(token, place), onclick: () => show(token, place),
      }, token.text.replace(/\n/g, "⏎\n"));
    });
    this.open(say("tokens-view"), "large", detail, h("div", { class: "token-text", dir: "auto" }, ...spans));
    if (tokens.length) show(tokens[0], 0);
  }

  // ---- the rest

  model() {
    const { model } = this.page;
    const rows = [
      [say("model"), model.id],
      [say("context"), model.max_model_len ? `${number(model.max_model_len)} ${say("tokens")}` : "–"],
    ];
    const card = model.card?.[language] ?? "";
    this.open(
      say("model"),
      "medium",
      h("dl", {}, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      markdown(card),
    );
  }

  shortcuts() {
    this.open(
      say("shortcuts"),
      "small",
      h("dl", { class: "keys" }, ...SHORTCUTS.flatMap(([keys, name]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, say(name))])),
    );
  }
}

const visible = (text) => text.replace(/\n/g, "⏎").replace(/ /g, "␣") || "∅";
