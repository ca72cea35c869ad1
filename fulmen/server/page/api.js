// The server, as the page asks it: JSON, and streams of events that survive a lost connection.

/** What the server, or the way to it, answered in place of what was asked for. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const KEY = "fulmen-key";

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
    return response.json();
  }

  /** Yield the events of a stream: {data} for each event, {note} for each comment. */
  async *events(method, path, body, signal) {
    const response = await this.fetch(method, path, body, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await reader.read();
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
      const headers = { accept: "application/json" };
      if (key) headers.authorization = `Bearer ${key}`;
      if (body !== undefined) headers["content-type"] = "application/json";
      let response;
      try {
        response = await fetch(new URL(path, this.base), {
          method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
        });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Refused(String(error.message ?? error), 0);
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
    sessionStorage.setItem(KEY, this.key);
  }
}

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * One answer of the server that runs in the background there, so that it goes on if this page is
 * closed, loaded again or cut off. `follow` yields its events from wherever we were.
 */
export class RunningAnswer {
  constructor(api, id, after = -1) {
    this.api = api;
    this.id = id;
    this.after = after; // number of the last event that we have
    this.isOver = false;
    this.isLeft = false; // nobody listens here any more
    this.abort = new AbortController();
  }

  /** Start an answer and yield its events; the first one sets `id`. */
  static start(api, body) {
    const answer = new RunningAnswer(api, null);
    answer.body = body;
    return answer;
  }

  /** Yield {data} and {note} until the end; {lost: true} when the connection is gone. */
  async *follow() {
    let delay = 500;
    while (!this.isOver) {
      try {
        const stream = this.id === null
          ? this.api.events("POST", "v1/responses", this.body, this.abort.signal)
          : this.api.events("GET", `v1/responses/${this.id}?stream=true${this.after < 0 ? "" : `&starting_after=${this.after}`}`, undefined, this.abort.signal);
        for await (const event of stream) {
          delay = 500;
          if (event.data) this.take(event.data);
          yield event;
          if (this.isOver) return;
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        if (this.id === null || error.status) throw error; // it never began, or the server said no
      }
      yield { lost: true };
      await wait(delay);
      delay = Math.min(delay * 2, 8000);
    }
  }

  take(data) {
    if (data.error && !data.type) throw new Refused(data.error.message, 0); // such as a server that stops
    this.after = data.sequence_number;
    this.id ??= data.response?.id ?? null;
    this.isOver = ["response.completed", "response.incomplete", "response.failed"].includes(data.type);
  }

  /** End the answer; what it said so far stays. */
  stop() {
    return this.id === null ? this.leave() : this.api.post(`v1/responses/${this.id}/cancel`, {});
  }

  /** End its thought softly: it answers now. */
  answerNow() {
    return this.api.post("v1/chat/completions/control", { id: this.id, action: "reasoning_end" });
  }

  /** Stop listening; the answer goes on. */
  leave() {
    this.isOver = this.isLeft = true;
    this.abort.abort();
  }
}
