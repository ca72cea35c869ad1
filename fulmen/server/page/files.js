// Conversations as files: Markdown to read, JSON with all branches to take elsewhere.

import { saveAs } from "./dom.js";
import { say } from "./i18n.js";

/** What a conversation's file says it is. */
const FORMAT = "fulmen-conversation";

/** Yield the files that a message holds, as the composer writes them: {name, content, start, end}. */
export function* filesIn(text) {
  const [open, close] = ['<file name="', "\n</file>"];
  for (let start = text.indexOf(open); start >= 0; ) {
    const after = text.slice(start + open.length, start + open.length + 203);
    const name = /^([^"\n]{1,200})">\n/.exec(after);
    if (!name) {
      start = text.indexOf(open, start + open.length);
      continue;
    }
    const first = start + open.length + name[0].length;
    const last = text.indexOf(close, first);
    if (last < 0) return; // nor does one end that begins later
    const end = last + close.length;
    yield { name: name[1], content: text.slice(first, last), start, end };
    start = text.indexOf(open, end);
  }
}

/** Save the shown branch of a conversation. */
export function saveMarkdown(conversation) {
  saveAs(`${conversation.title || conversation.id}.md`, "text/markdown", asMarkdown(conversation));
}

/** Save a conversation whose branches are all loaded. */
export function saveJson(conversation) {
  const branches = [...conversation.branches.values()].map(({ name, turnIds }) => ({
    name, messages: turnIds.flatMap((id) => conversation.turns.get(id).messages),
  }));
  const value = { format: FORMAT, version: 1, title: conversation.title, settings: conversation.settings, branches };
  saveAs(`${conversation.title || conversation.id}.json`, "application/json", JSON.stringify(value, null, 1));
}

/** Return the conversation of a file. Throws an error for one that has none. */
export async function read(file) {
  const wrong = new Error(say("wrong-import"));
  let value;
  try {
    value = JSON.parse(await file.text());
  } catch {
    throw wrong;
  }
  const isWhole = value?.format === FORMAT && Array.isArray(value.branches) && value.branches.length > 0;
  const { settings = {} } = value ?? {};
  const hasSettings = settings !== null && typeof settings === "object" && !Array.isArray(settings);
  if (!isWhole || !hasSettings || !value.branches.every((branch) => Array.isArray(branch?.messages))) throw wrong;
  return value;
}

/** Return a conversation's branch as Markdown. */
function asMarkdown(conversation) {
  const names = { user: say("you"), assistant: say("model"), system: say("system"), tool: say("result") };
  const lines = [`# ${conversation.title || conversation.id}`];
  for (const turn of conversation.path) {
    for (const message of turn.messages) {
      lines.push(`## ${names[message.role] ?? message.role}`);
      if (message.thinking) {
        lines.push(`<details><summary>${say("thought")}</summary>\n\n${message.thinking}\n\n</details>`);
      }
      if (message.content) lines.push(message.content);
      for (const call of message.tool_calls ?? []) {
        lines.push("```json\n" + JSON.stringify({ name: call.name, arguments: call.arguments }, null, 2) + "\n```");
      }
    }
  }
  return lines.join("\n\n") + "\n";
}
