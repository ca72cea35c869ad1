// Markdown as it streams: blocks that are whole are drawn once, only the last one is drawn again.
//
//   text -> markdown-it's tokens -> elements, made one by one
//
// No HTML is ever parsed: raw HTML in the text is shown as text, a link goes to http, https or
// mailto, an image is a link. Code is coloured and formulas are set when their block is whole.

import { h, fill, copyText, whenIdle } from "./dom.js";
import { say } from "./i18n.js";
import markdownIt from "./vendor/markdown-it.mjs";

/** Languages that are coloured, with other names of each; near ones share a grammar. */
const LANGUAGES = {
  python: ["py", "python3"],
  javascript: ["js", "jsx", "mjs", "typescript", "ts", "tsx"],
  bash: ["sh", "shell", "zsh", "console"],
  json: ["jsonc", "json5", "jsonl"],
  cpp: ["c", "c++", "cc", "cxx", "h", "hpp"],
  rust: ["rs"],
  go: ["golang"],
  java: ["csharp", "cs", "c#"],
  sql: [],
  yaml: ["yml"],
  xml: ["html", "svg", "xhtml"],
  diff: ["patch"],
  ini: ["toml"],
  dockerfile: ["docker"],
};
const NAMES = new Map(
  Object.entries(LANGUAGES).flatMap(([name, others]) => [name, ...others].map((n) => [n, name])),
);
// The highlighter tries its patterns at every character, to the end of the line or beyond.
const MAX_COLOURED = 5000; // characters of a code block beyond which it stays plain
const MAX_COLOURED_LINE = 500; // characters of a line of one
const MAX_BLOCK = 50_000; // characters of a block beyond which all that follows stays plain
const STEP = 10_000; // characters that are read at once
const MAX_FORMULA = 4000; // characters in which a formula must end
const MAX_FORMULA_NODES = 4000; // elements of a formula
const MAX_DEFINITIONS = 1000; // addresses that links may refer to
const PIECE = 2 ** 14; // characters of plain text that are laid out together
const OPEN = "open"; // marks a formula that has not ended yet
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

const parser = markdownIt({ html: false, linkify: true, breaks: false });
parser.validateLink = (url) => SAFE_LINK.test(url.trim());
addMath(parser);

/**
 * One piece of Markdown that grows; `element` shows it. It looks the same in the end however it came:
 * a block is whole once a line after it is, and nothing that follows changes it. Only addresses that
 * links refer to ([a]: https://...) are put in at the end.
 */
export class Markdown {
  constructor() {
    this.element = h("div", { class: "markdown", dir: "auto" });
    this.text = "";
    this.held = ""; // a carriage return whose line feed may still come
    this.references = {};
    this.scheduled = 0;
    this.lastCost = 0;
    this.isEnded = false;
    this.restart();
  }

  restart() {
    this.start = 0; // where the blocks begin that may still change
    this.readTo = 0; // end of the lines that were found to be one such block
    this.numWhole = 0; // elements of blocks that are whole
    this.plain = null; // shows what stays plain
    fill(this.element);
  }

  /** Add text, and draw it with the next frame; a long block less often. */
  add(text) {
    const whole = this.held + text;
    this.held = whole.endsWith("\r") ? "\r" : "";
    this.text += whole.slice(0, whole.length - this.held.length).replace(/\r\n?/g, "\n");
    if (!this.scheduled) {
      const wait = Math.min(10 * this.lastCost, 2000);
      this.scheduled = setTimeout(() => requestAnimationFrame(() => this.draw()), wait);
    }
  }

  /** Draw everything; nothing follows. */
  end() {
    if (this.isEnded) return;
    this.isEnded = true;
    if (this.held) this.text += "\n";
    this.references = definitionsIn(this.text);
    if (Object.keys(this.references).length) this.restart();
    this.draw();
  }

  draw() {
    clearTimeout(this.scheduled);
    this.scheduled = 0;
    const began = performance.now();
    if (!this.plain) this.removeUnfinished();
    let length = STEP;
    while (!this.plain) {
      const stretch = this.text.slice(this.start, this.start + length);
      const isLast = this.start + stretch.length === this.text.length;
      const end = this.drawWhole(stretch, isLast && this.isEnded);
      this.start += end;
      if (end) length = STEP;
      else if (isLast) break;
      else length *= 2;
    }
    if (this.plain) this.drawPlain();
    else if (!this.isEnded) this.drawBlocks(this.parse(this.text.slice(this.start), true), false);
    this.lastCost = performance.now() - began;
  }

