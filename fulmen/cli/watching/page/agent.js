// The page of an agent: what it and the agents that it leads do, and the questions that wait.
//
//   events -> agents, each with its entries -> the log of one of them
//
// It only reads, but for answers to questions. Texts of models, files and commands are text nodes or
// Markdown without HTML. Of each agent the last entries alone stay in the page.

import { byId, fill, h } from "./page/dom.js";
import { Markdown } from "./page/markdown.js";

const MAX_ENTRIES = 600; // of one agent
const LEAD = "lead";
const token = takeToken();

const agents = new Map(); // by name: { entries, calls, doing, tokens, isWorking }
const questions = new Map(); // by id: element
let shown = LEAD;
let last = 0;
let isOver = false;
let mostTokens = 0; // of all agents; 0 for no limit

/** Take the token out of the address, where it would be seen and kept. */
function takeToken() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem("fulmen-agent", given);
    history.replaceState(null, "", location.pathname);
  }
  return given || sessionStorage.getItem("fulmen-agent") || "";
}

const headers = { authorization: `Bearer ${token}` };

/** Follow the events, again and again where the connection is lost. */
async function follow() {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const response = await fetch(`events?after=${last}`, { headers, cache: "no-store" });
      if (response.status === 401) return state("This address has no token, open the one that fulmen printed.", "lost");
      if (!response.ok) throw new Error(String(response.status));
      state("", "");
      for await (const event of read(response)) {
        wait = 500;
        take(event);
      }
    } catch {
      // told below
    }
    if (isOver) return state("The agent has ended.", "");
    state("No connection to the agent, trying again ...", "lost");
    await new Promise((done) => setTimeout(done, wait));
  }
}

async function* read(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
  }
}

function state(text, kind) {
  byId("state").textContent = text;
  byId("state").className = kind;
}

/** Return an agent of a name, made if it is new. */
function agentOf(name) {
  if (!agents.has(name)) {
    agents.set(name, { name, entries: [], calls: new Map(), doing: "", tokens: 0, live: null, isWorking: true });
    drawAgents();
  }
  return agents.get(name);
}

/** Take one event. */
function take(event) {
  if (event.live) return takeLive(event.live);
  last = Math.max(last, event.number);
  if (event.type === "run.started") begin(event);
  const agent = agentOf(event.of);
  switch (event.type) {
    case "cut":
      if (!event.is_all) agents.forEach((one) => { one.entries = []; });
      add(agent, h("div", { class: "entry note" }, "Earlier events are left out."));
      if (agent.name === shown) drawLog();
      break;
    case "user":
      agent.isWorking = true;
      isOver = false;
      add(agent, h("div", { class: "entry user" }, event.text));
      break;
    case "message":
      add(agent, h("div", { class: "entry message" }, h("b", { class: "who" }, `agent ${event.agent}`), event.text));
      break;
    case "note":
      add(agent, h("div", { class: "entry note" }, event.text));
      break;
    case "answer":
      answered(agent, event);
      break;
    case "call":
      agent.isWorking = true;
      agent.doing = told(event);
      callOf(agent, event)?.classList.add("running");
      break;
    case "result":
      result(agent, event);
      break;
    case "refused":
      add(agent, h("div", { class: "entry note" }, `refused: ${event.reason}`));
      break;
    case "compacted":
      add(agent, h("div", { class: "entry note" }, `${event.num_tokens_before} tokens gave way to ${event.num_tokens_after}`));
      break;
    case "question":
      ask(event);
      break;
    case "answered":
      questions.get(event.question)?.remove();
      questions.delete(event.question);
      break;
    case "task.ended":
      agent.isWorking = false;
      agent.doing = event.reason;
      break;
    case "run.ended":
      agents.forEach((one) => { one.isWorking = false; });
      agent.doing = event.reason;
      isOver = true;
      break;
  }
  drawAgents();
}

/** Another run, or the same one from another step on. */
function begin(event) {
  agents.clear();
  fill(byId("questions"));
  questions.clear();
  shown = LEAD;
  isOver = false;
  mostTokens = event.max_tokens ?? 0;
  agentOf(LEAD);
  document.title = `${event.run} - Fulmen agent`;
  byId("title").textContent = `${event.run}: ${event.model} in ${event.folder}, ${event.mode}`;
  drawLog();
}

function answered(agent, event) {
  agent.tokens += event.usage.new_tokens;
  agent.calls.clear();
  agent.doing = "";
  agent.isWorking = event.tool_calls.length > 0;
  if (event.thinking) {
    const lines = event.thinking.trim();
    add(agent, h("details", { class: "entry" }, h("summary", {}, `thought ${event.usage.thinking_tokens} tokens`), h("pre", {}, lines)));
  }
  if (event.content?.trim()) {
    const text = new Markdown();
    text.add(event.content);
    text.end();
    add(agent, h("div", { class: "entry" }, text.element));
  }
  for (const call of event.tool_calls) {
    const line = told(call);
    const element = h("details", { class: "entry call" }, h("summary", {}, line));
    const rest = JSON.stringify(call.arguments, null, 2);
    if (rest.length > line.length + 20) element.append(h("pre", {}, plain(call.arguments)));
    element.call = call;
    agent.calls.set(agent.calls.size, element);
    add(agent, element);
  }
}

