// Asking: a request goes out, its answer streams into the log and becomes a turn.
//
//   ask -> Attempt -> RunningAnswer's events -> LiveTurn -> the session is saved -> the turn in its place
//
// An attempt belongs to its conversation, whichever is shown: who goes elsewhere meanwhile leaves the
// answer to the server, which keeps it. `again` asks in a branch of its own, from the beginning or from
// some tokens on.

import { Delay, RunningAnswer, isPassing } from "./api.js";
import { requestOf } from "./conversations.js";
import { byId, fill } from "./dom.js";
import { filesIn } from "./files.js";
import { number, say, tokens } from "./i18n.js";

/** What became of an attempt. */
const Outcome = Object.freeze({
  DONE: "done", // its turn is there
  EMPTY: "empty", // it ended, and the server has no turn of it
  REFUSED: "refused", // no answer began
  LEFT: "left", // a person went elsewhere; the answer goes on
  UNKEPT: "unkept", // it said something that the server does not keep, so it stays shown
});

/** One request for an answer, from a person's wish to the turn. */
class Attempt {
  constructor(conversation) {
    this.conversation = conversation;
    this.answer = null; // RunningAnswer, once it is asked for
    this.live = null; // LiveTurn that shows it
    this.isStopped = false; // a person wants no more of it
    this.isLeft = false; // a person went elsewhere, and the server has it
    this.problem = null; // error that is to be told
  }
}

export class Asking {
  constructor(page) {
    this.page = page;
    this.attempts = new Map(); // conversation -> its attempt
  }

  /** The attempt in the conversation that is shown. */
  get attempt() {
    return this.attempts.get(this.page.conversation) ?? null;
  }

  get isBusy() {
    return Boolean(this.attempt);
  }

  /** Stop listening to what the server keeps of a conversation that is shown no more. What it does not
   * have yet goes on here. */
  leave(conversation) {
    const attempt = this.attempts.get(conversation);
    if (attempt && this.#isWithServer(attempt)) this.#leaveTo(attempt);
  }

  /** Show the answer again that goes on in the conversation that is shown. */
  comeBack() {
    if (this.attempt?.live) this.page.log.attach(this.attempt.live);
    this.page.showRunning();
  }

  #isWithServer({ answer }) {
    return this.page.conversations.areKept && answer !== null && answer.id !== null;
  }

