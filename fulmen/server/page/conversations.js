// Conversations as the server's sessions: a session is a branch, those of one group a conversation.
//
//   GET v1/sessions            -> Conversation for each group, the last used first
//   GET v1/sessions/NAME       -> turns with their parents -> the tree of all branches
//   fork, ask, rename, delete  -> the server first, then here
//
// A turn is what was asked and what was answered. Turns have the same id in every branch that has
// them, so the tree is the union of all branches. Where the server keeps no sessions, the same tree
// stands here only, until the page is closed.

/** Return a name that nothing has yet; also where the page came over plain HTTP. */
const newName = (prefix = "chat") => {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  return `${prefix}-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
};

/** One turn, as all branches that have it share it. */
export class Turn {
  constructor(fields, messages) {
    // id, parent, number, tokens, answer_tokens, thinking_tokens, finish_reason
    Object.assign(this, fields);
    this.messages = messages;
    this.children = [];
  }

  get asked() {
    return this.messages.slice(0, -1);
  }

  get answer() {
    return this.messages.at(-1);
  }
}

export class Conversation {
  constructor(id, metadata = {}) {
    this.id = id; // name of its first session
    this.metadata = metadata;
    this.branches = new Map(); // name of a session -> {name, lastUsed, turnIds, isLoaded}
    this.turns = new Map();
    this.current = id;
    this.model = null; // name of the model that it is held with; null for one that is not served
    this.lastUsed = Date.now() / 1000;
    this.isNew = true; // not on the server yet
    this.tokens = 0;
    this.usage = null; // tokens of the last request
    this.pace = null; // tokens in a second of the last answer
    this.unsent = null; // {text, problem}: what could not be sent while another one was shown
    this.reading = null; // promise of the end of the reading that is under way
  }

  get title() {
    return this.metadata.title ?? "";
  }

  /** The settings that its requests have, as a person set them. */
  get settings() {
    try {
      return asSettings(JSON.parse(this.metadata.settings ?? "{}"));
    } catch {
      return {};
    }
  }

  /** The system prompt: as a person set it, else as the messages have it. */
  get system() {
    return this.settings.system ?? this.#saidSystem;
  }

  get #saidSystem() {
    const first = this.path[0]?.messages[0];
    return first?.role === "system" ? first.content : "";
  }

  /** Whether a person set another system prompt than the branch was begun with. */
  get hasNewSystem() {
    return this.path.length > 0 && this.system !== this.#saidSystem;
  }

  /** Turns of the current branch, the first one first. */
  get path() {
    const branch = this.branches.get(this.current);
    return (branch?.turnIds ?? []).map((id) => this.turns.get(id));
  }

  /** Messages of the current branch. */
  get messages() {
    return this.path.flatMap((turn) => turn.messages);
  }

  /** Turns that stand at the same place as this one, itself included. */
  siblings(turn) {
    const parent = turn.parent === null ? null : this.turns.get(turn.parent);
    return parent ? parent.children : [...this.turns.values()].filter((t) => t.parent === null);
  }

  /** The current branch if it has a turn, else the one used last that has it. */
  branchWith(turn) {
    const current = this.branches.get(this.current);
    if (current?.turnIds.includes(turn.id)) return current;
    const found = [...this.branches.values()].filter((branch) => branch.turnIds.includes(turn.id));
    return found.sort((a, b) => b.lastUsed - a.lastUsed)[0];
  }

  /** Take a branch as the server told it. */
  take(detail) {
    let start = 0;
    const turnIds = [];
    for (const fields of detail.turns) {
      const messages = detail.messages.slice(start, start + fields.num_messages).map(fromServer);
      start += fields.num_messages;
      turnIds.push(fields.id);
      if (!this.turns.has(fields.id)) this.#plant(new Turn(fields, messages));
    }
    this.branches.set(detail.id, {
      name: detail.id, lastUsed: detail.last_used_at, turnIds, isLoaded: true,
    });
    if (detail.id === this.current) this.tokens = detail.tokens;
    this.model = detail.served_as;
    this.isNew = false;
    this.#prune();
  }

  /** Take a branch away, with the turns that only it has. */
  forget(name) {
    this.branches.delete(name);
    this.#prune();
  }

  #prune() {
    const kept = new Set([...this.branches.values()].flatMap((branch) => branch.turnIds));
    for (const turn of this.turns.values()) {
      if (!kept.has(turn.id)) this.turns.delete(turn.id);
      else turn.children = turn.children.filter((child) => kept.has(child.id));
    }
  }

  #plant(turn) {
    this.turns.set(turn.id, turn);
    if (turn.parent !== null) this.turns.get(turn.parent)?.children.push(turn);
  }

  /** Add a turn to the current branch that the server does not keep. */
  add(said, response) {
    const { path, current } = this;
    const system = path.length || !this.system ? [] : [{ role: "system", content: this.system }];
    const messages = [...system, ...said];
    const usage = response.usage ?? {};
    const turn = new Turn({
      id: newName("turn"), parent: path.at(-1)?.id ?? null, number: path.length + 1,
      tokens: usage.total_tokens ?? 0, answer_tokens: usage.output_tokens ?? 0,
      thinking_tokens: usage.output_tokens_details?.reasoning_tokens ?? 0,
      finish_reason: { completed: "stop", cancelled: "abort" }[response.status] ?? "length",
    }, messages);
    this.#plant(turn);
    this.branches.set(current, {
      name: current, lastUsed: Date.now() / 1000, turnIds: [...path, turn].map((one) => one.id), isLoaded: true,
    });
    this.tokens = turn.tokens || this.tokens;
  }

  /** Go on in a new branch that has the first turns of the current one. */
  forkHere(name, numTurns) {
    const turnIds = this.path.slice(0, numTurns).map((turn) => turn.id);
    this.branches.set(name, { name, lastUsed: Date.now() / 1000, turnIds, isLoaded: true });
    this.current = name;
  }
}

/** All conversations of this caller. */
export class Conversations extends EventTarget {
  constructor(api) {
    super();
    this.api = api;
    this.all = new Map();
    this.areKept = true; // false where the server keeps no sessions
  }

  /** Conversations, the last used first. */
  get list() {
    return [...this.all.values()].sort((a, b) => b.lastUsed - a.lastUsed);
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** Read which conversations there are. */
  async refresh() {
    const found = new Map();
    try {
      for await (const session of this.#sessions()) this.#place(session, found);
    } catch (error) {
      if (error.status !== 404) throw error;
      this.areKept = false;
    }
    for (const conversation of this.all.values()) {
      if (conversation.isNew) found.set(conversation.id, conversation);
    }
    this.all = found;
    this.changed();
  }

  /** Return the ids of conversations that say something; null once `isOld` says to end. */
  async search(wanted, isOld) {
    const found = new Set();
    for await (const session of this.#sessions(`&search=${encodeURIComponent(wanted)}`)) {
      if (isOld()) return null;
      found.add(session.metadata?.group ?? session.id);
    }
    return isOld() ? null : found;
  }

  /** Yield sessions, the last used first, page by page. */
  async *#sessions(query = "") {
    let after = null;
    do {
      const page = await this.api.get(`v1/sessions?limit=100${query}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
      yield* page.data;
      after = page.has_more ? page.last_id : null;
    } while (after);
  }

  /** Put a session into its conversation. */
  #place(session, found) {
    const metadata = session.metadata ?? {};
    const id = metadata.group ?? session.id;
    let conversation = found.get(id);
    if (!conversation) {
      conversation = this.all.get(id) ?? new Conversation(id, metadata);
      conversation.lastUsed = session.last_used_at ?? session.created_at ?? 0;
      if (conversation.isNew) conversation.current = session.id; // the branch used last comes first
      conversation.isNew = false;
      conversation.metadata = metadata;
      conversation.model = session.served_as;
      found.set(id, conversation);
    }
    if (session.id === id) conversation.metadata = metadata;
    if (!conversation.branches.has(session.id)) {
      conversation.branches.set(session.id, {
        name: session.id, lastUsed: session.last_used_at, turnIds: [], isLoaded: false,
      });
    }
  }

  /** Begin a conversation with a model; it is on the server once it has an answer. */
  begin(settings = {}, model = null) {
    const id = newName();
    const conversation = new Conversation(id, { group: id, settings: JSON.stringify(settings) });
    conversation.model = model;
    this.all.set(id, conversation);
    this.changed();
    return conversation;
  }

  /** Make a new conversation known to the server. */
  async create(conversation) {
    const { id: name, metadata, model } = conversation;
    conversation.take(await this.api.post("v1/sessions", { name, metadata, model }));
    this.changed();
  }

  /** Take a conversation with all its branches from a file's value, to go on with a model; return
   * it. */
  async import(value, model) {
    const conversation = this.begin(asSettings(value.settings), model);
    conversation.metadata = { ...conversation.metadata, title: String(value.title ?? "").slice(0, 200) };
    const { metadata } = conversation;
    try {
      for (const [place, { messages }] of value.branches.entries()) {
        const name = place ? newName() : conversation.id;
        conversation.take(await this.api.post("v1/sessions", { name, metadata, model, messages: messages.map(toServer) }));
      }
    } catch (error) {
      await this.remove(conversation);
      throw error;
    }
    this.changed();
    return conversation;
  }

  /** Read a branch, the current one unless told; return what the server says of it. */
  load(conversation, name = conversation.current) {
    const reading = this.#load(conversation, name);
    if (name === conversation.current) conversation.reading = reading.catch(() => {});
    return reading;
  }

  /** Wait until the current branch is read; one that was read is not read again. */
  async loaded(conversation) {
    await conversation.reading;
    const isLoaded = conversation.branches.get(conversation.current)?.isLoaded;
    if (this.areKept && !conversation.isNew && !isLoaded) await this.load(conversation);
  }

  /** Wait until the server has written the current branch. */
  async save(conversation) {
    await this.api.post(`v1/sessions/${encodeURIComponent(conversation.current)}/save`, {});
  }

  async #load(conversation, name) {
    const detail = await this.api.get(`v1/sessions/${encodeURIComponent(name)}`);
    conversation.take(detail);
    this.changed();
    return detail;
  }

  /** Read all branches, for the tree. */
  async loadAll(conversation) {
    for (const branch of [...conversation.branches.values()]) {
      if (!branch.isLoaded) await this.load(conversation, branch.name);
    }
  }

  /** Make a second branch of the current one that has its first turns, and go on in it; return its
   * name. */
  async fork(conversation, numTurns) {
    const name = newName();
    if (this.areKept) {
      const path = `v1/sessions/${encodeURIComponent(conversation.current)}/fork`;
      const detail = await this.api.post(path, { name, turn: numTurns });
      conversation.current = name;
      conversation.take(detail);
    } else conversation.forkHere(name, numTurns);
    this.changed();
    return name;
  }

  /** Take a branch away that came to nothing, and go on in another one. */
  async drop(conversation, name, other) {
    conversation.current = other;
    conversation.forget(name);
    if (this.areKept) await this.api.delete(`v1/sessions/${encodeURIComponent(name)}`);
  }

  /** Change what is noted of a conversation: its title, its settings. */
  async note(conversation, metadata) {
    conversation.metadata = { ...conversation.metadata, ...metadata };
    this.changed();
    if (conversation.isNew || !this.areKept) return;
    const name = conversation.branches.has(conversation.id) ? conversation.id : conversation.current;
    await this.api.patch(`v1/sessions/${encodeURIComponent(name)}`, { metadata: conversation.metadata });
  }

  /** Delete a conversation with all its branches. */
  async remove(conversation) {
    for (const name of this.areKept ? conversation.branches.keys() : []) {
      try {
        await this.api.delete(`v1/sessions/${encodeURIComponent(name)}`);
      } catch (error) {
        if (error.status !== 404) throw error;
      }
    }
    this.all.delete(conversation.id);
    this.changed();
  }
}

