// What opens above the page: settings, the tree, two branches side by side, tokens, shortcuts.

import { byId, fill, h } from "./dom.js";
import { saveJson, saveMarkdown } from "./files.js";
import { language, number, say, tokens as inTokens } from "./i18n.js";
import { hasSingleKeys, inLanguage, keysWithNames, setSingleKeys } from "./keys.js";
import { button, plainTurns } from "./log.js";
import { markdown } from "./markdown.js";

export class Dialogs {
  constructor(page) {
    this.page = page;
    this.element = byId("dialog");
    byId("dialog-close").addEventListener("click", () => this.close());
    // A click is on the backdrop only if it began there: text may be selected to beyond the dialog.
    let beganOutside = false;
    this.element.addEventListener("pointerdown", (event) => (beganOutside = event.target === this.element));
    this.element.addEventListener("click", (event) => {
      if (beganOutside && event.target === this.element) this.close();
    });
  }

  get isOpen() {
    return this.element.open;
  }

  close() {
    this.element.close();
  }

  /** Show content under a title; kind is a class for its size. */
  open(title, kind, ...content) {
    fill(byId("dialog-title"), title);
    fill(byId("dialog-body"), ...content);
    byId("dialog-notice").hidden = true;
    this.element.className = kind;
    if (!this.element.open) this.element.showModal();
  }

  // ---- the key

  /** Return a promise of the API key that a person types. */
  askForKey(isWrong) {
    return new Promise((resolve) => {
      const input = h("input", { type: "password", autocomplete: "current-password", required: true, "aria-label": say("key-needed") });
      const take = (event) => {
        event.preventDefault();
        this.element.onclose = null;
        this.close();
        resolve(input.value);
      };
      const hint = h("p", {}, isWrong ? say("key-wrong") : say("key-hint"));
      this.element.onclose = () => this.element.open || this.element.showModal(); // there is no going on without it
      this.open(
        say("key-needed"),
        "small required",
        h("form", { class: "fields", onsubmit: take }, hint, input, h("button", { type: "submit" }, say("save"))),
      );
      input.focus();
    });
  }

  // ---- settings

  settings() {
    const { conversation } = this.page;
    const settings = { ...conversation.settings, system: conversation.system };
    const inputs = Object.fromEntries(SETTINGS.map((setting) => [setting.name, inputOf(setting, settings)]));
    const fields = SETTINGS.map(({ name, label }) =>
      h("div", { class: inputs[name].type === "number" ? "field number" : "field" },
        h("label", { for: `set-${name}` }, say(label)), inputs[name]));
    const save = async (event) => {
      event.preventDefault();
      try {
        const found = { ...conversation.settings, ...readSettings(inputs) };
        await this.page.conversations.note(conversation, { settings: JSON.stringify(found) });
        this.close();
      } catch (error) {
        this.page.tell(error);
      }
    };
    this.open(
      say("settings-of"),
      "medium",
      h("form", { class: "fields", onsubmit: save }, ...fields, h("button", { type: "submit" }, say("save"))),
    );
  }

  // ---- one conversation

