// The log: turns of the current branch as articles, and the answer that is being said.
//
// Each turn is drawn once and stays; an answer that streams changes only its own last block. The
// browser skips the layout of articles that are out of sight (content-visibility).

import { h, fill, byId } from "./dom.js";
import { filesIn } from "./files.js";
import { say, tokens } from "./i18n.js";
import { Markdown, markdown } from "./markdown.js";

/** Distance in pixels from the end within which the log follows what comes. */
const NEAR_END = 80;

export class Log {
  /** actions: what a person can do to a turn; see `turnActions`. */
  constructor(element, actions) {
    this.element = element;
    this.actions = actions;
    this.articles = new Map(); // turn id -> its element
    this.live = null;
    this.follows = true;
    this.lastTop = 0;
    this.scroller = byId("scroller");
    this.below = byId("below");
    new ResizeObserver(() => this.keepEnd()).observe(element);
    this.scroller.addEventListener("scroll", () => this.noteScroll(), { passive: true });
    this.below.addEventListener("click", () => this.toEnd());
  }

  /** Show the turns of a conversation's branch; what is there already stays as it is. */
  show(conversation) {
    const path = conversation?.path ?? [];
    const wanted = new Set(path.map((turn) => turn.id));
    for (const [id, article] of this.articles) {
      if (!wanted.has(id)) {
        article.remove();
        this.articles.delete(id);
      }
    }
    let previous = null;
    for (const turn of path) {
      let article = this.articles.get(turn.id);
      if (!article) {
        article = turnElement(turn, this.actions);
        this.articles.set(turn.id, article);
      }
      showBranches(article, conversation, turn, this.actions);
      showResultForm(article, turn, turn === path.at(-1), this.actions);
      const next = previous ? previous.nextElementSibling : this.element.firstElementChild;
      if (article !== next) this.element.insertBefore(article, next);
      previous = article;
    }
    this.element.classList.toggle("empty", path.length === 0 && !this.live);
  }

  /** Return an answer that streams, to messages that are not a turn yet; it is shown once it is
   * attached. begun: tokens that it begins with. */
  begin(asked, begun) {
    const live = new LiveTurn(asked, this);
    for (const { kind, text } of begun) {
      if (kind === "thinking") live.think(text);
      else if (kind === "content") live.say(text);
    }
    return live;
  }

  /** Show an answer that streams below the turns. */
  attach(live) {
    for (const old of this.element.querySelectorAll(".unkept")) old.remove();
    this.live = live;
    this.element.append(live.element);
    this.element.classList.remove("empty");
    this.toEnd();
  }

  /** Leave an answer that nobody keeps where it is, with a note, until the next one begins. */
  keepUnkept(live, note) {
    live.note(note);
    live.element.classList.add("unkept");
    live.answer.classList.remove("live");
    if (this.live === live) this.live = null;
  }

  /** Put the turn that it became in the place of the answer that streamed, as it looked; without
   * a turn it goes. */
  endLive(live, turn) {
    if (this.live === live) this.live = null;
    if (!turn) {
      live.element.remove();
      return;
    }
    // The same element: a new one would have no height at first, and the log would jump.
    const hadFocus = live.element.contains(document.activeElement);
    const article = turnElement(turn, this.actions, live.element);
    if (hadFocus) article.focus({ preventScroll: true });
    if (live.isThoughtOpen) article.querySelector(".thought")?.setAttribute("open", "");
    this.articles.set(turn.id, article);
  }

  /** Show nothing; an answer that streams goes on unseen. */
  clear() {
    this.live = null;
    this.articles.clear();
    fill(this.element);
    this.element.classList.add("empty");
    this.follows = true;
    this.below.hidden = true;
  }

  /** Draw the turns anew in another language; an answer that streams stays, and gets its words. */
  speak() {
    for (const article of this.articles.values()) article.remove();
    this.articles.clear();
    this.live?.speak();
  }

