// The page: what a person does becomes requests, what the server says becomes the log.

import { Api, RunningAnswer } from "./api.js";
import { Composer } from "./composer.js";
import { Conversations, fromServer, requestOf } from "./conversations.js";
import { byId, copyText, fill, h } from "./dom.js";
import { Dialogs } from "./dialogs.js";
import { read } from "./files.js";
import { language, number, say, speak } from "./i18n.js";
import { listenToKeys } from "./keys.js";
import { List } from "./list.js";
import { Log, button } from "./log.js";

const WIDE = matchMedia("(min-width: 50rem)");
const APPEARANCE = "fulmen-appearance";
const LANGUAGE = "fulmen-language";

class Page {
  constructor() {
    this.dialogs = new Dialogs(this);
    this.api = new Api((isWrong) => this.dialogs.askForKey(isWrong));
    this.conversations = new Conversations(this.api);
    this.log = new Log(byId("log"), this.#actions());
    this.composer = new Composer((text) => this.send(text), (problem) => this.tell(problem));
    this.conversation = null;
    this.model = null;
    this.running = null; // the answer that streams now
    this.list = new List(this);
    this.#listen();
    listenToKeys(this);
  }

  async start() {
    try {
      const models = await this.api.get("v1/models");
      this.model = models.data[0];
      byId("composer").classList.toggle("no-thought", this.model.capabilities?.thinking.supported === false);
      await this.conversations.refresh();
    } catch (error) {
      this.tell(error);
      return;
    }
    if (!this.conversations.areKept) {
      byId("import-button").hidden = true;
      this.log.actions.tokens = null;
    }
    addEventListener("hashchange", () => this.openFromAddress());
    document.addEventListener("visibilitychange", () => this.lookAgain());
    await this.openFromAddress();
    if (!this.conversations.areKept) this.tell(say("no-sessions"));
  }

  /** Read what was said elsewhere while nobody looked. */
  async lookAgain() {
    if (document.hidden || !this.conversations.areKept || this.running) return;
    try {
      await this.conversations.refresh();
      await this.#read(this.conversation);
    } catch {
      // what is shown stays
    }
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
    try {
      await this.#read(conversation);
    } catch (error) {
      this.tell(error);
    }
  }

  /** Read the shown conversation as the server has it, and follow the answer that runs there. */
  async #read(conversation) {
    if (conversation.isNew || !this.conversations.areKept) return;
    const detail = await this.conversations.load(conversation);
    if (conversation !== this.conversation || this.running) return;
    this.show();
    if (detail.response_id) await this.follow(new RunningAnswer(this.api, detail.response_id), detail.asked.map(fromServer));
  }

  /** Show a new conversation in the place of one that was deleted. */
  gone(conversation) {
    if (conversation !== this.conversation || this.conversations.all.has(conversation.id)) return;
    this.conversation = null;
    this.begin();
  }

