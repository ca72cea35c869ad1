// Asking: a request goes out, its answer streams into the log and becomes a turn.
//
//   ask -> RunningAnswer's events -> LiveTurn -> the session is saved -> the turn in its place
//
// `again` does it in a branch of its own, from the beginning or from some tokens on.

import { RunningAnswer } from "./api.js";
import { requestOf } from "./conversations.js";
import { byId, fill } from "./dom.js";
import { number, say } from "./i18n.js";

export class Asking {
  constructor(page) {
    this.page = page;
    this.running = null; // the answer that streams now
    this.work = null; // what is under way, from the first request to the turn
    this.usage = null; // tokens of the last request
    this.pace = null; // tokens in a second of the last answer
  }

  /** Stop listening to what runs, and forget what is known of the last answer. */
  leave() {
    this.running?.leave();
    this.running = this.work = this.usage = this.pace = null;
    this.page.showRunning(false);
  }

  get isBusy() {
    return Boolean(this.running || this.work);
  }

  /** Do one thing at a time: a second click asks nothing. */
  async #alone(work) {
    if (this.isBusy) return false;
    const mine = work();
    this.work = mine;
    try {
      return await mine;
    } finally {
      if (this.work === mine) this.work = null;
    }
  }

  /** Ask for the answer to new messages after those of the branch; false if nothing came of it. */
  ask(asked) {
    if (this.page.model && !this.isBusy) return this.#alone(() => this.#ask(asked));
    this.#giveBack(asked);
    return false;
  }

  async #ask(asked, begun = []) {
    const { conversation, conversations } = this.page;
    const before = conversation.current;
    try {
      const said = await this.#inBranch(asked);
      const body = await this.#body(said);
      if (conversation !== this.page.conversation) return false; // a person went elsewhere meanwhile
      if (begun.length) body.prefix_token_ids = begun.map((token) => token.id);
      if (await this.follow(RunningAnswer.start(this.page.api, body), said, begun)) return true;
      if (conversation.current !== before) {
        await conversations.drop(conversation, conversation.current, before);
        this.page.show();
      }
    } catch (error) {
      this.#failed(error, asked);
    }
    return false;
  }

  /** Return what the next answer answers. With another system prompt that is all that was said, in
   * a branch of its own. */
  async #inBranch(asked) {
    const { conversation, conversations } = this.page;
    if (!conversation.hasNewSystem) return asked;
    const said = [...conversation.messages.filter(({ role }) => role !== "system"), ...asked];
    await conversations.fork(conversation, 0);
    this.page.show();
    return said;
  }

  /** Return the request for the answer to messages after those of the branch; the server knows the
   * conversation then. */
  async #body(said) {
    const { conversation, conversations, composer, model } = this.page;
    if (!conversation.title) conversation.metadata = { ...conversation.metadata, title: titleOf(said) };
    const body = requestOf(conversation, [...conversation.messages, ...said], model.id);
    if (conversations.areKept) {
      if (conversation.isNew) await conversations.create(conversation);
      body.session = conversation.current;
    }
    conversation.isNew = false;
    if (composer.budget !== null) body.thinking_token_budget = composer.budget;
    return body;
  }

  /** Show an answer as it comes, then the turn that it became; false if nothing came of it. One that
   * is left goes on elsewhere. */
  async follow(answer, asked, begun = []) {
    const conversation = this.page.conversation;
    const last = conversation.path.at(-1);
    this.running = answer;
    const live = this.page.log.begin(asked, begun);
    this.page.showRunning(true);
    this.page.tell(null);
    try {
      await this.#listenTo(answer, live);
      if (!answer.isLeft) await this.#settle(answer, live, asked);
    } catch (error) {
      if (!answer.isLeft) this.#failed(error, asked);
      return answer.isLeft;
    } finally {
      if (this.running === answer) {
        this.running = null;
        this.page.showRunning(false);
      }
    }
    return answer.isLeft || conversation.path.at(-1) !== last;
  }

  /** Show the events of an answer until its end, or until it is left. */
  async #listenTo(answer, live) {
    const pace = new Pace();
    for await (const event of answer.follow()) {
      if (answer.isLeft) return;
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
    this.page.log.endLive();
    this.page.show();
    this.page.tell(error);
    this.#giveBack(asked);
  }

  #giveBack(asked) {
    const text = asked.findLast((message) => message.role === "user")?.content;
    if (text) this.page.composer.giveBack(text);
  }

  /** Put the turn that an answer became in the place of the answer that streamed. */
  async #settle(answer, live, asked) {
    const { conversation, conversations } = this.page;
    const last = conversation.path.at(-1);
    live.end();
    if (conversations.areKept) {
      await this.page.api.post(`v1/sessions/${encodeURIComponent(conversation.current)}/save`, {});
      await conversations.load(conversation);
    } else if (live.hasSomething) conversation.add([...asked, live.message], live.response ?? {});
    conversation.lastUsed = Date.now() / 1000;
    const newest = conversation.path.at(-1);
    const turn = newest === last ? null : newest;
    if (answer.isLeft) return;
    this.page.log.endLive(turn);
    this.page.show();
    this.page.list.show();
    if (live.response?.error) this.page.tell(new Error(live.response.error.message));
    if (!turn) this.#giveBack(asked);
    fill(byId("said"), say("answer-whole"));
  }

  async stop() {
    try {
      await this.running?.stop();
    } catch (error) {
      this.page.tell(error);
    }
  }

  async answerNow() {
    try {
      await this.running?.answerNow();
    } catch (error) {
      this.page.tell(error);
    }
  }

  /** Ask again at a turn's place, in a branch of its own, which goes if nothing comes of it.
   * begun: tokens that the answer begins with. */
  again(turn, asked, begun = []) {
    return this.#alone(() => this.#again(turn, asked, begun));
  }

  async #again(turn, asked, begun) {
    const { conversation, conversations } = this.page;
    const before = conversation.current;
    try {
      await conversations.fork(conversation, turn.number - 1);
      this.page.show();
      const fork = conversation.current;
      if (await this.#ask(asked, begun)) return;
      await conversations.drop(conversation, fork, before);
      this.page.show();
    } catch (error) {
      this.page.tell(error);
    }
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
