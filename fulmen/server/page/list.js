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
    this.items = new Map(); // id of a conversation -> its item, which stays while it is listed
    page.conversations.addEventListener("change", () => this.#showSoon());
    byId("search").addEventListener("input", () => this.search());
  }

  /** Show the list once the changes of the moment are over. */
  #showSoon = debounced(() => this.show(), 0);

  show() {
    const { conversations, conversation: shown, asking } = this.page;
    const all = conversations.list.filter((each) => !each.isNew || each === shown || asking.attempts.has(each));
    const wanted = byId("search").value.trim().toLowerCase();
    const fits = (each) => this.found?.has(each.id) || each.title.toLowerCase().includes(wanted);
    const found = wanted ? all.filter(fits) : all;
    const listed = found.slice(0, this.length);
    const items = listed.map((conversation) => this.#shown(conversation));
    const ids = new Set(listed.map(({ id }) => id));
    for (const id of this.items.keys()) if (!ids.has(id)) this.items.delete(id);
    const focused = document.activeElement;
    if (found.length > this.length) items.push(h("li", {}, button("more", () => this.#showMore())));
    fill(byId("conversations"), ...(items.length ? items : [h("li", { class: "note" }, say("nothing-found"))]));
    if (focused !== document.activeElement && focused.isConnected) focused.focus();
  }

  #showMore() {
    this.length += STEP;
    this.show();
  }

  /** Return a conversation's item as it looks now. */
  #shown(conversation) {
    const { page } = this;
    if (this.items.get(conversation.id)?.conversation !== conversation) {
      this.items.set(conversation.id, this.#item(conversation));
    }
    const { item, open, about } = this.items.get(conversation.id);
    const title = conversation.title || say("new");
    if (open.textContent !== title) fill(open, title);
    open.title = when(conversation.lastUsed);
    about.setAttribute("aria-label", `${say("about")} ${title}`);
    if (conversation === page.conversation) open.setAttribute("aria-current", "page");
    else open.removeAttribute("aria-current");
    return item;
  }

  #item(conversation) {
    const { page } = this;
    const open = h("button", { type: "button", class: "conversation", onclick: () => page.open(conversation) });
    const about = h("button", { type: "button", class: "icon", onclick: () => page.dialogs.conversation(conversation) }, "⋯");
    return { conversation, open, about, item: h("li", {}, open, about) };
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
