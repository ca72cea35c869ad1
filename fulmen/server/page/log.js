// The log: turns of the current branch as articles, and the answer that is being said.
//
// Each turn is drawn once and stays; an answer that streams changes only its own last block. The
// browser skips the layout of articles that are out of sight (content-visibility).

import { h, fill, byId } from "./dom.js";
import { say, number } from "./i18n.js";
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
    this.scroller = byId("scroller");
    this.below = byId("below");
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
      const next = previous ? previous.nextElementSibling : this.element.firstElementChild;
      if (article !== next) this.element.insertBefore(article, next);
      previous = article;
    }
    this.element.classList.toggle("empty", path.length === 0 && !this.live);
    this.keepEnd();
  }

  /** Begin an answer that streams, to messages that are not a turn yet. */
  begin(asked) {
    this.live = new LiveTurn(asked, this.actions);
    this.element.append(this.live.element);
    this.element.classList.remove("empty");
    this.toEnd();
    return this.live;
  }

  /** Take the answer that streamed away: its turn takes its place. */
  endLive() {
    this.live?.element.remove();
    this.live = null;
  }

  clear() {
    this.endLive();
    this.articles.clear();
    fill(this.element);
    this.element.classList.add("empty");
    this.follows = true;
    this.below.hidden = true;
  }

  noteScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR_END;
    if (this.follows) this.below.hidden = true;
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

function turnElement(turn, actions) {
  const article = h("article", { class: "turn", tabIndex: -1, "data-turn": turn.id });
  for (const message of turn.asked) article.append(askedElement(message, turn, actions));
  article.append(answerElement(turn.answer, turn, actions));
  return article;
}

function askedElement(message, turn, actions) {
  if (message.role === "tool") {
    const name = message.name ?? message.tool_call_id ?? "";
    return card("result", `${say("result")} ${name}`, message.content);
  }
  const isUser = message.role === "user";
  const content = h("div", { class: "text", dir: "auto" }, ...withFiles(message.content));
  const tools = h("div", { class: "tools" });
  if (isUser && actions) {
    tools.append(
      button("edit", () => actions.edit(turn, message, section)),
      button("copy", () => actions.copy(message.content)),
    );
  }
  const section = h(
    "section",
    { class: `message ${isUser ? "user" : "system"}`, "aria-label": say(isUser ? "you" : "system") },
    content,
    tools,
  );
  return section;
}

/** Return a message's text; the files in it are folded. */
function withFiles(text) {
  const parts = [];
  let rest = 0;
  for (const match of text.matchAll(/<file name="([^"\n]{1,200})">\n([\s\S]*?)\n<\/file>/g)) {
    parts.push(text.slice(rest, match.index));
    parts.push(
      h("details", { class: "file" }, h("summary", {}, `${say("file")}: ${match[1]}`), h("pre", { tabIndex: 0 }, match[2])),
    );
    rest = match.index + match[0].length;
  }
  parts.push(text.slice(rest));
  return parts.filter((part) => part !== "");
}

function answerElement(message, turn, actions) {
  const section = h("section", { class: "message answer", "aria-label": say("model") });
  if (message.thinking) section.append(thoughtElement(message.thinking));
  if (message.content) section.append(markdown(message.content));
  for (const call of message.tool_calls ?? []) section.append(callElement(call));
  if (turn.finish_reason === "length") section.append(h("p", { class: "note" }, say("cut")));
  if (turn.finish_reason === "abort") section.append(h("p", { class: "note" }, say("stopped")));
  if (!actions) return section;
  section.append(
    h(
      "div",
      { class: "tools" },
      button("copy", () => actions.copy(message.content)),
      button("regenerate", () => actions.regenerate(turn)),
      button("tokens-view", () => actions.tokens(turn)),
      button("branch-here", () => actions.branch(turn)),
      h("span", { class: "count" }, `${number(turn.answer_tokens)} ${say("tokens")}`),
    ),
  );
  return section;
}

function thoughtElement(text) {
  // The text is put in when it is first opened: long thoughts cost nothing until then.
  const body = h("div", { class: "thought-text", dir: "auto" });
  const details = h(
    "details",
    { class: "thought", ontoggle: () => details.open && !body.firstChild && body.append(markdown(text)) },
    h("summary", {}, say("thought")),
    body,
  );
  return details;
}

export function callElement(call) {
  return card("call", `${say("call")} ${call.name}`, JSON.stringify(call.arguments, null, 2));
}

function card(kind, title, text) {
  const isLong = text.length > 1500;
  return h(
    "details",
    { class: `card ${kind}`, open: !isLong },
    h("summary", {}, title),
    h("pre", { tabIndex: 0, role: "region", "aria-label": title }, text),
  );
}

/** Return a button with the words of that name. */
export function button(name, onclick, properties = {}) {
  return h("button", { type: "button", class: "quiet", onclick, ...properties }, say(name));
}

/** Show which of the branches at its place a turn is, with buttons to the others. */
function showBranches(article, conversation, turn, actions) {
  article.querySelector(".branches")?.remove();
  const siblings = conversation.siblings(turn);
  if (siblings.length < 2 || !actions) return;
  const place = siblings.indexOf(turn);
  const go = (step) => actions.goTo(siblings[(place + step + siblings.length) % siblings.length]);
  article.append(
    h(
      "nav",
      { class: "branches", "aria-label": say("tree") },
      h("button", { type: "button", class: "quiet", onclick: () => go(-1), "aria-label": say("previous-branch") }, "‹"),
      h("span", {}, `${place + 1} / ${siblings.length}`),
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
  constructor(asked, actions) {
    this.status = h("p", { class: "status", role: "status" });
    this.answer = h("section", { class: "message answer live", "aria-label": say("model"), "aria-busy": "true" }, this.status);
    this.element = h("article", { class: "turn" }, ...asked.map((m) => askedElement(m, null, null)), this.answer);
    this.thought = null; // {piece, summary}
    this.text = null;
    this.calls = new Map(); // output index -> {name, element}
    this.actions = actions;
    this.numThought = 0;
  }

  think(text) {
    if (!this.thought) {
      const piece = new Markdown();
      const summary = h("summary", {}, say("thinking"));
      const now = button("answer-now", () => this.actions.answerNow(), { class: "now" });
      const details = h("details", { class: "thought", open: true }, summary, h("div", { class: "thought-text" }, piece.element));
      this.thought = { piece, summary, details, now };
      this.answer.insertBefore(details, this.status);
      this.answer.insertBefore(now, this.status);
    }
    this.thought.piece.add(text);
  }

  endThought() {
    if (!this.thought || !this.thought.now.isConnected) return;
    this.thought.piece.end();
    this.thought.now.remove();
    this.thought.details.open = false;
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

  call(index, name) {
    this.endThought();
    const pre = h("pre", {}, "");
    const element = h("details", { class: "card call", open: true }, h("summary", {}, `${say("call")} ${name}`), pre);
    this.calls.set(index, pre);
    this.answer.insertBefore(element, this.status);
  }

  argumentsOf(index, text) {
    this.calls.get(index)?.append(text);
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
