// The page: what a person does becomes requests, what the server says becomes the log.

import { Api, Delay } from "./api.js";
import { Asking } from "./asking.js";
import { Composer } from "./composer.js";
import { Conversations, fromServer } from "./conversations.js";
import { byId, copyText, fill, h } from "./dom.js";
import { Dialogs } from "./dialogs.js";
import { read } from "./files.js";
import { language, number, say, speak, tokens } from "./i18n.js";
import { listenToKeys } from "./keys.js";
import { List } from "./list.js";
import { Log, button } from "./log.js";
import { markdown } from "./markdown.js";

const WIDE = matchMedia("(min-width: 50rem)");
const APPEARANCE = "fulmen-appearance";
const LANGUAGE = "fulmen-language";
const MODEL = "fulmen-model";

class Page {
  constructor() {
    this.dialogs = new Dialogs(this);
    this.api = new Api((isWrong) => this.dialogs.askForKey(isWrong));
    this.conversations = new Conversations(this.api);
    this.log = new Log(byId("log"), this.#actions());
    this.composer = new Composer((text) => this.asking.ask([{ role: "user", content: text }]), (problem) => this.tell(problem));
    this.conversation = null;
    this.models = []; // as the server tells them, each once
    this.asking = new Asking(this);
    this.list = new List(this);
    this.#listen();
    listenToKeys(this);
  }

  async start() {
    const { hash } = location;
    const delay = new Delay();
    while (!this.model) {
      try {
        await this.#readModels();
      } catch (error) {
        if (!this.conversation) this.begin();
        this.tell(error);
        await delay.pass();
      }
    }
    this.tell(null);
    if (!this.conversations.areKept) {
      byId("import-button").hidden = true;
      this.log.actions.tokens = null;
    }
    addEventListener("hashchange", () => this.openFromAddress());
    document.addEventListener("visibilitychange", () => this.lookAgain());
    await this.openFromAddress(hash);
    if (!this.conversations.areKept) this.tell(say("no-sessions"));
  }

  /** Read what is served and which conversations there are. */
  async #readModels() {
    const names = (await this.api.get("v1/models")).data;
    await this.conversations.refresh();
    this.models = names.filter(({ id, root }) => id === root); // others are further names of these
    fill(byId("models"), ...this.models.map(({ id }) => h("option", { value: id }, id)));
    if (this.conversation) this.show();
  }

  /** The model of the conversation that is shown; null until the server has told its models. */
  get model() {
    return this.modelOf(this.conversation);
  }

  /** The model that a conversation goes on with: its own, else the one chosen last. */
  modelOf(conversation) {
    const named = (name) => this.models.find(({ id }) => id === name);
    return named(conversation?.model) ?? named(localStorage.getItem(MODEL)) ?? this.models[0] ?? null;
  }

  /** Talk to a model: where something was said to another, in a new conversation. */
  chooseModel(name) {
    localStorage.setItem(MODEL, name);
    const { conversation } = this;
    if (this.isBlank && !this.asking.isBusy) {
      conversation.model = name;
      conversation.metadata = { ...conversation.metadata, settings: JSON.stringify(ofAnyModel(conversation.settings)) };
      this.composer.settings = conversation.settings;
      this.show();
    } else this.begin(name);
    this.showModel();
  }

  /** Read what was said elsewhere while nobody looked. */
  async lookAgain() {
    if (document.hidden || !this.model || !this.conversations.areKept || this.asking.attempts.size) return;
    try {
      await this.conversations.refresh();
      await this.#read(this.conversation);
    } catch {
      // what is shown stays
    }
  }

  // ---- which conversation

  async openFromAddress(hash = location.hash) {
    const found = this.conversations.list.find(({ id }) => `#${encodeURIComponent(id)}` === hash);
    if (found && found !== this.conversation) await this.open(found);
    else if (!this.conversation) this.begin();
  }

  /** Whether nothing was said in the conversation that is shown. */
  get isBlank() {
    return this.conversation?.isNew && this.conversation.path.length === 0;
  }

  /** Begin a conversation with a model, that of the one before unless told. */
  begin(model = this.model?.id) {
    if (!this.isBlank) {
      const before = this.conversation?.settings ?? {};
      const settings = model === this.model?.id ? before : ofAnyModel(before);
      this.#switchTo(this.conversations.begin({ ...settings, schema: null }, model));
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
    if (conversation !== this.conversation || this.asking.isBusy) return;
    this.show();
    if (detail.response_id) await this.asking.follow(conversation, detail.response_id, detail.asked.map(fromServer));
  }

  /** Show a new conversation in the place of one that was deleted. */
  gone(conversation) {
    if (conversation !== this.conversation || this.conversations.all.has(conversation.id)) return;
    this.conversation = null;
    this.begin();
  }

  #switchTo(conversation) {
    const before = this.conversation;
    this.conversation = conversation;
    if (before) this.asking.leave(before);
    this.log.clear();
    this.tell(null);
    history.replaceState(null, "", `#${encodeURIComponent(conversation.id)}`);
    this.composer.settings = conversation.settings;
    this.show();
    this.asking.comeBack();
    this.list.show();
    if (!WIDE.matches) this.toggleMenu(false);
    const { unsent } = conversation;
    conversation.unsent = null;
    if (unsent?.text) this.composer.giveBack(unsent.text);
    if (unsent?.problem) this.tell(unsent.problem);
  }

  // ---- what a turn's buttons do