  /** Draw the blocks of a stretch of text that nothing can change any more; return where they end.
   * What is nested too deep for the parser, or too long, stays plain with all that follows.
   * isFinal: nothing follows the stretch */
  drawWhole(stretch, isFinal) {
    const isLong = stretch.length > MAX_BLOCK;
    const isAll = isFinal && !isLong;
    // A line that has not ended may still go on with the block before it.
    const end = isAll ? stretch.length : isLong ? MAX_BLOCK : stretch.lastIndexOf("\n") + 1;
    const lines = stretch.slice(0, end);
    if (!isAll && !isLong && this.readTo === this.start + lines.length) return 0; // as before
    const blocks = this.parse(lines, !isAll);
    const deep = blocks.findIndex((block) => block.isTooDeep);
    const open = blocks.findIndex((block) => block.isOpen);
    let numWhole = isAll ? blocks.length : Math.max(blocks.length - 1, 0);
    if (open >= 0) numWhole = Math.max(open - 1, 0); // it may belong to the block before it
    if (deep >= 0) numWhole = Math.min(deep, numWhole);
    this.drawBlocks(blocks.slice(0, numWhole), true);
    this.numWhole = this.element.childNodes.length;
    if (deep >= 0 ? deep === numWhole : isLong && !numWhole) this.startPlain();
    if (numWhole) return offsetOfLine(lines, blocks[numWhole - 1].end);
    this.readTo = this.start + lines.length;
    return 0;
  }

  /** Return the blocks of a text. isOpen: it may go on */
  parse(text, isOpen) {
    // Definitions that a part of the text has by chance count for nothing.
    const references = new Proxy(this.references, { set: () => true });
    return blocksOf(parser.parse(text, { references, isOpen }));
  }

  drawBlocks(blocks, isWhole) {
    for (const block of blocks) this.element.append(...rendered(block.tokens, isWhole));
  }

  removeUnfinished() {
    while (this.element.childNodes.length > this.numWhole) this.element.lastChild.remove();
  }

  startPlain() {
    this.plain = h("div", { class: "plain" });
    this.element.append(this.plain);
  }

  /** Add what is not drawn yet as it is, in pieces: the browser lays out only those in sight. */
  drawPlain() {
    while (this.start < this.text.length) {
      let last = this.plain.lastChild;
      if (!last || last.textContent.length >= PIECE) {
        last = h("div", {});
        this.plain.append(last);
      }
      const end = this.start + PIECE - last.textContent.length;
      last.append(this.text.slice(this.start, end));
      this.start = Math.min(end, this.text.length);
    }
  }
}

/** Return finished text as an element. */
export function markdown(text) {
  const piece = new Markdown();
  piece.add(text);
  piece.end();
  return piece.element;
}

/** Return the addresses that a text gives to names of links, in markdown-it's form. */
function definitionsIn(text) {
  const env = {};
  const lines = text.matchAll(/^ {0,3}\[[^\]\n]{1,200}\]:[^\n]{1,2000}$/gm);
  let number = 0;
  for (const [line] of lines) {
    if (number++ >= MAX_DEFINITIONS) break;
    parser.parse(line, env);
  }
  return env.references ?? {};
}

/** Split tokens into those of each block at the top; `end` is the line after it. */
function blocksOf(tokens) {
  const blocks = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) blocks.push({ tokens: [], end: token.map[1], isTooDeep: false, isOpen: false });
    const block = blocks.at(-1);
    block.tokens.push(token);
    block.isTooDeep ||= token.level >= parser.options.maxNesting - 1; // what is deeper is left out
    block.isOpen ||= token.meta === OPEN;
    depth += token.nesting;
  }
  return blocks;
}

function offsetOfLine(text, line) {
  let offset = 0;
  for (let number = 0; number < line; number++) {
    const end = text.indexOf("\n", offset);
    if (end < 0) return text.length;
    offset = end + 1;
  }
  return offset;
}