  conversation(conversation) {
    const { page } = this;
    const name = h("input", { type: "text", value: conversation.title, maxLength: 200, "aria-label": say("title") });
    const rename = async (event) => {
      event.preventDefault();
      await this.#whenDone(() => page.conversations.note(conversation, { title: name.value.trim() }));
      page.show();
    };
    const exported = (save) => () =>
      this.#whenDone(async () => {
        if (!conversation.isNew && page.conversations.areKept) {
          await page.conversations.load(conversation);
          await page.conversations.loadAll(conversation);
        }
        save(conversation);
      });
    this.open(
      conversation.title || say("new"),
      "small",
      h("form", { class: "row", onsubmit: rename }, name, h("button", { type: "submit" }, say("rename"))),
      h(
        "div",
        { class: "column" },
        button("export-markdown", exported(saveMarkdown)),
        button("export-json", exported(saveJson)),
        button("delete", () => this.#delete(conversation)),
      ),
    );
    name.select();
  }

  #delete(conversation) {
    const { page } = this;
    const remove = async () => {
      await this.#whenDone(() => page.conversations.remove(conversation));
      page.gone(conversation);
    };
    const yes = h("button", { type: "button", class: "danger", onclick: remove }, say("delete"));
    this.open(
      say("delete"),
      "small",
      h("p", {}, say("delete-sure")),
      h("div", { class: "row" }, yes, button("cancel", () => this.close())),
    );
  }

  /** Close the dialog once work is done; what goes wrong is told in it. */
  async #whenDone(work) {
    try {
      await work();
      this.close();
    } catch (error) {
      this.page.tell(error);
    }
  }

  // ---- the tree and two branches

  async tree() {
    const { conversation } = this.page;
    if (!(await this.#hasAll(conversation))) return;
    const path = new Set(conversation.path.map((turn) => turn.id));
    const roots = [...conversation.turns.values()].filter((turn) => turn.parent === null);
    const goTo = (turn) => {
      this.close();
      this.page.goTo(turn);
    };
    const node = (turn) =>
      h("li", {}, h("button", {
        type: "button", class: `node ${path.has(turn.id) ? "here" : ""}`,
        "aria-current": path.has(turn.id) ? "true" : null, onclick: () => goTo(turn),
      }, h("b", {}, turn.asked.at(-1)?.content.slice(0, 80) || "…"),
      h("span", {}, (turn.answer.content || turn.answer.thinking || "").slice(0, 100))));
    // A stretch without branches is one list, so that depth shows choices, not length.
    const stretch = (turn) => {
      const items = [node(turn)];
      while (turn.children.length === 1) items.push(node(([turn] = turn.children)[0]));
      if (turn.children.length) items.push(h("li", {}, h("ul", {}, ...turn.children.map((child) => h("li", {}, stretch(child))))));
      return h("ul", {}, ...items);
    };
    const content = roots.length ? roots.map(stretch) : [h("p", { class: "note" }, say("no-branches"))];
    this.open(say("tree"), "large", h("div", { class: "tree" }, ...content));
  }

  /** Read all branches of a conversation; false if that failed, which is told. */
  async #hasAll(conversation) {
    const { conversations } = this.page;
    try {
      if (!conversation.isNew && conversations.areKept) await conversations.loadAll(conversation);
      return true;
    } catch (error) {
      this.page.tell(error);
      return false;
    }
  }

  /** Show a turn's branch beside another one at its place. */
  async compare(turn) {
    const { conversation } = this.page;
    if (!(await this.#hasAll(conversation))) return;
    const siblings = conversation.siblings(turn);
    const others = siblings.filter((other) => other !== turn);
    const named = (start) => `${say("branch")} ${siblings.indexOf(start) + 1}`;
    const line = (start) => {
      const { turnIds } = conversation.branchWith(start);
      return turnIds.slice(turnIds.indexOf(start.id)).map((id) => conversation.turns.get(id));
    };
    const column = (start) => h("div", { class: "side", tabIndex: 0, role: "region", "aria-label": named(start) },
      h("p", { class: "name" }, named(start)), ...plainTurns(line(start)));
    const right = h("div", {});
    const choice = h("select", { "aria-label": say("compare-with"), onchange: () => fill(right, column(others[choice.value])) },
      ...others.map((other, place) => h("option", { value: place }, named(other))));
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
    // A token that is clicked stays shown, so that its buttons can be reached; until then the one
    // under the pointer or with the focus is shown.
    const detail = h("div", { class: "detail", role: "status" });
    const text = h("div", { class: "token-text", role: "group", "aria-label": say("tokens-view"), dir: "auto" });
    let first = 0; // place of the first one that is there
    let shown = 0;
    let pinned = null;
    const buttonAt = (place) => text.children[place - first];
    const show = (place) => {
      if (buttonAt(shown)) buttonAt(shown).tabIndex = -1;
      shown = place;
      buttonAt(shown).tabIndex = 0;
      fill(detail, ...this.#tokenDetail(turn, tokens, place));
    };
    const pin = (place) => {
      if (pinned !== null) buttonAt(pinned)?.setAttribute("aria-pressed", "false");
      pinned = place;
      buttonAt(place).setAttribute("aria-pressed", "true");
      show(place);
    };
    const placeOf = (event) => {
      const found = event.target.closest(".token");
      return found ? first + [...text.children].indexOf(found) : null;
    };
    const preview = (event) => {
      const place = placeOf(event);
      if (place !== null && place !== shown && pinned === null) show(place);
    };
    text.addEventListener("mousemove", (event) => {
      // Without a movement it was the text that moved, below a mouse at rest.
      if (event.movementX || event.movementY) preview(event);
    });
    text.addEventListener("focusin", preview);
    text.addEventListener("click", (event) => {
      const place = placeOf(event);
      if (place !== null) pin(place);
    });
    text.addEventListener("keydown", (event) => {
      const last = first + text.children.length - 1;
      const place = { ArrowLeft: shown - 1, ArrowRight: shown + 1, Home: first, End: last }[event.key];
      if (place === undefined) return;
      event.preventDefault();
      if (!tokens[place]) return;
      if (!buttonAt(place)) showPage(Math.floor(place / TOKENS_OF_PAGE));
      if (pinned !== null) pin(place);
      else show(place);
      buttonAt(place).focus();
    });
    const pages = h("select", { "aria-label": say("tokens-view"), onchange: () => showPage(Number(pages.value)) });
    for (let place = 0; place < tokens.length; place += TOKENS_OF_PAGE) {
      const last = Math.min(place + TOKENS_OF_PAGE, tokens.length);
      pages.append(h("option", { value: place / TOKENS_OF_PAGE }, `${number(place + 1)} – ${number(last)}`));
    }
    const showPage = (page) => {
      pages.value = page;
      first = page * TOKENS_OF_PAGE;
      pinned = null;
      fill(text, ...tokens.slice(first, first + TOKENS_OF_PAGE).map(tokenButton));
      show(first);
    };
    const choice = h("p", { hidden: tokens.length <= TOKENS_OF_PAGE }, pages, ` ${say("of")} ${inTokens(tokens.length)}`);
    this.open(say("tokens-view"), "large", choice, detail, text);
    if (tokens.length) showPage(0);
  }

  /** Return what is known of a token, with buttons for the branches that can begin there. */
  #tokenDetail(turn, tokens, place) {
    const token = tokens[place];
    const share = (logprob) => `${number(100 * Math.exp(logprob), 2)} %`;
    const branch = (...others) => this.page.branchAt(turn, [...tokens.slice(0, place), ...others]);
    const notes = [share(token.logprob), `${say("logprob")} ${number(token.logprob, 4)}`, `id ${token.id}`];
    if (token.is_forced) notes.push(say("forced"));
    const others = token.top.map((other) =>
      h("button", { type: "button", class: "quiet", onclick: () => branch({ ...other, kind: token.kind }), title: say("branch-here") },
        h("code", {}, visible(other.text)), ` ${share(other.logprob)}`));
    return [
      h("p", {}, h("code", {}, visible(token.text)), ` ${notes.join(" · ")} `, button("branch-here", () => branch())),
      h("p", {}, `${say("alternatives")}: `, ...others),
    ];
  }

  // ---- the rest

  model() {
    const { model } = this.page;
    if (!model) return;
    const yesOrNo = (value) => say(value ? "yes" : "no");
    const rows = [
      [say("model"), model.id],
      [say("context"), model.max_model_len ? inTokens(model.max_model_len) : "–"],
      [say("thinks"), yesOrNo(model.capabilities?.thinking.supported)],
    ];
    this.open(
      say("model"),
      "medium",
      h("dl", {}, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      model.card ? markdown(model.card[language]) : "",
    );
  }

  shortcuts() {
    const single = h("input", {
      type: "checkbox", id: "single-keys", checked: hasSingleKeys(), onchange: () => setSingleKeys(single.checked),
    });
    this.open(
      say("shortcuts"),
      "small",
      h("p", {}, h("label", { for: "single-keys" }, single, ` ${say("single-keys")}`)),
      h("dl", { class: "keys" }, ...keysWithNames.flatMap(([keys, name]) => [h("dt", {}, h("kbd", {}, inLanguage(keys))), h("dd", {}, say(name))])),
    );
  }
}

/** Tokens that are shown at once. */
const TOKENS_OF_PAGE = 2000;

const tokenButton = (token) =>
  h("button", {
    type: "button", tabIndex: -1, "aria-pressed": "false",
    "aria-label": token.text.trim() ? null : visible(token.text),
    class: `token p${Math.min(4, Math.floor(-token.logprob))} ${token.kind}`,
  }, token.text.replace(/\n/g, "⏎\n") || "∅");

const visible = (text) => text.replace(/\n/g, "⏎").replace(/ /g, "␣") || "∅";

// ---- the fields of the settings

const SETTINGS = [
  { name: "system", label: "system-prompt", rows: 5 },
  { name: "temperature", label: "temperature", step: 0.05, min: 0, max: 2 },
  { name: "top_p", label: "top-p", step: 0.01, min: 0, max: 1 },
  { name: "top_k", label: "top-k", step: 1, min: 0 },
  { name: "min_p", label: "min-p", step: 0.01, min: 0, max: 1 },
  { name: "max_output_tokens", label: "max-tokens", step: 1, min: 1 },
  { name: "seed", label: "seed", step: 1, min: 0 },
  { name: "tools", label: "tools-json", rows: 6, isJson: true },
  { name: "schema", label: "schema-json", rows: 6, isJson: true },
];

function inputOf({ name, rows, step, min, max }, settings) {
  const properties = { id: `set-${name}`, value: settings[name] ?? "" };
  if (rows) return h("textarea", { ...properties, rows, spellcheck: false });
  return h("input", { type: "number", step, min, max, placeholder: say("default"), ...properties });
}

/** Return what a person put into the fields; undefined where a field is empty. Throws an error
 * that says which field holds no JSON. */
function readSettings(inputs) {
  return Object.fromEntries(SETTINGS.map(({ name, label, isJson }) => {
    const input = inputs[name];
    const value = input.value.trim();
    if (!value && name !== "system") return [name, undefined];
    if (isJson) checkJson(name, label, input, value);
    return [name, input.type === "number" ? Number(value) : value];
  }));
}

function checkJson(name, label, input, value) {
  try {
    const isList = Array.isArray(JSON.parse(value));
    if (isList !== (name === "tools")) throw new Error(name === "tools" ? "[…]" : "{…}");
  } catch (error) {
    input.focus();
    throw new Error(`${say(label)}: ${say("not-json")} (${error.message})`);
  }
}
