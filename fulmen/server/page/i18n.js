// The page's words in English and German. Elements with data-say get their text, those with
// data-label their accessible name.

const WORDS = {
  "conversations": ["Conversations", "Gespräche"],
  "new": ["New conversation", "Neues Gespräch"],
  "search-conversations": ["Search conversations", "Gespräche durchsuchen"],
  "nothing-found": ["Nothing found", "Nichts gefunden"],
  "settings": ["Settings", "Einstellungen"],
  "settings-of": ["Settings of this conversation", "Einstellungen dieses Gesprächs"],
  "model": ["Model", "Modell"],
  "model-choice": ["Model of this conversation; another one begins a new one", "Modell dieses Gesprächs; ein anderes beginnt ein neues"],
  "tree": ["Branches", "Zweige"],
  "compare": ["Compare", "Vergleichen"],
  "compare-with": ["Compare with", "Vergleichen mit"],
  "import": ["Import", "Importieren"],
  "export-markdown": ["Save as Markdown", "Als Markdown speichern"],
  "export-json": ["Save as JSON", "Als JSON speichern"],
  "rename": ["Rename", "Umbenennen"],
  "delete": ["Delete", "Löschen"],
  "delete-sure": ["Delete this conversation and its branches?", "Dieses Gespräch mit seinen Zweigen löschen?"],
  "shortcuts": ["Shortcuts", "Tastenkürzel"],
  "message": ["Message", "Nachricht"],
  "write": ["Write a message", "Nachricht schreiben"],
  "send": ["Send", "Senden"],
  "stop": ["Stop", "Anhalten"],
  "attach": ["Add a text file", "Textdatei anhängen"],
  "answer-now": ["Answer now", "Jetzt antworten"],
  "thinking": ["Thinking", "Denkt nach"],
  "thought": ["Thought", "Gedankengang"],
  "thinks": ["Thinks before it answers", "Denkt vor der Antwort nach"],
  "tokens": ["tokens", "Token"],
  "token": ["token", "Token"],
  "tokens-view": ["Tokens", "Token"],
  "edit": ["Edit", "Bearbeiten"],
  "save-and-send": ["Send as a new branch", "Als neuen Zweig senden"],
  "cancel": ["Cancel", "Abbrechen"],
  "close": ["Close", "Schließen"],
  "regenerate": ["Answer again", "Neu antworten"],
  "copy": ["Copy", "Kopieren"],
  "copied": ["Copied", "Kopiert"],
  "not-copied": ["Not copied", "Nicht kopiert"],
  "branch": ["Branch", "Zweig"],
  "branch-here": ["Branch from here", "Von hier abzweigen"],
  "previous-branch": ["Previous branch", "Voriger Zweig"],
  "next-branch": ["Next branch", "Nächster Zweig"],
  "you": ["You", "Sie"],
  "system": ["System", "System"],
  "call": ["Tool call", "Werkzeugaufruf"],
  "call-cut": ["Tool call, cut:", "Werkzeugaufruf, abgebrochen:"],
  "result": ["Result", "Ergebnis"],
  "give-result": ["Give the result", "Ergebnis senden"],
  "context": ["Context", "Kontext"],
  "of": ["of", "von"],
  "reading": ["Reading the prompt", "Die Eingabe wird gelesen"],
  "per-second": ["tokens/s", "Token/s"],
  "cached": ["from the cache", "aus dem Cache"],
  "cut": ["The answer is cut: it reached its limit of tokens.", "Die Antwort ist abgeschnitten: Die Höchstzahl an Token ist erreicht."],
  "not-kept": ["The server does not keep this answer.", "Der Server bewahrt diese Antwort nicht auf."],
  "stopped": ["Stopped.", "Angehalten."],
  "reconnecting": ["The connection is gone. Trying again …", "Die Verbindung ist unterbrochen. Neuer Versuch …"],
  "failed": ["It failed", "Fehlgeschlagen"],
  "key-needed": ["API key", "API-Schlüssel"],
  "key-hint": ["This server needs an API key. It is kept until you close this tab.", "Dieser Server verlangt einen API-Schlüssel. Er wird vergessen, wenn Sie diesen Tab schließen."],
  "key-wrong": ["The server does not know this key.", "Der Server kennt diesen Schlüssel nicht."],
  "system-prompt": ["System prompt", "Systemanweisung"],
  "thinking-budget": ["Tokens of thought", "Token zum Nachdenken"],
  "no-limit": ["no limit", "unbegrenzt"],
  "temperature": ["Temperature", "Temperatur"],
  "max-tokens": ["Most tokens of an answer", "Höchstzahl an Token je Antwort"],
  "seed": ["Seed", "Startwert"],
  "tools-json": ["Tools (JSON)", "Werkzeuge (JSON)"],
  "schema-json": ["JSON schema of the answer", "JSON-Schema der Antwort"],
  "default": ["default", "Standard"],
  "save": ["Save", "Speichern"],
  "not-json": ["This is not JSON", "Das ist kein gültiges JSON"],
  "light": ["Light", "Hell"],
  "dark": ["Dark", "Dunkel"],
  "as-system": ["Like the system", "Wie das System"],
  "appearance": ["Appearance", "Aussehen"],
  "language": ["Language", "Sprache"],
  "menu": ["Conversations and settings", "Gespräche und Einstellungen"],
  "code": ["Code", "Quelltext"],
  "table": ["Table", "Tabelle"],
  "image": ["Image", "Bild"],
  "file": ["File", "Datei"],
  "file-too-large": ["is too large: a file may have 1 MB", "ist zu groß: Eine Datei darf 1 MB haben"],
  "file-no-text": ["is not a text file", "ist keine Textdatei"],
  "remove": ["Remove", "Entfernen"],
  "new-answers": ["New text below", "Unten steht neuer Text"],
  "empty": ["Ask something.", "Fragen Sie etwas."],
  "empty-keys": ["Enter sends, Shift+Enter begins a new line.", "Enter sendet, Umschalt+Enter beginnt eine neue Zeile."],
  "no-sessions": ["This server keeps no conversations: this one is gone when you close the page.", "Dieser Server bewahrt keine Gespräche auf: Dieses ist weg, wenn Sie die Seite schließen."],
  "logprob": ["log-probability", "Log-Wahrscheinlichkeit"],
  "alternatives": ["Alternatives", "Alternativen"],
  "forced": ["given, not drawn", "vorgegeben, nicht gezogen"],
  "imported": ["Imported as a new conversation.", "Als neues Gespräch importiert."],
  "wrong-import": ["This file holds no conversation.", "Diese Datei enthält kein Gespräch."],
  "about": ["Rename, save or delete:", "Umbenennen, speichern oder löschen:"],
  "title": ["Title", "Titel"],
  "more": ["Show more", "Mehr zeigen"],
  "yes": ["yes", "ja"],
  "no": ["no", "nein"],
  "no-branches": ["Nothing has been said yet.", "Noch wurde nichts gesagt."],
  "answer-whole": ["The answer is complete.", "Die Antwort ist vollständig."],
  "top-p": ["Top p", "Top p"],
  "top-k": ["Top k", "Top k"],
  "min-p": ["Min p", "Min p"],
  "ctrl": ["Ctrl", "Strg"],
  "shift": ["Shift", "Umschalt"],
  "single-keys": ["Single keys are shortcuts too", "Auch einzelne Tasten sind Kürzel"],
  "key-next": ["Next message", "Nächste Nachricht"],
  "key-previous": ["Previous message", "Vorige Nachricht"],
  "key-send": ["Send", "Senden"],
  "key-line": ["New line", "Neue Zeile"],
  "key-stop": ["Stop, or close what is open", "Anhalten oder schließen, was offen ist"],
  "key-edit": ["Edit the last message", "Letzte Nachricht bearbeiten"],
  "key-sidebar": ["Show or hide conversations", "Gespräche zeigen oder verbergen"],
};

export let language = "en";

/** Return the page's words for a name. */
export function say(name) {
  const words = WORDS[name];
  if (!words) throw new Error(`no words for ${name}`);
  return words[language === "de" ? 1 : 0];
}

/** Set the language, and write it into all elements that are there. */
export function speak(wanted) {
  language = wanted === "de" ? "de" : "en";
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-say]")) {
    element.textContent = say(element.dataset.say);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    element.title = say(element.dataset.label);
  }
  for (const element of document.querySelectorAll("[data-placeholder]")) {
    element.placeholder = say(element.dataset.placeholder);
  }
}

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);

/** Return a number of tokens in words. */
export const tokens = (count) => `${number(count)} ${say(count === 1 ? "token" : "tokens")}`;

export const when = (seconds) =>
  new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(seconds * 1000);