  #actions() {
    return {
      copy: (text) => copyText(text),
      answerNow: () => this.asking.answerNow(),
      edit: (turn, message, section) => this.edit(turn, message, section),
      regenerate: (turn) => this.asking.again(turn, turn.asked),
      branch: (turn) => this.branch(turn),
      goTo: (turn) => this.goTo(turn),
      compare: (turn) => this.dialogs.compare(turn),
      tokens: (turn) => this.dialogs.tokens(turn),
      giveResults: (results) => this.asking.ask(results),
    };
  }

  edit(turn, message, section) {
    const area = h("textarea", { value: message.content, "aria-label": say("edit"), class: "edit" });
    const old = [...section.childNodes];
    const opener = document.activeElement;
    const close = () => {
      fill(section, ...old);
      opener.focus();
    };
    const send = () => {
      if (this.asking.isBusy) return;
      const asked = [...turn.asked.slice(0, turn.asked.indexOf(message)), { ...message, content: area.value }];
      fill(section, ...old);
      this.#resting.focus();
      this.asking.again(turn, asked);
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
    const { conversation } = this;
    if (this.asking.isBusy) return;
    try {
      await this.conversations.fork(conversation, turn.number);
      if (conversation !== this.conversation) return;
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
    await this.asking.again(turn, turn.asked, tokens);
  }

  /** Return the tokens of a turn's answer with their alternatives. */
  async tokensOf(turn) {
    const name = encodeURIComponent(this.conversation.branchWith(turn).name);
    return (await this.api.get(`v1/sessions/${name}/tokens?turn=${turn.number}&top=5`)).data;
  }

  /** Show a branch that has a turn: the current one, else the one used last. */
  async goTo(turn) {
    const { conversation } = this;
    const branch = conversation.branchWith(turn);
    if (this.asking.isBusy || !branch) return;
    conversation.current = branch.name;
    try {
      if (this.conversations.areKept) await this.conversations.load(conversation);
    } catch (error) {
      this.tell(error);
    }
    if (conversation !== this.conversation) return;
    const place = this.log.placeOfFocus();
    this.show();
    this.log.goTo(turn);
    this.log.focusAt(turn, place);
  }

  // ---- showing

  show() {
    const conversation = this.conversation;
    const focused = document.activeElement;
    this.log.show(conversation);
    if (!focused.isConnected) byId("scroller").focus();
    fill(byId("title"), conversation.title || say("new"));
    document.title = conversation.title ? `${conversation.title} · Fulmen` : "Fulmen";
    this.showMeter();
    this.showModel();
    if (conversation.branches.size > 1) {
      this.conversations.loadAll(conversation).then(() => {
        if (conversation === this.conversation) this.log.show(conversation);
      }, () => {});
    }
  }

  /** Show which model the conversation has, and what is known of it while nothing is said. */
  showModel() {
    const { model, models } = this;
    const choice = byId("models");
    choice.hidden = models.length < 2;
    if (!model) return;
    choice.value = model.id;
    byId("composer").classList.toggle("no-thought", model.capabilities?.thinking.supported === false);
    const [summary] = (model.card?.[language] ?? "").split("\n\n");
    const isSummary = models.length > 1 && summary && !summary.startsWith("- "); // else a list of facts
    fill(byId("about"), isSummary ? markdown(summary) : null);
  }

  showMeter() {
    const meter = byId("meter");
    const most = this.model?.max_model_len;
    const used = this.conversation?.tokens ?? 0;
    meter.hidden = !most || !used;
    if (meter.hidden) return;
    const parts = [`${number(used)} ${say("of")} ${tokens(most)}`];
    const { usage, pace } = this.conversation;
    if (usage?.input_tokens) {
      const share = (100 * usage.input_tokens_details.cached_tokens) / usage.input_tokens;
      parts.push(`${number(share)} % ${say("cached")}`);
    }
    if (pace) parts.push(`${number(pace, 1)} ${say("per-second")}`);
    meter.setAttribute("aria-label", say("context"));
    meter.setAttribute("aria-valuemax", most);
    meter.setAttribute("aria-valuenow", used);
    meter.setAttribute("aria-valuetext", parts.join(", "));
    meter.dataset.text = parts.join(" · ");
    meter.querySelector("span span").style.width = `${Math.min(100, (100 * used) / most)}%`;
  }

  showRunning() {
    const isRunning = this.asking.isBusy;
    const [shown, hidden] = isRunning ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
    const hadFocus = document.activeElement === hidden;
    shown.hidden = false;
    hidden.hidden = true;
    this.composer.isBusy = isRunning;
    if (hadFocus) (isRunning ? shown : this.#resting).focus();
  }

  /** Where the focus goes when its element is gone: on a phone not into the field, which would open
   * the keyboard. */
  get #resting() {
    return WIDE.matches ? this.composer.input : byId("scroller");
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
      await this.open(await this.conversations.import(await read(file), this.model?.id ?? ""));
      this.tell(say("imported"));
    } catch (error) {
      this.tell(error);
    }
  }

  // ---- keys and buttons

  #listen() {
    byId("new").addEventListener("click", () => this.begin());
    byId("models").addEventListener("change", (event) => this.chooseModel(event.target.value));
    byId("stop").addEventListener("click", () => this.asking.stop());
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
      this.log.speak();
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
    if (turn) this.asking.again(turn, turn.asked);
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
    if (siblings.length > 1) this.goTo(siblings[(siblings.indexOf(turn) + step + siblings.length) % siblings.length]);
  }
}

/** Return the settings that another model is given too: sampling and thinking are each model's own. */
const ofAnyModel = ({ system, tools }) => ({ system, tools });

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
