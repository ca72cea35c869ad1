// The server, as the page asks it: JSON, and streams of events that survive a lost connection.

/** What the server, or the way to it, answered in place of what was asked for. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Statuses of a way that is down for a while, or of a server that is busy; 0 is no answer at all. */
const PASSING = [0, 429, 502, 503, 504];

/** Return whether the same request may go well in a while. */
export const isPassing = (error) => error instanceof Refused && PASSING.includes(error.status);

const KEY = "fulmen-key";

/** Return whether a key can be sent: browsers take no letters beyond Latin-1 in a header. */
const isHeader = (key) => /^[\x20-\x7e\x80-\xff]+$/.test(key);

/** Throw what the browser says of a connection as Refused. */
function lost(error) {
  if (error.name === "AbortError") throw error;
  throw new Refused(String(error.message ?? error), 0);
}

export class Api {
  /** askForKey(isWrong) gives a promise of the key that a person types. */
  constructor(askForKey) {
    this.base = new URL("./", document.baseURI); // whatever prefix stands before us
    this.askForKey = askForKey;
    this.asking = null;
    this.key = sessionStorage.getItem(KEY) ?? "";
  }

  get = (path, options) => this.json("GET", path, undefined, options);
  post = (path, body, options) => this.json("POST", path, body, options);
  patch = (path, body) => this.json("PATCH", path, body);
  delete = (path) => this.json("DELETE", path);

  /** Return the JSON of an answer. Throws Refused. */
  async json(method, path, body, { signal } = {}) {
    const response = await this.fetch(method, path, body, signal);
    return response.json().catch(lost);
  }

  /** Yield the events of a stream: {data} for each event, {note} for each comment. */
  async *events(method, path, body, signal) {
    const response = await this.fetch(method, path, body, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await reader.read().catch(lost);
        if (done) return;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (line.startsWith("data: ") && line !== "data: [DONE]") yield { data: JSON.parse(line.slice(6)) };
          else if (line.startsWith(": ")) yield { note: line.slice(2).trim() };
        }
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  async fetch(method, path, body, signal) {
    for (;;) {
      const key = this.key;
      if (key && !isHeader(key)) {
        await this.newKey(true); // no server can have been given it
        continue;
      }
      const headers = { accept: "application/json" };
      if (key) headers.authorization = `Bearer ${key}`;
      if (body !== undefined) headers["content-type"] = "application/json";
      let response;
      try {
        response = await fetch(new URL(path, this.base), {
          method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
        });
      } catch (error) {
        lost(error);
      }
      if (response.ok) return response;
      if (response.status === 401) {
        if (this.key === key) await this.newKey(key !== "");
        continue;
      }
      const said = await response.json().catch(() => null);
      throw new Refused(said?.error?.message ?? `${response.status} ${response.statusText}`, response.status);
    }
  }

  /** Ask a person for the key, once for all requests that wait for it. */
  async newKey(isWrong) {
    this.asking ??= this.askForKey(isWrong).finally(() => (this.asking = null));
    this.key = (await this.asking).trim();
    if (isHeader(this.key)) sessionStorage.setItem(KEY, this.key);
    else sessionStorage.removeItem(KEY);
  }
}

export const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Times to wait for what may come back, each longer than the one before. */
export class Delay {
  constructor() {
    this.began();
  }

  began() {
    this.ms = 500;
  }

  async pass() {
    const { ms } = this;
    this.ms = Math.min(ms * 2, 8000);
    await wait(ms);
  }
}

const LAST_EVENTS = ["response.completed", "response.incomplete", "response.failed"];

/**
 * One answer of the server that runs in the background there, so that it goes on if this page is
 * closed, loaded again or cut off. `follow` yields its events from wherever we were.
 *
 * The request that starts it is never taken back: before its first event nobody could say whether
 * the server has it.
 */
export class RunningAnswer {
  #begin;

  /** id: null for an answer that `body` starts */
  constructor(api, id, body) {
    this.api = api;
    this.id = id;
    this.body = body;
    this.after = -1; // number of the last event that we have
    this.isOver = false;
    this.isLeft = false; // nobody listens here any more
    this.abort = new AbortController();
    this.begun = new Promise((resolve) => (this.#begin = resolve)); // once `id` is known
    if (id !== null) this.#begin();
  }

  /** Yield {data} and {note} until the end; {lost: true} when the connection is gone. Throws what
   * the server refused, and for one that was not begun also what was lost on the way. */
  async *follow() {
    const delay = new Delay();
    while (!this.isOver && !this.isLeft) {
      try {
        for await (const event of this.#events()) {
          delay.began();
          if (event.data) this.#take(event.data);
          yield event;
          if (this.isOver || this.isLeft) return;
        }
      } catch (error) {
        if (this.isLeft) return;
        if (this.id === null || !isPassing(error)) throw error;
      }
      if (this.id === null) throw new Refused("network error", 0);
      yield { lost: true };
      await delay.pass();
    }
  }

  #events() {
    if (this.id === null) return this.api.events("POST", "v1/responses", this.body);
    const after = this.after < 0 ? "" : `&starting_after=${this.after}`;
    return this.api.events("GET", `v1/responses/${this.id}?stream=true${after}`, undefined, this.abort.signal);
  }

  #take(data) {
    if (data.error && !data.type) throw new Refused(data.error.message, 0); // such as a server that stops
    this.after = data.sequence_number;
    this.id ??= data.response?.id ?? null;
    if (this.id !== null) this.#begin();
    this.isOver = LAST_EVENTS.includes(data.type);
  }

  /** End the answer, once it has begun; what it said so far stays. */
  async stop() {
    await this.begun;
    await this.api.post(`v1/responses/${this.id}/cancel`, {});
  }

  /** End its thought softly: it answers now. */
  async answerNow() {
    await this.begun;
    await this.api.post("v1/chat/completions/control", { id: this.id, action: "reasoning_end" });
  }

  /** Stop listening to an answer that has begun; it goes on. */
  leave() {
    this.isLeft = true;
    this.abort.abort();
  }
}