/** Return tokens as elements. */
function rendered(tokens, isWhole) {
  const root = document.createDocumentFragment();
  const open = [root];
  for (const token of tokens) {
    const parent = open.at(-1);
    if (token.type === "inline") parent.append(...rendered(token.children, isWhole));
    else if (token.nesting === 1) open.push(token.hidden ? parent : opened(token, parent));
    else if (token.nesting === -1) open.pop();
    else parent.append(leaf(token, isWhole));
  }
  return [...root.childNodes];
}

const TAGS = new Set(
  "p h1 h2 h3 h4 h5 h6 ul ol li blockquote table thead tbody tr th td em strong s a".split(" "),
);

/** Headings stand below the page's own. */
const LOWER = { h1: "h2", h2: "h3", h3: "h4", h4: "h5", h5: "h6" };

function opened(token, parent) {
  const tag = TAGS.has(token.tag) ? (LOWER[token.tag] ?? token.tag) : "span";
  const element = document.createElement(tag);
  if (tag === "a") {
    const href = token.attrGet("href") ?? "";
    if (SAFE_LINK.test(href)) Object.assign(element, { href, target: "_blank" });
    element.rel = "noopener noreferrer nofollow";
  }
  if (tag === "ol" && token.attrGet("start")) element.start = Number(token.attrGet("start"));
  const align = /text-align:\s*(left|right|center)/.exec(token.attrGet("style") ?? "");
  if (align) element.style.textAlign = align[1];
  if (tag === "table") {
    const box = h("div", { class: "table", tabIndex: 0, role: "group", "aria-label": say("table") });
    box.append(element);
    parent.append(box);
  } else parent.append(element);
  return element;
}

function leaf(token, isWhole) {
  switch (token.type) {
    case "text":
    case "text_special":
    case "html_inline":
    case "html_block":
      return document.createTextNode(token.content);
    case "softbreak":
      return document.createTextNode("\n");
    case "hardbreak":
      return h("br");
    case "hr":
      return h("hr");
    case "code_inline":
      return h("code", {}, token.content);
    case "fence":
      return codeBlock(token.content, token.info.trim().split(/\s+/)[0], isWhole);
    case "code_block":
      return codeBlock(token.content, "", isWhole);
    case "math_inline":
      return formula(token.content, false, isWhole);
    case "math_block":
      return formula(token.content, true, isWhole);
    case "image": {
      const href = token.attrGet("src") ?? "";
      const label = `${say("image")}: ${token.content || href}`;
      if (!SAFE_LINK.test(href)) return document.createTextNode(label);
      return h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, label);
    }
    default:
      return document.createTextNode(token.content ?? "");
  }
}

// ---- code

function codeBlock(text, language, isWhole) {
  const code = h("code", {}, text);
  const button = h("button", { type: "button", class: "quiet copy" }, say("copy"));
  button.addEventListener("click", async () => {
    fill(button, say((await copyText(text)) ? "copied" : "not-copied"));
    setTimeout(() => fill(button, say("copy")), 1500);
  });
  const isShort = text.length <= MAX_COLOURED && text.split("\n").every((line) => line.length <= MAX_COLOURED_LINE);
  if (isWhole && isShort) whenIdle(() => colour(code, text, language));
  const pre = h("pre", { tabIndex: 0, role: "group", "aria-label": say("code") }, code);
  return h("figure", { class: "code" }, h("figcaption", {}, h("span", {}, language), button), pre);
}

const languages = new Map();
let highlighter;

async function colour(code, text, language) {
  const name = NAMES.get(language.toLowerCase());
  if (!name) return;
  try {
    highlighter ??= (await import("./vendor/highlight.mjs")).default;
    if (!languages.has(name)) {
      languages.set(name, import(`./vendor/languages/${name}.mjs`));
    }
    const grammar = await languages.get(name);
    if (!highlighter.getLanguage(name)) highlighter.registerLanguage(name, grammar.default);
    const result = highlighter.highlight(text, { language: name, ignoreIllegals: true });
    fill(code, ...coloured(result._emitter.rootNode.children));
  } catch (error) {
    console.warn("code stays plain", error); // it reads as well without colours
  }
}