  #switchTo(conversation) {
    this.running?.leave();
    this.running = null;
    this.usage = this.pace = null;
    this.conversation = conversation;
    this.log.clear();
    this.tell(null);
    history.replaceState(null, "", `#${encodeURIComponent(conversation.id)}`);
    this.composer.settings = conversation.settings;
    this.show();
    this.list.show();
    this.showRunning(false);
    if (!WIDE.matches) this.toggleMenu(false);
  }

  // ---- asking

  send(text) {
    return this.ask([{ role: "user", content: text }]);
  }

  /** Ask for the answer to new messages after those of the branch; false if nothing came of it.
   * begun: tokens that it begins with. */
  async ask(asked, begun = []) {
    const { conversation, conversations } = this;
    if (this.running || !this.model) {
      this.#giveBack(asked);
      return false;
    }
    if (!conversation.title) conversation.metadata = { ...conversation.metadata, title: titleOf(asked) };
    let body;
    try {
      body = requestOf(conversation, [...conversation.messages(), ...asked], this.model.id);
      if (begun.length) body.prefix_token_ids = begun.map((token) => token.id);
      if (conversations.areKept) {
        if (conversation.isNew) await conversations.create(conversation);
        body.session = conversation.current;
      }
      conversation.isNew = false;
    } catch (error) {
      this.#failed(error, asked);
      return false;
    }
    if (this.composer.budget !== null) body.thinking_token_budget = this.composer.budget;
    return this.follow(RunningAnswer.start(this.api, body), asked, begun);
  }

  /** Show an answer as it comes, then the turn that it became; false if nothing came of it. */
  async follow(answer, asked, begun = []) {
    const conversation = this.conversation;
    const last = conversation.path.at(-1);
    this.running = answer;
    const live = this.log.begin(asked, begun);
    this.showRunning(true);
    this.tell(null);
    try {
      await this.#listenTo(answer, live, conversation);
      if (conversation === this.conversation) await this.#settle(live, asked);
    } catch (error) {
      if (conversation === this.conversation) this.#failed(error, asked);
      return false;
    } finally {
      if (this.running === answer) this.running = null;
      if (conversation === this.conversation) this.showRunning(false);
    }
    return conversation.path.at(-1) !== last;
  }

  /** Show the events of an answer until its end, or until another conversation is shown. */
  async #listenTo(answer, live, conversation) {
    const pace = new Pace();
    for await (const event of answer.follow()) {
      if (conversation !== this.conversation) return;
      if (event.lost) live.note(say("reconnecting"));
      else if (event.note) this.#takeNote(event.note, live, pace);
      else this.#take(event.data, live);
    }
    this.pace = pace.perSecond;
  }

  /** Take what a comment in the stream tells: how far the prompt is read, or the answer said. */
  #takeNote(note, live, pace) {
    const prompt = /^ping (\d+)\/(\d+) prompt tokens$/.exec(note);
    const said = /^ping (\d+) tokens$/.exec(note);
    if (prompt && prompt[1] !== prompt[2]) {
      live.note(`${say("reading")}: ${number(Number(prompt[1]))} ${say("of")} ${number(Number(prompt[2]))} ${say("tokens")}`);
    } else if (said) {
      pace.count(Number(said[1]));
      live.count(Number(said[1]));
      live.note(pace.text);
    }
  }

  #take(event, live) {
    switch (event.type) {
      case "response.reasoning_text.delta":
        live.think(event.delta);
        break;
      case "response.output_text.delta":
        live.say(event.delta);
        break;
      case "response.output_item.added":
        if (event.item.type === "function_call") live.call(event.output_index, event.item);
        break;
      case "response.function_call_arguments.delta":
        live.argumentsOf(event.output_index, event.delta);
        break;
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        live.response = event.response;
        this.usage = event.response.usage ?? this.usage;
        break;
    }
  }

  #failed(error, asked) {
    this.log.endLive();
    this.show();
    this.tell(error);
    this.#giveBack(asked);
  }

  #giveBack(asked) {
    const text = asked.find((message) => message.role === "user")?.content;
    if (text) this.composer.giveBack(text);
  }

  /** Put the turn that an answer became in the place of the answer that streamed. */
  async #settle(live, asked) {
    const { conversation, conversations } = this;
    const last = conversation.path.at(-1);
    live.end();
    if (conversations.areKept) {
      await this.api.post(`v1/sessions/${encodeURIComponent(conversation.current)}/save`, {});
      await conversations.load(conversation);
    } else if (live.hasSomething) conversation.add([...asked, live.message], live.response ?? {});
    conversation.lastUsed = Date.now() / 1000;
    const newest = conversation.path.at(-1);
    const turn = newest === last ? null : newest;
    if (turn) turn.thinking_tokens ??= live.response?.usage?.output_tokens_details.reasoning_tokens;
    if (conversation !== this.conversation) return;
    this.log.endLive(turn);
    this.show();
    this.list.show();
    if (live.response?.error) this.tell(new Error(live.response.error.message));
    if (!turn) this.#giveBack(asked);
    fill(byId("said"), say("answer-whole"));
  }

  async stop() {
    try {
      await this.running?.stop();
    } catch (error) {
      this.tell(error);
    }
  }

  async answerNow() {
    try {
      await this.running?.answerNow();
    } catch (error) {
      this.tell(error);
    }
  }

  // ---- what a turn's buttons do

  #actions() {
    return {
      copy: (text) => copyText(text),
      answerNow: () => this.answerNow(),
      edit: (turn, message, section) => this.edit(turn, message, section),
      regenerate: (turn) => this.again(turn, turn.asked),
      branch: (turn) => this.branch(turn),
      goTo: (turn) => this.goTo(turn),
      compare: (turn) => this.dialogs.compare(turn),
      tokens: (turn) => this.dialogs.tokens(turn),
      giveResults: (results) => this.ask(results),
    };
  }

  /** Ask again at a turn's place, in a branch of its own, which goes if nothing comes of it. */
  async again(turn, asked, begun = []) {
    if (this.running) return;
    const { conversation, conversations } = this;
    const before = conversation.current;
    try {
      await conversations.fork(conversation, turn.number - 1);
      this.show();
      const fork = conversation.current;
      if ((await this.ask(asked, begun)) || conversation !== this.conversation) return;
      await conversations.drop(conversation, fork, before);
      this.show();
    } catch (error) {
      this.tell(error);
    }
  }

  edit(turn, message, section) {
    const area = h("textarea", { value: message.content, "aria-label": say("edit"), class: "edit" });
    const old = [...section.childNodes];
    const close = () => fill(section, ...old);
    const send = () => {
      if (this.running) return;
      const asked = [...turn.asked.slice(0, turn.asked.indexOf(message)), { ...message, content: area.value }];
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
    if (this.running) return;
    try {
      await this.conversations.fork(this.conversation, turn.number);
      this.show();
      this.log.toEnd();
      this.composer.focus();
    } catch (error) {
      this.tell(error);
    }
  }

  /** Go on from some token of a turn's answer, or from another token there. */
  async branchAt(turn, tokens) {
    this.dialogs.close();
    await this.again(turn, turn.asked, tokens);
  }

  /** Return the tokens of a turn's answer with their alternatives. */
  async tokensOf(turn) {
    const name = encodeURIComponent(this.conversation.branchWith(turn).name);
    return (await this.api.get(`v1/sessions/${name}/tokens?turn=${turn.number}&top=5`)).data;
  }

  /** Show the branch used last that has a turn. */
  async goTo(turn) {
    if (this.running) return;
    const branch = this.conversation.branchWith(turn);
    this.conversation.current = branch.name;
    try {
      if (this.conversations.areKept) await this.conversations.load(this.conversation);
    } catch (error) {
      this.tell(error);
    }
    this.show();
    this.log.goTo(turn);
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
    const parts = [`${number(used)} ${say("of")} ${number(most)} ${say("tokens")}`];
    const usage = this.usage;
    if (usage?.input_tokens) {
      const share = (100 * usage.input_tokens_details.cached_tokens) / usage.input_tokens;
      parts.push(`${number(share)} % ${say("cached")}`);
    }
    if (this.pace) parts.push(`${number(this.pace, 1)} ${say("per-second")}`);
    meter.setAttribute("aria-label", say("context"));
    meter.setAttribute("aria-valuemax", most);
    meter.setAttribute("aria-valuenow", used);
    meter.setAttribute("aria-valuetext", parts.join(", "));
    meter.dataset.text = parts.join(" · ");
    meter.querySelector("span span").style.width = `${Math.min(100, (100 * used) / most)}%`;
  }

  showRunning(isRunning) {
    byId("stop").hidden = !isRunning;
    byId("send").hidden = isRunning;
    this.composer.isBusy = isRunning;
  }

  /** Tell a person something that went wrong, until the next thing is done; null takes it away. */
  tell(problem) {
    const notice = byId(this.dialogs.isOpen ? "dialog-notice" : "notice");
    notice.hidden = problem === null;
    const text = problem instanceof Error ? `${say("failed")}: ${problem.message}` : (problem ?? "");
    fill(notice, text);
  }

  async import(file) {
    try {
      await this.open(await this.conversations.import(await read(file)));
      this.tell(say("imported"));
    } catch (error) {
      this.tell(error);
    }
  }

  // ---- keys and buttons

  #listen() {
    byId("new").addEventListener("click", () => this.begin());
    byId("stop").addEventListener("click", () => this.stop());
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
      this.list.show();
      this.composer.showBudget();
    });
    byId("budget").addEventListener("change", () => this.keepBudget());
    WIDE.addEventListener("change", () => this.showMenu());
    this.showMenu();
  }

  /** Note the budget of thought with the conversation, for the next time it is opened. */
  async keepBudget() {
    const settings = { ...this.conversation.settings, thinking_token_budget: this.composer.budget };
    try {
      await this.conversations.note(this.conversation, { settings: JSON.stringify(settings) });
    } catch (error) {
      this.tell(error);
    }
  }

  /** Whether the list of conversations is shown: always there on a wide screen, unless shut. */
  get isMenuOpen() {
    const { classList } = document.body;
    return WIDE.matches ? !classList.contains("menu-shut") : classList.contains("menu-open");
  }

  toggleMenu(isOpen = !this.isMenuOpen) {
    if (WIDE.matches) document.body.classList.toggle("menu-shut", !isOpen);
    else document.body.classList.toggle("menu-open", isOpen);
    this.showMenu();
  }

  showMenu() {
    byId("menu").setAttribute("aria-expanded", String(this.isMenuOpen));
  }

  toSearch() {
    this.toggleMenu(true);
    byId("search").focus();
  }

  editLast() {
    const turn = this.conversation.path.at(-1);
    const article = turn && this.log.articles.get(turn.id);
    const message = turn?.asked.find((each) => each.role === "user");
    const section = article?.querySelector(".message.user");
    if (section && message) this.edit(turn, message, section);
  }

  /** Ask again for the last answer. */
  againHere() {
    const turn = this.conversation.path.at(-1);
    if (turn) this.again(turn, turn.asked);
  }

  /** Move the focus to the next or the previous turn. */
  focusTurn(step) {
    const articles = [...byId("log").querySelectorAll("article")];
    const place = articles.indexOf(document.activeElement.closest?.("article"));
    const next = articles[place < 0 ? (step > 0 ? 0 : articles.length - 1) : place + step];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  /** Show another branch at the focused turn. */
  otherBranch(step) {
    const id = document.activeElement.closest?.("article")?.dataset.turn ?? this.conversation.path.at(-1)?.id;
    const turn = this.conversation.turns.get(id);
    if (!turn) return;
    const siblings = this.conversation.siblings(turn);
    this.goTo(siblings[(siblings.indexOf(turn) + step + siblings.length) % siblings.length]);
  }
}

/** How fast tokens come, by what the server tells of their number. */
class Pace {
  constructor() {
    this.first = null; // {tokens, at}
    this.last = null;
  }

  count(tokens) {
    this.last = { tokens, at: performance.now() };
    this.first ??= this.last;
  }

  get perSecond() {
    if (!this.last || this.last === this.first) return null;
    return (1000 * (this.last.tokens - this.first.tokens)) / (this.last.at - this.first.at);
  }

  get text() {
    const pace = this.perSecond === null ? "" : ` · ${number(this.perSecond, 1)} ${say("per-second")}`;
    return `${number(this.last.tokens)} ${say("tokens")}${pace}`;
  }
}

/** Return a title for a conversation that begins with these messages. */
function titleOf(messages) {
  const first = messages.find((message) => message.role === "user")?.content ?? "";
  return first.replace(/<file name="([^"]*)">[\s\S]*?<\/file>/g, "$1").trim().slice(0, 80);
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
