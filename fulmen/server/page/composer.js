// Where a person writes: a field that grows, files, and the budget of thought.

import { byId, fill, h } from "./dom.js";
import { number, say } from "./i18n.js";

const MAX_FILE_BYTES = 2 ** 20;
const LONG_PASTE = 4000; // characters from which a pasted text becomes a file

/** Tokens of thought at each place of the slider; the last sets no limit. */
const BUDGETS = [0, 64, 128, 256, 512, 1024, 2048, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 81920, null];

const ON_GLASS = matchMedia("(hover: none) and (pointer: coarse)");

export class Composer {
  /** send(text) asks, tell(text) shows what a file cannot be. */
  constructor(send, tell) {
    this.send = send;
    this.tell = tell;
    this.files = []; // {name, text}
    this.isBusy = false;
    this.input = byId("input");
    this.slider = byId("budget");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.input.addEventListener("input", () => this.grow());
    this.input.addEventListener("keydown", (event) => this.#key(event));
    this.input.addEventListener("paste", (event) => this.#paste(event));
    this.slider.addEventListener("input", () => this.showBudget());
    byId("attach").addEventListener("click", () => byId("file-picker").click());
    byId("file-picker").addEventListener("change", (event) => this.addFiles([...event.target.files], event.target));
    // What is no file is left to the browser: text may be dropped into a field.
    const hasFiles = ({ dataTransfer }) => [...dataTransfer.types].includes("Files");
    document.addEventListener("dragover", (event) => {
      if (hasFiles(event)) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.addFiles([...event.dataTransfer.files]);
    });
    this.showBudget();
  }

  /** Tokens of thought that were chosen; null for no limit. */
  get budget() {
    return BUDGETS[Number(this.slider.value)];
  }

  set settings(settings) {
    const budget = settings.thinking_token_budget ?? null;
    const place = BUDGETS.indexOf(budget);
    this.slider.value = place < 0 ? BUDGETS.length - 1 : place;
    this.showBudget();
  }

  showBudget() {
    const shown = this.budget === null ? say("no-limit") : number(this.budget);
    fill(byId("budget-shown"), shown);
    this.slider.setAttribute("aria-valuetext", shown);
  }

  focus() {
    this.input.focus();
  }

  submit() {
    const text = this.input.value.trim();
    if (this.isBusy || (!text && !this.files.length)) return;
    const parts = this.files.map((file) => `<file name="${file.name}">\n${file.text}\n</file>`);
    if (text) parts.push(text);
    this.input.value = "";
    this.files = [];
    this.#showFiles();
    this.grow();
    this.send(parts.join("\n\n"));
  }

  /** Put a text back that could not be sent, before what was written meanwhile. */
  giveBack(text) {
    this.input.value = [text, this.input.value].filter(Boolean).join("\n\n");
    this.grow();
  }

  grow() {
    this.input.style.height = "auto";
    const border = this.input.offsetHeight - this.input.clientHeight;
    this.input.style.height = `${Math.min(this.input.scrollHeight + border, innerHeight * 0.4)}px`;
  }

  #key(event) {
    // Keyboards on glass have no Shift+Enter: there the button sends.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !event.ctrlKey && !event.metaKey && !ON_GLASS.matches) {
      event.preventDefault();
      this.submit();
    }
  }

  #paste(event) {
    const files = [...event.clipboardData.files];
    const text = event.clipboardData.getData("text/plain");
    if (files.length && !text.trim()) {
      event.preventDefault();
      this.addFiles(files);
    } else if (text.length > LONG_PASTE) {
      event.preventDefault();
      this.#add(`${say("file").toLowerCase()}-${this.files.length + 1}.txt`, text);
    }
  }

  async addFiles(files, picker) {
    for (const file of files) {
      if (file.size > MAX_FILE_BYTES) {
        this.tell(`${file.name} ${say("file-too-large")}`);
        continue;
      }
      const text = await file.text();
      if (text.includes("\0") || text.includes("\ufffd")) this.tell(`${file.name} ${say("file-no-text")}`);
      else this.#add(file.name.replace(/["<>\n]/g, "_"), text);
    }
    if (picker) picker.value = "";
    this.focus();
  }

  #add(name, text) {
    this.files.push({ name, text });
    this.#showFiles();
  }

  #showFiles() {
    const list = byId("files");
    list.hidden = !this.files.length;
    fill(
      list,
      ...this.files.map((file) =>
        h(
          "li",
          {},
          `${file.name} (${number(file.text.length)}) `,
          h("button", {
            type: "button", class: "icon", "aria-label": `${say("remove")} ${file.name}`,
            onclick: () => {
              this.files = this.files.filter((other) => other !== file);
              this.#showFiles();
              this.focus();
            },
          }, "✕"),
        ),
      ),
    );
  }
}
