// What each key does. The list that `?` opens is made of the same table.

import { byId } from "./dom.js";
import { say } from "./i18n.js";

const SINGLE_KEYS = "fulmen-single-keys";

/** Shown keys, the words for what they do, when they apply, and what they do.
 * Keys that a field takes itself are here for the list only. */
const SHORTCUTS = [
  ["Enter", "key-send"],
  ["Shift+Enter", "key-line"],
  ["Esc", "key-stop", ({ key }, page) => key === "Escape" && page.asking.isBusy, (page) => page.asking.stop()],
  ["Ctrl+Enter", "answer-now", (e, page) => hasCtrl(e) && e.key === "Enter" && page.asking.isBusy, (page) => page.asking.answerNow()],
  ["↑", "key-edit", (e) => e.key === "ArrowUp" && e.target.id === "input" && !e.target.value, (page) => page.editLast()],
  ["/", "write", (e) => isPlain(e, "/"), (page) => page.composer.focus()],
  ["j", "key-next", (e) => isPlain(e, "j"), (page) => page.focusTurn(1)],
  ["k", "key-previous", (e) => isPlain(e, "k"), (page) => page.focusTurn(-1)],
  ["h", "previous-branch", (e) => isPlain(e, "h"), (page) => page.otherBranch(-1)],
  ["l", "next-branch", (e) => isPlain(e, "l"), (page) => page.otherBranch(1)],
  ["r", "regenerate", (e) => isPlain(e, "r") && !e.target.closest("button, a, summary"), (page) => page.againHere()],
  ["Ctrl+K", "search-conversations", (e) => hasCtrl(e) && e.key === "k", (page) => page.toSearch()],
  ["Ctrl+B", "key-sidebar", (e) => hasCtrl(e) && e.key === "b", (page) => page.toggleMenu()],
  ["Ctrl+Shift+O", "new", (e) => hasCtrl(e) && e.shiftKey && e.key.toLowerCase() === "o", (page) => page.begin()],
  ["?", "shortcuts", (e) => isPlain(e, "?"), (page) => page.dialogs.shortcuts()],
];

/** Keys with the names of what they do. */
export const keysWithNames = SHORTCUTS.map(([keys, name]) => [keys, name]);

/** Let a page do what its keys say; an open dialog has the keys to itself. */
export function listenToKeys(page) {
  document.addEventListener("keydown", (event) => {
    if (byId("dialog").open || event.isComposing) return;
    const found = SHORTCUTS.find(([, , applies]) => applies?.(event, page));
    if (!found) return;
    event.preventDefault();
    found[3](page);
  });
}

/** Return keys with their names in the page's language. */
export const inLanguage = (keys) => keys.replace("Ctrl", say("ctrl")).replace("Shift", say("shift"));

/** Return whether single keys do something; who speaks to the browser may want none of them. */
export const hasSingleKeys = () => localStorage.getItem(SINGLE_KEYS) !== "off";

export function setSingleKeys(isOn) {
  if (isOn) localStorage.removeItem(SINGLE_KEYS);
  else localStorage.setItem(SINGLE_KEYS, "off");
}

const hasCtrl = (event) => (event.ctrlKey || event.metaKey) && !event.altKey;

/** Return whether a key is pressed alone, where nobody writes. */
const isPlain = (event, key) =>
  event.key === key && hasSingleKeys() && !event.ctrlKey && !event.metaKey && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