/** Return a call in one line. */
function told(call) {
  const given = call.arguments ?? {};
  const first = ["command", "path", "pattern", "prompt", "url", "name", "agent"].find((key) => key in given);
  const text = String(first === undefined ? "" : given[first]).split("\n")[0];
  return `${call.name}  ${first === "prompt" && given.agent ? `${given.agent}: ` : ""}${text}`.slice(0, 200);
}

const plain = (given) =>
  Object.entries(given).map(([key, one]) => `${key}: ${typeof one === "string" ? one : JSON.stringify(one)}`).join("\n");

/** Return the element of a call that an event is about: the first such that has no result. */
function callOf(agent, event) {
  const all = [...agent.calls.values()].filter((one) => !one.isDone && one.call.name === event.name);
  return all.find((one) => event.id && one.call.id === event.id) ?? all[0];
}

function result(agent, event) {
  const element = callOf(agent, event);
  agent.doing = "";
  if (!element) return;
  element.isDone = true;
  element.classList.remove("running");
  if (event.is_error) element.classList.add("failed");
  const diff = event.details?.diff;
  if (diff && !event.is_error) {
    element.append(coloured(diff));
    element.open = true;
  } else if (event.text) element.append(h("pre", {}, event.text));
  if (event.is_error) element.open = true;
}

/** Return a diff with colours. */
function coloured(diff) {
  const kinds = { "+": "added", "-": "removed", "@": "place" };
  return h("pre", {}, ...diff.split("\n").slice(0, 2000).map((line) => h("span", { class: kinds[line[0]] ?? "" }, `${line}\n`)));
}

function takeLive(live) {
  for (const agent of agents.values()) {
    agent.live = live[agent.name] ?? null;
    if (agent.live) agent.isWorking = true;
    if (agent.live?.kind === "thinking") agent.doing = "thinks";
    else if (agent.live?.kind === "content") agent.doing = "writes";
  }
  drawLive();
  drawAgents();
}

function drawLive() {
  const live = agents.get(shown)?.live;
  keepingBottom(() => {
    if (!live) fill(byId("live"));
    else fill(byId("live"), h("pre", {}, live.text.split("\n").slice(-14).join("\n")));
  });
}

/** Add an entry to an agent, and to the log if the agent is shown. */
function add(agent, element) {
  agent.entries.push(element);
  if (agent.entries.length > MAX_ENTRIES) agent.entries.shift().remove();
  if (agent.name === shown) keepingBottom(() => byId("log").append(element));
}

function drawLog() {
  fill(byId("log"), ...agentOf(shown).entries);
  drawLive();
  byId("scroller").scrollTop = byId("scroller").scrollHeight;
}

/** Change the log, and stay at its end if that is where a person looks. */
function keepingBottom(change) {
  const place = byId("scroller");
  const isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 60;
  change();
  if (isAtEnd) place.scrollTop = place.scrollHeight;
}

let isDrawing = false;

/** Draw the list of agents with the next frame; one alone needs none. */
function drawAgents() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    const list = byId("agents");
    list.hidden = agents.size < 2;
    const focused = document.activeElement?.dataset?.agent;
    fill(list, ...[...agents.values()].map((one) => h("button", {
      type: "button", class: one.isWorking ? "working" : "", "data-agent": one.name, "aria-current": String(one.name === shown),
      onclick: () => { shown = one.name; drawLog(); drawAgents(); },
    }, one.name, h("small", {}, `${one.tokens.toLocaleString("en")} tokens${one.doing ? `, ${one.doing}` : ""}`))));
    if (focused) list.querySelector(`[data-agent="${CSS.escape(focused)}"]`)?.focus();
    const total = [...agents.values()].reduce((sum, one) => sum + one.tokens, 0);
    const limit = mostTokens ? ` of ${mostTokens.toLocaleString("en")}` : "";
    byId("usage").textContent = `${total.toLocaleString("en")}${limit} new tokens`;
    const working = [...agents.values()].filter((one) => one.isWorking);
    if (byId("state").className !== "lost") {
      state(working.length ? working[0].doing || "works" : isOver ? "at rest" : "", working.length ? "working" : "");
    }
  });
}

/** Show a question; the first answer of terminal and page counts. */
function ask(event) {
  const words = h("input", { type: "text", placeholder: "what to do instead", "aria-label": "What to do instead" });
  const send = async (answer) => {
    const body = JSON.stringify({ answer, words: answer === "no" ? words.value : "" });
    const response = await fetch(`answers/${event.number}`, {
      method: "POST", headers: { ...headers, "content-type": "application/json" }, body,
    }).catch(() => null);
    if (response?.ok || response?.status === 409) element.remove();
    else element.querySelector(".note").textContent = "This answer did not get through, try again.";
  };
  const choose = (answer, label, kind = "") => h("button", { type: "button", class: kind, onclick: () => send(answer) }, label);
  const isDiff = ["edit", "write", "merge"].includes(event.name);
  const element = h("div", { class: "question" },
    h("h2", {}, `${event.name}: ${event.reason}`),
    event.preview ? (isDiff ? coloured(event.preview) : h("pre", {}, event.preview)) : null,
    h("div", { class: "row" },
      choose("once", "Allow once"),
      event.rules.length ? choose("always", `Always ${event.rules.join(", ")}`, "quiet") : null,
      choose("no", "Refuse", "danger"), words),
    h("span", { class: "note" }));
  words.addEventListener("keydown", (key) => { if (key.key === "Enter") send("no"); });
  questions.set(event.number, element);
  byId("questions").append(element);
}

follow();
