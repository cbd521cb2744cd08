// The slider of the refinement: which of the regressor's steps is shown, and playing them.

const MOVE_MS = 700;
const REST_MS = 250;

export class Refinement {
  /** onChange(position): told whenever another position is to be shown. */
  constructor({ slider, button, name, ticks }, onChange) {
    Object.assign(this, { slider, button, name, ticks, onChange });
    this.position = 0;
    slider.addEventListener("input", () => {
      this.pause();
      this.show(Number(slider.value));
    });
    slider.addEventListener("keydown", (event) => this.#press(event));
    button.addEventListener("click", () => (this.playing ? this.pause() : this.play()));
  }

  /** A new answer with steps 0 to `last`, shown at its end; distance(position): millimetres. */
  reset(last, distance) {
    this.pause();
    this.last = last;
    this.distance = distance;
    this.slider.max = last;
    this.slider.disabled = this.button.disabled = last === 0;
    this.ticks.replaceChildren(...Array.from({ length: last + 1 }, (_, step) => {
      const tick = document.createElement("option");
      tick.value = step;
      return tick;
    }));
    this.show(last);
  }

  /** Nothing to show. */
  clear() {
    this.pause();
    this.slider.disabled = this.button.disabled = true;
    this.name.textContent = "the refinement, step by step";
  }

  show(position) {
    this.position = position;
    this.slider.value = position;
    const step = Math.round(position);
    const place = step === 0 ? "start" : `step ${step} of ${this.last}`;
    const away = step < this.last ? ` · ${this.distance(step).toFixed(0)} mm to go` : " · result";
    this.name.textContent = place + away;
    this.slider.setAttribute("aria-valuetext", place + away);
    this.onChange(position);
  }

  /** From the start, or from where it was stopped, to the end; each step moves and rests. */
  play() {
    this.#playing(true);
    const from = this.position < this.last ? this.position : 0;
    this.show(from);
    const begin = performance.now() - from * (MOVE_MS + REST_MS);
    const frame = (now) => {
      const passed = Math.max(0, now - begin);
      const step = Math.floor(passed / (MOVE_MS + REST_MS));
      const share = Math.min(1, (passed - step * (MOVE_MS + REST_MS)) / MOVE_MS);
      const eased = share * share * (3 - 2 * share);
      this.show(Math.min(this.last, step + eased));
      if (this.position < this.last) this.playing = requestAnimationFrame(frame);
      else this.#playing(false);
    };
    this.playing = requestAnimationFrame(frame);
  }

  playFromStart() {
    this.pause();
    this.position = 0;
    this.play();
  }

  pause() {
    if (this.playing) cancelAnimationFrame(this.playing);
    this.#playing(false);
  }

  #playing(on) {
    if (!on) this.playing = 0;
    this.button.textContent = on ? "❚❚ Pause" : "▶ Play";
  }

  /** Keys go from step to step; a mouse or a finger goes anywhere between. */
  #press(event) {
    const here = this.position;
    const target = {
      ArrowLeft: Math.ceil(here) - 1, ArrowDown: Math.ceil(here) - 1,
      ArrowRight: Math.floor(here) + 1, ArrowUp: Math.floor(here) + 1,
      Home: 0, End: this.last,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this.pause();
    this.show(Math.max(0, Math.min(this.last, target)));
  }
}