  /** Return which button of a turn's branches has the focus, -1 for the turn itself or what is in
   * it; null if the focus is elsewhere. */
  placeOfFocus() {
    const focused = document.activeElement;
    if (!this.element.contains(focused)) return null;
    return [...(focused.closest(".branches")?.querySelectorAll("button") ?? [])].indexOf(focused);
  }

  /** Give the focus to a turn where it was in another one. */
  focusAt(turn, place) {
    const article = this.articles.get(turn.id);
    if (!article || place === null) return;
    (article.querySelectorAll(".branches button")[place] ?? article).focus({ preventScroll: true });
  }

  /** Follow what comes while a person is at the end; who scrolls up is left there. */
  noteScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    if (scrollHeight - scrollTop - clientHeight < NEAR_END) {
      this.follows = true;
      this.below.hidden = true;
    } else if (scrollTop < this.lastTop) this.follows = false;
    this.lastTop = scrollTop;
  }

  /** Show where a turn begins. */
  goTo(turn) {
    this.follows = false;
    this.articles.get(turn.id)?.scrollIntoView({ block: "start" });
  }

  /** Stay at the end if we were there; else say that there is more below. Nothing jumps. */
  keepEnd() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    else if (this.live) this.below.hidden = false;
  }

  toEnd() {
    this.follows = true;
    this.below.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

// ---- turns that are whole

function turnElement(turn, actions, article = h("article", { class: "turn" })) {
  fill(article);
  article.tabIndex = -1;
  article.dataset.turn = turn.id;
  for (const message of turn.asked) {
    const isAnswer = message.role === "assistant"; // of a history that was said elsewhere
    article.append(isAnswer ? answerElement(message, {}, null) : askedElement(message, turn, actions));
  }
  article.append(answerElement(turn.answer, turn, actions));
  return article;
}

function askedElement(message, turn, actions) {
  if (message.role === "tool") {
    return card("result", `${say("result")} ${message.name ?? message.tool_call_id ?? ""}`, message.content);
  }
  const isUser = message.role === "user";
  const section = h(
    "section",
    { class: `message ${isUser ? "user" : "system"}`, role: "group", "aria-label": say(isUser ? "you" : "system") },
    h("div", { class: "text", dir: "auto" }, ...withFiles(message.content)),
  );
  if (isUser && actions) {
    const edit = button("edit", () => actions.edit(turn, message, section));
    section.append(h("div", { class: "tools" }, edit, button("copy", () => actions.copy(message.content))));
  }
  return section;
}

/** Return a message's text; the files in it are folded. */
function withFiles(text) {
  const parts = [];
  let rest = 0;
  for (const { name, content, start, end } of filesIn(text)) {
    parts.push(text.slice(rest, start));
    parts.push(
      h("details", { class: "file" }, h("summary", {}, `${say("file")}: ${name}`), h("pre", { tabIndex: 0 }, content)),
    );
    rest = end;
  }
  parts.push(text.slice(rest));
  return parts.filter((part) => part !== "");
}

function answerElement(message, turn, actions) {
  const section = h("section", { class: "message answer", role: "group", "aria-label": say("model") });
  if (message.thinking) section.append(thoughtElement(message.thinking, turn.thinking_tokens));
  if (message.content) section.append(markdown(message.content));
  for (const call of message.tool_calls ?? []) section.append(callElement(call));
  for (const call of turn.cut ?? []) section.append(card("call cut", `${say("call-cut")} ${call.name}`, call.json));
  if (turn.finish_reason === "length") section.append(h("p", { class: "note" }, say("cut")));
  if (turn.finish_reason === "abort") section.append(h("p", { class: "note" }, say("stopped")));
  if (!actions) return section;
  const hasTokens = turn.answer_tokens > 0; // not those of an answer from elsewhere
  section.append(
    h(
      "div",
      { class: "tools" },
      button("copy", () => actions.copy(message.content)),
      button("regenerate", () => actions.regenerate(turn)),
      actions.tokens && hasTokens ? button("tokens-view", () => actions.tokens(turn)) : null,
      button("branch-here", () => actions.branch(turn)),
      hasTokens ? h("span", { class: "count" }, tokens(turn.answer_tokens)) : null,
    ),
  );
  return section;
}

function thoughtElement(text, numTokens) {
  // The text is put in when it is first opened: long thoughts cost nothing until then.
  const body = h("div", { class: "thought-text", dir: "auto" });
  const details = h(
    "details",
    { class: "thought", ontoggle: () => details.open && !body.firstChild && body.append(markdown(text)) },
    h("summary", {}, withTokens("thought", numTokens)),
    body,
  );
  return details;
}

const withTokens = (name, numTokens) =>
  numTokens ? `${say(name)} · ${tokens(numTokens)}` : say(name);

function callElement(call) {
  return card("call", `${say("call")} ${call.name}`, JSON.stringify(call.arguments, null, 2));
}

function card(kind, title, text) {
  const isLong = text.length > 1500;
  return h(
    "details",
    { class: `card ${kind}`, open: !isLong },
    h("summary", {}, title),
    h("pre", { tabIndex: 0, role: "group", "aria-label": title }, text),
  );
}

/** Let a person say what the tools answered that the last turn calls. */
function showResultForm(article, turn, isLast, actions) {
  const calls = turn.answer.tool_calls ?? [];
  const form = article.querySelector("form.results");
  if (!isLast || !calls.length || !actions) form?.remove();
  else if (!form) article.append(resultForm(calls, actions));
}

function resultForm(calls, actions) {
  const areas = calls.map((call) => h("textarea", { rows: 2, id: `result-${call.id}`, spellcheck: false }));
  const fields = calls.flatMap((call, place) => [
    h("label", { for: areas[place].id }, `${say("result")} ${call.name}`),
    areas[place],
  ]);
  const send = (event) => {
    event.preventDefault();
    actions.giveResults(calls.map(({ id, name }, place) => ({ role: "tool", tool_call_id: id, name, content: areas[place].value })));
  };
  return h("form", { class: "results fields", onsubmit: send }, ...fields, h("button", { type: "submit" }, say("give-result")));
}

/** Return a button with the words of that name. */
export function button(name, onclick, properties = {}) {
  return h("button", { type: "button", class: "quiet", onclick, ...properties }, say(name));
}

/** Show which of the branches at its place a turn is, with buttons to the others. */
function showBranches(article, conversation, turn, actions) {
  const siblings = conversation.siblings(turn);
  const text = `${siblings.indexOf(turn) + 1} / ${siblings.length}`;
  const shown = article.querySelector(".branches");
  if (shown?.querySelector("span").textContent === text) return; // as it was, with the focus in it
  shown?.remove();
  if (siblings.length < 2 || !actions) return;
  const go = (step) => {
    const now = conversation.siblings(turn);
    actions.goTo(now[(now.indexOf(turn) + step + now.length) % now.length]);
  };
  article.append(
    h(
      "nav",
      { class: "branches", "aria-label": say("tree") },
      h("button", { type: "button", class: "quiet", onclick: () => go(-1), "aria-label": say("previous-branch") }, "‹"),
      h("span", {}, text),
      h("button", { type: "button", class: "quiet", onclick: () => go(1), "aria-label": say("next-branch") }, "›"),
      button("compare", () => actions.compare(turn)),
    ),
  );
}

/** Return a branch's turns as elements without buttons, for a view beside another. */
export function plainTurns(turns) {
  return turns.map((turn) => turnElement(turn, null));
}

// ---- the answer that streams

class LiveTurn {
  /** log: where it is shown */
  constructor(asked, log) {
    this.asked = asked;
    this.status = h("p", { class: "status" });
    this.answer = h("section", { class: "message answer live", role: "group", "aria-label": say("model"), "aria-busy": "true" }, this.status);
    this.isThinking = false;
    this.element = h("article", { class: "turn" }, ...asked.map((m) => askedElement(m, null, null)), this.answer);
    this.thought = null; // {piece, summary, details, now, numTokens}
    this.text = null;
    this.calls = new Map(); // output index -> {id, name, json, pre, summary}
    this.log = log;
    this.response = null; // as it was at its end
  }

  /** What it said so far, as a message. */
  get message() {
    const message = { role: "assistant", content: this.text?.text ?? "" };
    if (this.thought) message.thinking = this.thought.piece.text;
    if (this.calls.size) {
      const calls = [...this.calls.values()].map(({ id, name, json }) => ({ id, name, arguments: parsed(json) }));
      message.tool_calls = calls.filter((call) => call.arguments !== null);
    }
    return message;
  }

  /** The calls after the first ones: those that were cut. */
  callsAfter(count) {
    return [...this.calls.values()].slice(count);
  }

  get hasSomething() {
    return Boolean(this.text || this.thought || this.calls.size);
  }

  get isThoughtOpen() {
    return Boolean(this.thought?.details.open);
  }

  think(text) {
    if (!this.thought) {
      const piece = new Markdown();
      const summary = h("summary", {}, say("thinking"));
      const now = button("answer-now", () => this.log.actions.answerNow(), { class: "now" });
      const details = h("details", { class: "thought", open: true }, summary, h("div", { class: "thought-text" }, piece.element));
      this.thought = { piece, summary, details, now, numTokens: 0 };
      this.isThinking = true;
      this.answer.insertBefore(details, this.status);
      this.answer.insertBefore(now, this.status);
    }
    this.thought.piece.add(text);
  }

  /** Show how many tokens it has so far. */
  count(numTokens) {
    if (!this.isThinking) return;
    this.thought.numTokens = numTokens;
    fill(this.thought.summary, withTokens("thinking", numTokens));
  }

  /** Fold the thought, unless a person scrolled up to read it. */
  endThought() {
    if (!this.isThinking) return;
    this.isThinking = false;
    this.thought.piece.end();
    if (this.thought.now === document.activeElement) this.thought.summary.focus();
    this.thought.now.remove();
    if (this.log.follows) this.thought.details.open = false;
    fill(this.thought.summary, say("thought"));
  }

  say(text) {
    this.endThought();
    if (!this.text) {
      this.text = new Markdown();
      this.answer.insertBefore(this.text.element, this.status);
    }
    this.text.add(text);
  }

  call(index, { call_id: id, name }) {
    this.endThought();
    const pre = h("pre", {}, "");
    const summary = h("summary", {}, `${say("call")} ${name}`);
    const element = h("details", { class: "card call", open: true }, summary, pre);
    this.calls.set(index, { id, name, json: "", pre, summary });
    this.answer.insertBefore(element, this.status);
  }

  argumentsOf(index, text) {
    const call = this.calls.get(index);
    if (!call) return;
    call.json += text;
    call.pre.append(text);
  }

  /** Write its words in the language that is spoken now. */
  speak() {
    const asked = this.asked.map((message) => askedElement(message, null, null));
    while (this.answer.previousSibling) this.answer.previousSibling.remove();
    this.element.prepend(...asked);
    this.answer.setAttribute("aria-label", say("model"));
    this.status.textContent = ""; // the next sign of life is in the new language
    for (const { name, summary } of this.calls.values()) fill(summary, `${say("call")} ${name}`);
    if (!this.thought) return;
    fill(this.thought.now, say("answer-now"));
    fill(this.thought.summary, this.isThinking ? withTokens("thinking", this.thought.numTokens) : say("thought"));
  }

  note(text) {
    if (this.status.textContent !== text) fill(this.status, text);
  }

  end() {
    this.endThought();
    this.text?.end();
    this.answer.setAttribute("aria-busy", "false");
  }
}

/** Return the arguments of a call; null for one that was cut. */
function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}
