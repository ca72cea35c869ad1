// The page: what a person does becomes requests, what the server says becomes the log.

import { Api, RunningAnswer } from "./api.js";
import { Composer } from "./composer.js";
import { Conversations, asMarkdown, fromServer, requestOf } from "./conversations.js";
import { byId, copyText, debounced, fill, h, saveAs } from "./dom.js";
import { Dialogs } from "./dialogs.js";
import { language, number, say, speak, when } from "./i18n.js";
import { Log, button } from "./log.js";

const APPEARANCE = "fulmen-appearance";
const LANGUAGE = "fulmen-language";

class Page {
  constructor() {
    this.dialogs = new Dialogs(this);
    this.api = new Api((isWrong) => this.dialogs.askForKey(isWrong));
    this.conversations = new Conversations(this.api);
    this.log = new Log(byId("log"), this.#actions());
    this.composer = new Composer((text) => this.send(text));
    this.conversation = null;
    this.model = null;
    this.running = null; // the answer that streams now
    this.conversations.addEventListener("change", () => this.showList());
    this.#listen();
  }

  async start() {
    try {
      const models = await this.api.get("v1/models");
      this.model = models.data[0];
      await this.conversations.refresh();
    } catch (error) {
      this.tell(error);
      return;
    }
    if (!this.conversations.areKept) this.tell(say("no-sessions"));
    addEventListener("hashchange", () => this.openFromAddress());
    await this.openFromAddress();
  }

  // ---- which conversation

  async openFromAddress() {
    const id = decodeURIComponent(location.hash.slice(1));
    const found = this.conversations.all.get(id);
    if (found && found !== this.conversation) await this.open(found);
    else if (!this.conversation) this.begin();
  }

  begin() {
    const isBlank = this.conversation?.isNew && this.conversation.path.length === 0;
    if (!isBlank) {
      const settings = this.conversation ? { ...this.conversation.settings, schema: null } : {};
      this.#switchTo(this.conversations.begin(settings));
    }
    this.composer.focus();
  }

  async open(conversation) {
    this.#switchTo(conversation);
    if (conversation.isNew) return;
    try {
      const detail = await this.conversations.load(conversation);
      if (conversation !== this.conversation) return;
      this.show();
      this.log.toEnd();
      if (detail.response_id) await this.follow(new RunningAnswer(this.api, detail.response_id), detail.asked.map(fromServer));
    } catch (error) {
      this.tell(error);
    }
  }

  #switchTo(conversation) {
    this.running?.leave();
    this.running = null;
    this.conversation = conversation;
    this.log.clear();
    this.tell(null);
    history.replaceState(null, "", `#${encodeURIComponent(conversation.id)}`);
    this.composer.settings = conversation.settings;
    this.show();
    this.showList();
    document.body.classList.remove("menu-open");
  }

  // ---- asking

  async send(text) {
    const messages = this.conversation.path.flatMap((turn) => turn.messages);
    await this.ask([{ role: "user", content: text }], messages);
  }