  #leaveTo(attempt) {
    attempt.isLeft = true;
    attempt.answer.leave();
    if (this.attempts.get(attempt.conversation) === attempt) this.attempts.delete(attempt.conversation);
  }

  #isShown(conversation) {
    return conversation === this.page.conversation;
  }

  /** Do one thing at a time in a conversation: a second click asks nothing. */
  async #alone(conversation, work) {
    if (this.attempts.has(conversation)) return;
    const attempt = new Attempt(conversation);
    this.attempts.set(conversation, attempt);
    this.page.showRunning();
    try {
      await work(attempt);
    } finally {
      if (this.attempts.get(conversation) === attempt) this.attempts.delete(conversation);
      this.page.showRunning();
    }
    // Somebody else went on with the session: show what it is now.
    if (attempt.problem?.status === 409 && this.#isShown(conversation)) await this.page.lookAgain();
  }

  /** Ask for the answer to new messages after those of the branch. */
  async ask(asked) {
    const { conversation, model } = this.page;
    if (!model || this.isBusy) return this.#giveBack(conversation, asked);
    this.page.tell(null);
    await this.#alone(conversation, (attempt) => this.#ask(attempt, asked));
  }

  /** Ask again at a turn's place, in a branch of its own, which goes if nothing comes of it.
   * begun: tokens that the answer begins with. */
  async again(turn, asked, begun = []) {
    const { conversation, model } = this.page;
    if (!model || this.isBusy || !conversation.path.includes(turn)) return;
    this.page.tell(null);
    await this.#alone(conversation, (attempt) => this.#ask(attempt, asked, { turn, begun }));
  }

  /** Show the answer to messages that runs on the server. */
  async follow(conversation, id, asked) {
    await this.#alone(conversation, async (attempt) => {
      const outcome = await this.#follow(attempt, new RunningAnswer(this.page.api, id), asked);
      this.#end(attempt, outcome, asked);
    });
  }

  /** Ask in the branch, or at a turn's place in one of its own. */
  async #ask(attempt, asked, { turn = null, begun = [] } = {}) {
    const { conversation } = attempt;
    const { conversations, api } = this.page;
    const forks = [];
    let before = null; // the branch that was current
    let outcome = Outcome.REFUSED;
    try {
      await conversations.loaded(conversation);
      before = conversation.current;
      if (turn) forks.push(await conversations.fork(conversation, turn.number - 1));
      let said = asked;
      if (conversation.hasNewSystem) {
        said = [...conversation.messages.filter(({ role }) => role !== "system"), ...asked];
        forks.push(await conversations.fork(conversation, 0));
      }
      this.#show(conversation);
      const body = await this.#body(conversation, said);
      if (begun.length) body.prefix_token_ids = begun.map((token) => token.id);
      if (!attempt.isStopped) {
        outcome = await this.#follow(attempt, new RunningAnswer(api, null, body), said, begun);
      }
    } catch (error) {
      attempt.problem = error;
    }
    if (outcome === Outcome.REFUSED || outcome === Outcome.EMPTY) await this.#undo(attempt, forks, before);
    const isLost = asked.some((message) => !turn?.messages.includes(message)); // what a turn has is not
    this.#end(attempt, outcome, isLost ? asked : []);
  }

  /** Drop the branches that an attempt made and that have nothing of it. */
  async #undo({ conversation }, forks, before) {
    for (const name of forks.reverse()) {
      try {
        await this.page.conversations.drop(conversation, name, before);
      } catch (error) {
        this.#tell(conversation, error);
      }
    }
  }

  /** Tell what became of an attempt, and give back what nobody has. */
  #end(attempt, outcome, asked) {
    const { conversation, live, problem } = attempt;
    if (outcome === Outcome.LEFT) return;
    if (live && this.#isShown(conversation)) {
      if (outcome === Outcome.UNKEPT) this.page.log.keepUnkept(live, say("not-kept"));
      else this.page.log.endLive(live, outcome === Outcome.DONE ? conversation.path.at(-1) : null);
    }
    this.#show(conversation);
    this.page.list.show();
    if (outcome !== Outcome.DONE) this.#giveBack(conversation, asked);
    else if (this.#isShown(conversation)) fill(byId("said"), say("answer-whole"));
    if (problem) this.#tell(conversation, problem);
  }

  #show(conversation) {
    if (this.#isShown(conversation)) this.page.show();
  }

  /** Tell a problem where it belongs: at once, or when its conversation is shown again. */
  #tell(conversation, problem) {
    if (this.#isShown(conversation)) this.page.tell(problem);
    else conversation.unsent = { ...conversation.unsent, problem };
  }

  #giveBack(conversation, asked) {
    const text = asked.findLast((message) => message.role === "user")?.content;
    if (!text) return;
    if (this.#isShown(conversation)) this.page.composer.giveBack(text);
    else conversation.unsent = { ...conversation.unsent, text };
  }

  /** Return the request for the answer to messages after those of the branch; the server knows the
   * conversation then. */
  async #body(conversation, said) {
    const { conversations, composer } = this.page;
    const { budget } = composer;
    const { id: model } = this.page.modelOf(conversation);
    conversation.model = model;
    if (!conversation.title) conversation.metadata = { ...conversation.metadata, title: titleOf(said) };
    const body = requestOf(conversation, [...conversation.messages, ...said], model);
    if (budget !== null) body.thinking_token_budget = budget;
    if (conversations.areKept) {
      if (conversation.isNew) await conversations.create(conversation);
      body.session = conversation.current;
      body.session_turn = conversation.path.at(-1)?.id ?? "";
    }
    conversation.isNew = false;
    return body;
  }

  /** Show an answer as it comes, and take the turn that it became; return the outcome. Throws what
   * kept it from beginning. */
  async #follow(attempt, answer, asked, begun = []) {
    const { conversation } = attempt;
    const last = conversation.path.at(-1);
    attempt.answer = answer;
    attempt.live = this.page.log.begin(asked, begun);
    if (this.#isShown(conversation)) this.comeBack();
    for (;;) {
      const problem = await this.#listen(attempt);
      if (attempt.isLeft) return Outcome.LEFT;
      const hasBegun = attempt.answer.id !== null;
      const { areKept } = this.page.conversations;
      if (!hasBegun && !(areKept && isPassing(problem))) throw problem;
      if (!areKept) {
        if (hasBegun && attempt.live.hasSomething) this.#add(attempt, asked);
      } else {
        // The server may have begun it though we heard nothing.
        const runs = await this.#read(attempt, hasBegun);
        if (attempt.isLeft) return Outcome.LEFT;
        if (runs && !hasBegun) {
          attempt.answer = new RunningAnswer(this.page.api, runs);
          continue;
        }
      }
      return this.#judge(attempt, last, problem);
    }
  }

  /** Show the events of an answer until its end, or until it is left; return the error that ended
   * it. */
  async #listen(attempt) {
    const { answer, live, conversation } = attempt;
    const pace = new Pace();
    try {
      for await (const event of answer.follow()) {
        if (!this.#isShown(conversation) && this.#isWithServer(attempt)) {
          this.#leaveTo(attempt);
          return null;
        }
        if (event.lost) live.note(say("reconnecting"));
        else if (event.note) this.#takeNote(event.note, live, pace);
        else this.#take(event.data, attempt);
      }
    } catch (error) {
      return error;
    }
    conversation.pace = pace.perSecond;
    return null;
  }

  /** Take what a comment in the stream tells: how far the prompt is read, or the answer said. */
  #takeNote(note, live, pace) {
    const prompt = /^ping (\d+)\/(\d+) prompt tokens$/.exec(note);
    const said = /^ping (\d+) tokens$/.exec(note);
    if (prompt && prompt[1] !== prompt[2]) {
      live.note(`${say("reading")}: ${number(Number(prompt[1]))} ${say("of")} ${tokens(Number(prompt[2]))}`);
    } else if (said) {
      pace.count(Number(said[1]));
      live.count(Number(said[1]));
      live.note(pace.text);
    }
  }

  #take(event, { live, conversation }) {
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
        conversation.usage = event.response.usage ?? conversation.usage;
        break;
    }
  }

  #add({ conversation, live }, asked) {
    live.end();
    conversation.add([...asked, live.message], live.response ?? {});
  }

  /** Read what the server keeps of an answer, as often as it takes; return the id of the answer that
   * runs there, null for none. */
  async #read(attempt, hasBegun) {
    const { conversation, live } = attempt;
    const { conversations } = this.page;
    const delay = new Delay();
    let isSaved = !hasBegun;
    live.end();
    while (!attempt.isLeft) {
      try {
        if (!isSaved) await conversations.save(conversation);
        isSaved = true;
        return (await conversations.load(conversation)).response_id;
      } catch (error) {
        const isOfSaving = !isSaved;
        if (!isPassing(error)) attempt.problem = error;
        if (isPassing(error)) {
          if (attempt.isStopped) return null;
          live.note(say("reconnecting"));
          await delay.pass();
          if (!this.#isShown(conversation) && this.#isWithServer(attempt)) this.#leaveTo(attempt);
        } else if (isOfSaving) isSaved = true; // look at what is there without it
        else return null;
      }
    }
    return null;
  }

  /** Return what became of an answer that is over, by the turn that is there now. */
  #judge(attempt, last, problem) {
    const { conversation, live } = attempt;
    const turn = conversation.path.at(-1);
    const failed = live.response?.error;
    conversation.lastUsed = Date.now() / 1000;
    live.end();
    if (turn !== last) {
      turn.cut = live.callsAfter(turn.answer.tool_calls?.length ?? 0);
      attempt.problem = failed ? new Error(failed.message) : null;
      return Outcome.DONE;
    }
    attempt.problem ??= failed ? new Error(failed.message) : problem;
    return live.hasSomething && !failed ? Outcome.UNKEPT : Outcome.EMPTY;
  }

  /** End the answer, as soon as it has begun; what it said so far stays. */
  async stop() {
    const { attempt } = this;
    if (!attempt) return;
    attempt.isStopped = true;
    await this.#toAnswer(attempt, (answer) => answer.stop());
  }

  async answerNow() {
    if (this.attempt) await this.#toAnswer(this.attempt, (answer) => answer.answerNow());
  }

  async #toAnswer({ answer, conversation }, work) {
    try {
      if (answer && !answer.isOver) await work(answer);
    } catch (error) {
      this.#tell(conversation, error);
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
    return `${tokens(this.last.tokens)}${pace}`;
  }
}

/** Return a title for a conversation that begins with these messages. */
function titleOf(messages) {
  const text = messages.find((message) => message.role === "user")?.content ?? "";
  const parts = [];
  let rest = 0;
  for (const { name, start, end } of filesIn(text)) {
    parts.push(text.slice(rest, start), name);
    rest = end;
  }
  const title = [...parts, text.slice(rest)].join("").trim();
  return Array.from(title.slice(0, 200)).slice(0, 80).join(""); // whole characters
}
