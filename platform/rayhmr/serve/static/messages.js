// What goes wrong, in words; messages float above the page, so that nothing on it moves.

const $ = (id) => document.getElementById(id);

/** message: for people; requestId: under which the service's log has more, if it got there. */
export function showMessage({ message, requestId }) {
  $("message-text").textContent = message;
  $("message-request").textContent = requestId ? `Request ${requestId}` : "";
  $("message").hidden = false;
}

export function hideMessage() {
  $("message").hidden = true;
}

/** What the page is waiting for; nothing for no words. */
export function showNotice(words) {
  $("notice").textContent = words;
  $("notice").hidden = !words;
}

$("dismiss").addEventListener("click", hideMessage);