  /** Ask for the answer to new messages after those of the branch. */
  async ask(asked, before = this.conversation.path.flatMap((turn) => turn.messages)) {
    const conversation = this.conversation;
    if (this.running) return;
    if (!conversation.title) {
      const first = asked.find((message) => message.role === "user")?.content ?? "";
      const title = first.replace(/<file name="([^"]*)">[\s\S]*?<\/file>/g, "$1").trim().slice(0, 80);
      conversation.metadata = { ...conversation.metadata, title };
    }
    let body;
    try {
      if (conversation.isNew && this.conversations.areKept) await this.conversations.create(conversation);
      body = requestOf(conversation, [...before, ...asked], this.model.id);
    } catch (error) {
      this.#failed(error, asked);
      return;
    }
    const budget = this.composer.budget;
    if (budget !== null) body.thinking_token_budget = budget;
    await this.follow(RunningAnswer.start(this.api, body), asked);
  }

  /** Show an answer as it comes, then the turn that it became. */
  async follow(answer, asked) {
    const conversation = this.conversation;
    this.running = answer;
    const live = this.log.begin(asked);
    this.showRunning(true);
    this.tell(null);
    const pace = new Pace();
    try {
      for await (const event of answer.follow()) {
        if (conversation !== this.conversation) return;
        if (event.lost) live.note(say("reconnecting"));
        else if (event.note) live.note(promptProgress(event.note));
        else this.#take(event.data, live, pace);
        this.log.keepEnd();
      }
    } catch (error) {
      if (conversation === this.conversation) this.#failed(error, asked);
      return;
    } finally {
      if (this.running === answer) this.running = null;
      if (conversation === this.conversation) this.showRunning(false);
    }
    live.end();
    await this.#settle(conversation);
  }

  #take(event, live, pace) {
    switch (event.type) {
      case "response.reasoning_text.delta":
        pace.count();
        live.note(pace.text);
        live.think(event.delta);
        break;
      case "response.output_text.delta":
        pace.count();
        live.note(pace.text);
        live.say(event.delta);
        break;
      case "response.output_item.added":
        if (event.item.type === "function_call") live.call(event.output_index, event.item.name);
        break;
      case "response.function_call_arguments.delta":
        live.argumentsOf(event.output_index, event.delta);
        break;
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        if (event.response.error) this.tell(new Error(event.response.error.message));
        this.usage = event.response.usage;
        this.pace = pace.final(this.usage?.output_tokens);
        break;
    }
  }

  #failed(error, asked) {
    this.log.endLive();
    this.show();
    this.tell(error);
    const text = asked.find((message) => message.role === "user")?.content;
    if (text) this.composer.giveBack(text);
  }

  /** Read the branch again, which has the new turn. */
  async #settle(conversation) {
    try {
      await this.#untilSaved(conversation);
    } catch (error) {
      this.tell(error);
      return;
    }
    conversation.lastUsed = Date.now() / 1000;
    if (conversation !== this.conversation) return;
    this.log.endLive();
    this.show();
    this.showList();
  }

  async #untilSaved(conversation) {
    await this.api.post(`v1/sessions/${encodeURIComponent(conversation.current)}/save`, {});
    await this.conversations.load(conversation);
  }

  async stop() {
    try {
      await this.running?.stop();
    } catch (error) {
      this.tell(error);
    }
  }

  // ---- what a turn's buttons do

  #actions() {
    return {
      copy: (text) => copyText(text),
      answerNow: () => this.running?.answerNow().catch((error) => this.tell(error)),
      edit: (turn, message, section) => this.edit(turn, message, section),
      regenerate: (turn) => this.again(turn, turn.asked),
      branch: (turn) => this.branch(turn),
      goTo: (turn) => this.goTo(turn),
      compare: (turn) => this.dialogs.compare(turn),
      tokens: (turn) => this.dialogs.tokens(turn),
    };
  }

  /** Ask again at a turn's place, in a branch of its own. */
  async again(turn, asked) {
    if (this.running) return;
    const before = this.conversation.path.slice(0, turn.number - 1).flatMap((t) => t.messages);
    try {
      await this.conversations.fork(this.conversation, turn.number - 1);
    } catch (error) {
      this.tell(error);
      return;
    }
    this.show();
    await this.ask(asked, before);
  }

  edit(turn, message, section) {
    const area = h("textarea", { value: message.content, "aria-label": say("edit"), class: "edit" });
    const old = [...section.childNodes];
    const close = () => fill(section, ...old);
    const send = () => {
      const asked = turn.asked.map((m) => (m === message ? { ...m, content: area.value } : m));
      close();
      this.again(turn, asked);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    });
    fill(section, area, h("div", { class: "tools" }, button("save-and-send", send), button("cancel", close)));
    area.style.height = `${Math.min(area.scrollHeight + 4, 400)}px`;
    area.focus();
  }

  /** Go on after a turn in a branch of its own. */
  async branch(turn) {
    try {
      await this.conversations.fork(this.conversation, turn.number);
      this.show();
      this.composer.focus();
    } catch (error) {
      this.tell(error);
    }
  }

  /** Go on from some token of a turn's answer, or from another token there. */
  async branchAt(turn, numTokens, tokenId) {
    this.dialogs.close();
    const before = this.conversation.path.slice(0, turn.number - 1).flatMap((t) => t.messages);
    try {
      const ids = (await this.tokensOf(turn)).map((token) => token.id).slice(0, numTokens);
      if (tokenId !== undefined) ids.push(tokenId);
      await this.conversations.fork(this.conversation, turn.number - 1);
      this.show();
      const body = requestOf(this.conversation, [...before, ...turn.asked], this.model.id);
      body.prefix_token_ids = ids;
      await this.follow(RunningAnswer.start(this.api, body), turn.asked);
    } catch (error) {
      this.tell(error);
    }
  }

  /** Return the tokens of a turn's answer with their alternatives. */
  async tokensOf(turn) {
    const name = encodeURIComponent(this.conversation.branchWith(turn).name);
    return (await this.api.get(`v1/sessions/${name}/tokens?turn=${turn.number}&top=5`)).data;
  }

  async goTo(turn) {
    const branch = this.conversation.branchWith(turn);
    this.conversation.current = branch.name;
    try {
      if (!branch.isLoaded) await this.conversations.load(this.conversation);
    } catch (error) {
      this.tell(error);
    }
    this.show();
  }

  // ---- showing

  show() {
    const conversation = this.conversation;
    this.log.show(conversation);
    fill(byId("title"), conversation.title || say("new"));
    document.title = conversation.title ? `${conversation.title} · Fulmen` : "Fulmen";
    this.showMeter();
    if (conversation.branches.size > 1) {
      this.conversations.loadAll(conversation).then(() => {
        if (conversation === this.conversation) this.log.show(conversation);
      }, () => {});
    }
  }

  showMeter() {
    const meter = byId("meter");
    const most = this.model?.max_model_len;
    const used = this.conversation?.tokens ?? 0;
    meter.hidden = !most || !used;
    if (meter.hidden) return;
    const parts = [`${say("context")}: ${number(used)} ${say("of")} ${number(most)} ${say("tokens")}`];
    const usage = this.usage;
    if (usage?.input_tokens) {
      const share = (100 * usage.input_tokens_details.cached_tokens) / usage.input_tokens;
      parts.push(`${number(share)} % ${say("cached")}`);
    }
    if (this.pace) parts.push(`${number(this.pace, 1)} ${say("per-second")}`);
    meter.setAttribute("aria-label", parts.join(", "));
    meter.title = parts.join("\n");
    meter.firstElementChild.style.width = `${Math.min(100, (100 * used) / most)}%`;
    meter.dataset.text = parts.join(" · ");
  }

  showRunning(isRunning) {
    byId("stop").hidden = !isRunning;
    byId("send").hidden = isRunning;
    this.composer.isBusy = isRunning;
  }

  showList() {
    const wanted = byId("search").value.trim().toLowerCase();
    const list = this.conversations.list.filter((each) => !each.isNew || each === this.conversation);
    const found = this.found ? list.filter((each) => this.found.has(each.id)) : list.filter((each) => each.title.toLowerCase().includes(wanted));
    const items = found.map((conversation) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button", class: "conversation", "aria-current": conversation === this.conversation ? "page" : null,
            onclick: () => this.open(conversation), title: when(conversation.lastUsed),
          },
          conversation.title || say("new"),
        ),
        h("button", { type: "button", class: "icon", "aria-label": `${say("settings-of")}: ${conversation.title}`, onclick: () => this.dialogs.conversation(conversation) }, "⋯"),
      ),
    );
    fill(byId("conversations"), ...(items.length ? items : [h("li", { class: "note" }, say("nothing-found"))]));
  }

  /** Find conversations by what was said in them. */
  search = debounced(async () => {
    const wanted = byId("search").value.trim();
    this.found = null;
    if (wanted.length >= 2) {
      try {
        const page = await this.api.get(`v1/sessions?limit=100&search=${encodeURIComponent(wanted)}`);
        this.found = new Set(page.data.map((session) => session.metadata?.group ?? session.id));
      } catch (error) {
        this.tell(error);
      }
    }
    this.showList();
  }, 250);

  /** Tell a person something that went wrong, until the next thing is done. */
  tell(problem) {
    const notice = byId("notice");
    notice.hidden = problem === null;
    const text = problem instanceof Error ? `${say("failed")}: ${problem.message}` : (problem ?? "");
    fill(notice, text);
  }

  // ---- files

  exportMarkdown(conversation) {
    const names = { user: say("you"), assistant: say("model"), system: say("system"), tool: say("result"), thought: say("thought") };
    saveAs(`${conversation.title || conversation.id}.md`, "text/markdown", asMarkdown(conversation, names));
  }

  async exportJson(conversation) {
    await this.conversations.loadAll(conversation);
    const branches = [...conversation.branches.values()].map((branch) => ({
      name: branch.name, messages: branch.turnIds.flatMap((id) => conversation.turns.get(id).messages),
    }));
    const value = { format: "fulmen-conversation", version: 1, title: conversation.title, settings: conversation.settings, branches };
    saveAs(`${conversation.title || conversation.id}.json`, "application/json", JSON.stringify(value, null, 1));
  }

  async import(file) {
    try {
      const value = JSON.parse(await file.text());
      if (value.format !== "fulmen-conversation") throw new Error(say("wrong-import"));
      await this.open(await this.conversations.import(value));
      this.tell(say("imported"));
    } catch (error) {
      this.tell(error instanceof SyntaxError ? say("wrong-import") : error);
    }
  }

  // ---- keys and buttons

  #listen() {
    byId("new").addEventListener("click", () => this.begin());
    byId("stop").addEventListener("click", () => this.stop());
    byId("search").addEventListener("input", () => this.search());
    byId("menu").addEventListener("click", () => this.toggleMenu());
    byId("tree-button").addEventListener("click", () => this.dialogs.tree());
    byId("settings-button").addEventListener("click", () => this.dialogs.settings());
    byId("model-button").addEventListener("click", () => this.dialogs.model());
    byId("shortcuts-button").addEventListener("click", () => this.dialogs.shortcuts());
    byId("import-button").addEventListener("click", () => byId("import-picker").click());
    byId("import-picker").addEventListener("change", (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) this.import(file);
    });
    byId("appearance").addEventListener("change", (event) => setAppearance(event.target.value));
    byId("language").addEventListener("change", (event) => {
      localStorage.setItem(LANGUAGE, event.target.value);
      speak(event.target.value);
      this.log.clear();
      this.show();
      this.showList();
      this.composer.showBudget();
    });
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  toggleMenu() {
    const isOpen = document.body.classList.toggle("menu-open");
    document.body.classList.toggle("menu-shut", !isOpen && matchMedia("(min-width: 50rem)").matches);
    byId("menu").setAttribute("aria-expanded", String(isOpen));
    if (isOpen) byId("search").focus();
  }

  #key(event) {
    const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    const has = event.ctrlKey || event.metaKey;
    const bindings = [
      [has && event.key === "k", () => { document.body.classList.add("menu-open"); byId("search").focus(); }],
      [has && event.key === "b", () => this.toggleMenu()],
      [has && event.shiftKey && event.key.toLowerCase() === "o", () => this.begin()],
      [has && event.key === "Enter" && this.running, () => this.running.answerNow().catch((e) => this.tell(e))],
      [event.key === "Escape" && this.running && !byId("dialog").open, () => this.stop()],
      [!isTyping && !has && event.key === "?", () => this.dialogs.shortcuts()],
      [!isTyping && !has && event.key === "/", () => this.composer.focus()],
      [!isTyping && !has && event.key === "r", () => this.conversation.path.length && this.again(this.conversation.path.at(-1), this.conversation.path.at(-1).asked)],
      [event.key === "ArrowUp" && event.target === byId("input") && byId("input").value === "", () => this.editLast()],
      [!isTyping && !has && (event.key === "j" || event.key === "k"), () => this.#focusTurn(event.key === "j" ? 1 : -1)],
      [!isTyping && !has && (event.key === "[" || event.key === "]"), () => this.#otherBranch(event.key === "]" ? 1 : -1)],
    ];
    const found = bindings.find(([applies]) => applies);
    if (!found || (byId("dialog").open && event.key !== "Escape")) return;
    event.preventDefault();
    found[1]();
  }

  editLast() {
    const turn = this.conversation.path.at(-1);
    const article = turn && this.log.articles.get(turn.id);
    const message = turn?.asked.find((each) => each.role === "user");
    const section = article?.querySelector(".message.user");
    if (section && message) this.edit(turn, message, section);
  }

  #focusTurn(step) {
    const articles = [...byId("log").querySelectorAll("article")];
    const place = articles.indexOf(document.activeElement.closest?.("article"));
    const next = articles[place < 0 ? (step > 0 ? 0 : articles.length - 1) : place + step];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  #otherBranch(step) {
    const id = document.activeElement.closest?.("article")?.dataset.turn ?? this.conversation.path.at(-1)?.id;
    const turn = this.conversation.turns.get(id);
    if (!turn) return;
    const siblings = this.conversation.siblings(turn);
    this.goTo(siblings[(siblings.indexOf(turn) + step + siblings.length) % siblings.length]);
  }
}

