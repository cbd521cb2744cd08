// The service's key: asking for it, and what plain links cannot fetch because of it.

import { save } from "./files.js";
import { fetchText, hasKey, useKey } from "./service.js";

const $ = (id) => document.getElementById(id);

/** message: why the key in use is refused. */
export function askForKey({ message }) {
  $("key-error").textContent = hasKey() ? message : "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

/** attempt(action): shows its failures; onKey(): another key is in use. */
export function listenForKey(attempt, onKey) {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey($("key").value.trim());
    $("key-dialog").close();
    onKey();
  });
  // A link sends no key, so with a key the page fetches what they lead to.
  for (const link of document.querySelectorAll("footer a")) {
    link.addEventListener("click", (event) => {
      if (!hasKey()) return;
      event.preventDefault();
      const address = link.getAttribute("href");
      attempt(async () => show(address, await fetchText(address)));
    });
  }
}

function show(address, text) {
  if (address.endsWith(".json")) {
    save(new Blob([text]), address);
    return;
  }
  const page = new DOMParser().parseFromString(text, "text/html");
  $("reference-text").replaceChildren(...page.querySelector("main").children);
  $("reference").showModal();
}
