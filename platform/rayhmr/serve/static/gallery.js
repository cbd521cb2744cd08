// The service's made-up people, for visitors without a photo at hand.

import { fetchExample } from "./service.js";

const COUNT = 12;

export class Gallery {
  /** dialog: with a list to fill. attempt(action): shows its failures. onPick(file). */
  constructor(dialog, list, { attempt, onPick }) {
    Object.assign(this, { dialog, list, attempt, onPick });
    dialog.addEventListener("close", () => this.loading?.abort());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside it
    });
  }

  /** Shows the pictures; those not yet here are fetched one after the other. */
  async open() {
    this.dialog.showModal();
    while (this.list.children.length < COUNT) this.list.append(emptyItem(this.list.children.length));
    this.loading = new AbortController();
    const { signal } = this.loading;
    await this.attempt(async () => {
      for (const [number, button] of [...this.list.querySelectorAll("button")].entries()) {
        if (button.disabled) this.#fill(button, await fetchExample(number, signal));
      }
    });
    if (this.list.querySelector("button:disabled") && !signal.aborted) this.dialog.close();
  }

  #fill(button, file) {
    const picture = document.createElement("img");
    picture.alt = "";
    picture.src = URL.createObjectURL(file);
    button.replaceChildren(picture);
    button.disabled = false;
    button.addEventListener("click", () => {
      this.dialog.close();
      this.onPick(file);
    });
  }
}

function emptyItem(number) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.disabled = true;
  button.setAttribute("aria-label", `Example ${number + 1}`);
  item.append(button);
  return item;
}
