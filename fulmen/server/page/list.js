// The list of conversations, and the search in it.

import { byId, debounced, fill, h } from "./dom.js";
import { say, when } from "./i18n.js";
import { button } from "./log.js";

/** Conversations that are shown at once. */
const STEP = 200;

export class List {
  constructor(page) {
    this.page = page;
    this.found = null; // ids of conversations that a search found
    this.length = STEP;
    page.conversations.addEventListener("change", () => this.#showSoon());
    byId("search").addEventListener("input", () => this.search());
  }

  /** Show the list once the changes of the moment are over. */
  #showSoon = debounced(() => this.show(), 0);

  show() {
    const { conversations, conversation: shown } = this.page;
    const all = conversations.list.filter((each) => !each.isNew || each === shown);
    const wanted = byId("search").value.trim().toLowerCase();
    const fits = (each) => this.found?.has(each.id) || each.title.toLowerCase().includes(wanted);
    const found = wanted ? all.filter(fits) : all;
    const items = found.slice(0, this.length).map((conversation) => this.#item(conversation));
    if (found.length > this.length) items.push(h("li", {}, button("more", () => this.#showMore())));
    fill(byId("conversations"), ...(items.length ? items : [h("li", { class: "note" }, say("nothing-found"))]));
  }

  #showMore() {
    this.length += STEP;
    this.show();
  }

  #item(conversation) {
    const { page } = this;
    const title = conversation.title || say("new");
    return h(
      "li",
      {},
      h("button", {
        type: "button", class: "conversation", "aria-current": conversation === page.conversation ? "page" : null,
        onclick: () => page.open(conversation), title: when(conversation.lastUsed),
      }, title),
      h("button", {
        type: "button", class: "icon", "aria-label": `${say("about")} ${title}`,
        onclick: () => page.dialogs.conversation(conversation),
      }, "⋯"),
    );
  }

  /** Find conversations by their title at once, then by what was said in them. */
  search() {
    this.found = null;
    this.show();
    this.#searchSoon();
  }

  #searchSoon = debounced(async () => {
    const { conversations } = this.page;
    const wanted = byId("search").value.trim();
    if (wanted.length < 2 || !conversations.areKept) return;
    try {
      const found = await conversations.search(wanted, () => wanted !== byId("search").value.trim());
      if (found) this.found = found;
    } catch (error) {
      this.page.tell(error);
    }
    this.show();
  }, 250);
}