/** How fast tokens come: events are counted until the server tells the tokens. */
class Pace {
  constructor() {
    this.began = 0;
    this.events = 0;
  }

  count() {
    this.began ||= performance.now();
    this.last = performance.now();
    this.events += 1;
  }

  get text() {
    return "";
  }

  final(tokens) {
    const seconds = (this.last - this.began) / 1000;
    return tokens > 1 && seconds > 0.05 ? tokens / seconds : null;
  }
}

/** Return what a comment in the stream tells of the prompt. */
function promptProgress(note) {
  const found = /^ping (\d+)\/(\d+) prompt tokens$/.exec(note);
  if (!found || found[1] === found[2]) return "";
  return `${say("reading")}: ${number(Number(found[1]))} ${say("of")} ${number(Number(found[2]))} ${say("tokens")}`;
}

function setAppearance(value) {
  if (value) localStorage.setItem(APPEARANCE, value);
  else localStorage.removeItem(APPEARANCE);
  document.documentElement.dataset.appearance = value;
  byId("appearance").value = value;
}

setAppearance(localStorage.getItem(APPEARANCE) ?? "");
speak(localStorage.getItem(LANGUAGE) ?? (navigator.language.startsWith("de") ? "de" : "en"));
byId("language").value = language;
const page = new Page();
page.start();