/** Return a value as settings: anything but an object has none. */
const asSettings = (value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? value : {});

// ---- messages

/** Return a message of the server's with its thought and its calls as the page has them. */
export function fromServer({ reasoning_content: thinking, tool_calls: calls, ...message }) {
  if (thinking) message.thinking = thinking;
  if (calls?.length) {
    message.tool_calls = calls.map(({ id, function: { name, arguments: given } }) => ({
      id, name, arguments: typeof given === "string" ? JSON.parse(given) : given,
    }));
  }
  return { ...message, content: message.content ?? "" };
}

/** Return a message of the page's as the server takes it. */
function toServer({ thinking, tool_calls: calls, ...message }) {
  if (thinking) message.reasoning_content = thinking;
  if (calls) {
    message.tool_calls = calls.map(({ id, name, arguments: given }) => ({
      id, type: "function", function: { name, arguments: JSON.stringify(given) },
    }));
  }
  return message;
}

// ---- requests

/** Return messages of a session as the items of a Responses request. */
function itemsOf(messages) {
  return messages.flatMap((message) => {
    if (message.role === "tool") {
      return [{ type: "function_call_output", call_id: message.tool_call_id, output: message.content }];
    }
    if (message.role !== "assistant") {
      return [{ type: "message", role: message.role, content: message.content }];
    }
    const items = [];
    if (message.thinking) {
      items.push({ type: "reasoning", summary: [], content: [{ type: "reasoning_text", text: message.thinking }] });
    }
    if (message.content || !message.tool_calls?.length) {
      items.push({ type: "message", role: "assistant", content: [{ type: "output_text", text: message.content }] });
    }
    for (const call of message.tool_calls ?? []) {
      items.push({
        type: "function_call", call_id: call.id, name: call.name, arguments: JSON.stringify(call.arguments),
      });
    }
    return items;
  });
}

/** Settings that a request has as they are. */
const PLAIN_SETTINGS = ["temperature", "top_p", "top_k", "min_p", "max_output_tokens", "seed"];

/** Return the request for an answer to messages, with a conversation's settings. */
export function requestOf(conversation, messages, model) {
  const settings = conversation.settings;
  // A system prompt that a person set stands in the place of the one that the messages have.
  const said = settings.system === undefined ? messages : messages.filter(({ role }) => role !== "system");
  const body = { model, input: itemsOf(said), stream: true, background: true };
  if (settings.system) body.instructions = settings.system;
  for (const name of PLAIN_SETTINGS) {
    if (Number.isFinite(settings[name])) body[name] = settings[name];
  }
  if (settings.tools) body.tools = JSON.parse(settings.tools).map(asTool);
  if (settings.schema) {
    body.text = { format: { type: "json_schema", name: "answer", schema: JSON.parse(settings.schema), strict: true } };
  }
  return body;
}

/** Take a tool in OpenAI's form for Chat or for Responses, or just a function's description. */
function asTool(tool) {
  return tool.function ? { type: "function", ...tool.function } : { type: "function", ...tool };
}