function coloured(nodes) {
  return nodes.map((node) =>
    typeof node === "string"
      ? document.createTextNode(node)
      : h("span", { class: `hl-${(node.scope ?? "none").split(".")[0]}` }, ...coloured(node.children)),
  );
}

// ---- formulas

let temml;

/** Commands that define others: a few characters could then stand for millions. */
const DEFINES = /\\(?:[gex]?def|(?:future)?let|(?:re)?newcommand|providecommand|global|long|csname|expandafter)/;

function formula(text, isBlock, isWhole) {
  const element = h(isBlock ? "div" : "span", { class: "formula" }, text);
  if (isWhole && text.length <= MAX_FORMULA && !DEFINES.test(text)) setFormula(element, text, isBlock);
  return element;
}

async function setFormula(element, text, isBlock) {
  try {
    temml ??= (await import("./vendor/temml.mjs")).default;
    const options = { displayMode: isBlock, throwOnError: true, trust: false, maxExpand: 200, maxSize: [20, 200] };
    const tree = temml.__renderToMathMLTree(text, options);
    if (sizeOf(tree) > MAX_FORMULA_NODES) return;
    withoutStyles(tree);
    fill(element, tree.toNode());
  } catch (error) {
    if (error.name !== "ParseError") console.warn("a formula stays as it was written", error);
  }
}

const sizeOf = (node) => (node.children ?? []).reduce((size, child) => size + sizeOf(child), 1);

/** Turn style attributes into style properties, which the page's policy allows. */
function withoutStyles(node) {
  const style = node.attributes?.style;
  if (style) {
    delete node.attributes.style;
    node.style ??= {};
    for (const rule of style.split(";")) {
      const [name, value] = rule.split(":").map((part) => part.trim());
      if (value) node.style[name.replace(/-(.)/g, (_, c) => c.toUpperCase())] = value;
    }
  }
  for (const child of node.children ?? []) withoutStyles(child);
}

/** Teach a parser $...$, $$...$$, \(...\) and \[...\]. */
function addMath(md) {
  md.inline.ruler.before("escape", "math", (state, silent) => {
    const { src, pos } = state;
    const two = src.slice(pos, pos + 2);
    let open;
    let close;
    if (two === "\\(") [open, close] = ["\\(", "\\)"];
    else if (two === "\\[") [open, close] = ["\\[", "\\]"];
    else if (two === "$$") [open, close] = ["$$", "$$"];
    else if (src[pos] === "$") [open, close] = ["$", "$"];
    else return false;
    const start = pos + open.length;
    const length = src.slice(start, start + MAX_FORMULA).indexOf(close);
    if (length < 0) return false;
    const end = start + length;
    const content = src.slice(start, end);
    if (!content.trim()) return false;
    // "$5 and $6" is money: a formula has no blank inside its dollars, and no digit behind them.
    if (open === "$" && (/^\s|\s$|\n\n/.test(content) || /[0-9]/.test(src[end + 1] ?? ""))) return false;
    if (!silent) {
      const token = state.push("math_inline", "math", 0);
      token.content = content;
    }
    state.pos = end + close.length;
    return true;
  });
  md.block.ruler.before(
    "fence",
    "math_block",
    (state, startLine, endLine, silent) => {
      if (state.sCount[startLine] - state.blkIndent >= 4) return false; // code
      const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]);
      const first = line(startLine);
      const close = first.startsWith("$$") ? "$$" : first.startsWith("\\[") ? "\\]" : null;
      if (!close) return false;
      let last = startLine;
      let text = first.slice(2);
      while (!text.trimEnd().endsWith(close)) {
        last++;
        if (last >= endLine) {
          // More may come: until then it is one block, as it will be once it is closed.
          if (!state.env.isOpen || endLine < state.bMarks.length - 1) return false;
          if (silent) return true;
          const token = state.push("math_block", "math", 0);
          Object.assign(token, { content: text, map: [startLine, endLine], meta: OPEN });
          state.line = endLine;
          return true;
        }
        if (!line(last).trim()) return false;
        text += `\n${line(last)}`;
      }
      if (silent) return true;
      const token = state.push("math_block", "math", 0);
      token.content = text.trimEnd().slice(0, -close.length);
      token.map = [startLine, last + 1];
      state.line = last + 1;
      return true;
    },
    { alt: ["paragraph", "blockquote", "list"] },
  );
}
