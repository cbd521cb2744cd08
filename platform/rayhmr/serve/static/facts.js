// What an answer says besides the meshes: figures, warnings, who is in it.

const $ = (id) => document.getElementById(id);

/** A colour of three numbers in 0..1 as CSS writes it. */
export const css = (color) => `rgb(${color.map((value) => Math.round(255 * value))})`;

/** The line about the model. named: its name is shown elsewhere. */
export function showModel({ name, version, n_iter: steps, input_size: size, metrics }, named) {
  const error = metrics.pa_mpjpe_mm;
  const measured = typeof error === "number" ? ` · PA-MPJPE ${error.toFixed(0)} mm` : "";
  $("model-facts").textContent =
    `${named ? "" : `${name} ${version} · `}${steps} steps · ${size} px${measured}`;
}

export function showFacts({ people, timing_ms: timing, image, warnings, camera }) {
  const total = timing.decode + timing.queue + timing.model + timing.post;
  const count = `${people.length} ${people.length === 1 ? "person" : "people"}`;
  $("summary").textContent = `${count} in ${total.toFixed(0)} ms · ${image.width} × ${image.height}`
    + ` px · focal length ${camera.fx.toFixed(0)} px (${camera.source})`;
  $("warnings").replaceChildren(...warnings.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
}

/** Several people get a button each that shows or hides them; then onChange() is called. */
export function showPeople(people, onChange) {
  const chips = people.map((person, number) => {
    const chip = document.createElement("button");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = css(person.color);
    chip.append(swatch, `Person ${number + 1}`);
    chip.setAttribute("aria-pressed", "true");
    chip.title = "Show or hide";
    chip.addEventListener("click", () => {
      person.visible = !person.visible;
      chip.setAttribute("aria-pressed", person.visible);
      onChange();
    });
    return chip;
  });
  $("people").replaceChildren(...(chips.length > 1 ? chips : []));
}

export function clearFacts() {
  $("summary").textContent = "";
  $("people").replaceChildren();
  $("warnings").replaceChildren();
}
