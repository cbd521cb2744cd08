// The page: a photo goes to the service, the bodies come back over the photo and to turn around.

import { between, CAMERA_VIEW, decoded, depthRange, normalsOf, pinhole } from "./geometry.js";
import { Orbit } from "./orbit.js";
import { painterFor } from "./painter.js";
import { fetchExample, fetchModel, predict, Refusal, useKey } from "./service.js";

const EXAMPLES = 12;
const PLAY_MS = 2400;
const SMALLEST_BOX_PX = 16;
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const $ = (id) => document.getElementById(id);

const state = {
  model: null, // what the service says about its model, and faces
  file: null, // the photo
  boxes: [], // [x1, y1, x2, y2] in pixels of the upright photo
  answer: null, // the service's JSON
  people: [], // {color, visible, steps: [{vertices, cam_t}]}
  step: 0, // position in the refinement; between whole steps it is a mixture
};
const overlay = painterFor($("overlay"));
const orbit = new Orbit($("orbit"), (on) => $("turn").setAttribute("aria-pressed", on));
let running = null;
let playing = 0;
let exampleNumber = Math.floor(Math.random() * EXAMPLES);

// --- talking to the service ---------------------------------------------------------------------

async function attempt(action) {
  $("message").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error instanceof Refusal && error.status === 401) {
      $("key-form").hidden = false;
      $("key").focus();
    }
    $("message").textContent = error.message;
    $("message").hidden = false;
    if (!(error instanceof Refusal)) throw error;
  }
}

async function ensureModel() {
  if (state.model) return;
  const model = await fetchModel();
  state.model = model;
  overlay.setFaces(model.faces);
  orbit.painter.setFaces(model.faces);
  const error = model.metrics.pa_mpjpe_mm;
  const measured = typeof error === "number" ? ` · PA-MPJPE ${error.toFixed(0)} mm` : "";
  $("model").textContent =
    `${model.name} ${model.version} · ${model.n_iter} steps · ${model.input_size} px${measured}`;
}

async function open(file) {
  if (!file) return;
  clearResult();
  state.boxes = [];
  state.file = file;
  const photo = $("photo");
  const earlier = photo.src;
  photo.src = URL.createObjectURL(file);
  if (earlier) URL.revokeObjectURL(earlier);
  const shown = await photo.decode().then(() => true, () => false);
  $("frame").hidden = !shown;
  $("hint").hidden = shown;
  fitPhoto();
  await recover();
}

function clearResult() {
  Object.assign(state, { answer: null, people: [] });
  $("result").hidden = true;
  $("orbit-hint").hidden = false;
  orbit.turn(false);
  drawAll();
  enable(false);
}

function recover() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  $("busy").hidden = false;
  return attempt(async () => {
    await ensureModel();
    const options = { boxes: state.boxes, include: "vertices,iterations", signal };
    const answer = await predict(state.file, { ...options, accept: "application/json" });
    if (!signal.aborted) showAnswer(answer);
  }).finally(() => {
    if (!signal.aborted) $("busy").hidden = true;
  });
}

// --- showing an answer --------------------------------------------------------------------------

function showAnswer(answer) {
  const colors = state.model.person_colors;
  state.answer = answer;
  state.people = answer.people.map((person, number) => ({
    color: colors[number % colors.length],
    visible: true,
    box: person.box_xyxy,
    steps: person.iterations.map(({ vertices, cam_t }) => ({ vertices: decoded(vertices), cam_t })),
  }));
  const last = Math.max(0, ...state.people.map(({ steps }) => steps.length - 1));
  $("step").max = last;
  $("orbit-hint").hidden = state.people.length > 0;
  $("result").hidden = false;
  enable(true);
  showFacts(answer);
  showPeople();
  fitPhoto();
  if (state.people.length) {
    orbit.frame(turnable(last));
    setStep(last);
    if (!calm) orbit.turn(true);
  }
}

function showFacts({ people, timing_ms: timing, image, warnings, camera }) {
  const total = timing.decode + timing.queue + timing.model + timing.post;
  const count = `${people.length} ${people.length === 1 ? "person" : "people"}`;
  $("summary").textContent = `${count} in ${total.toFixed(0)} ms · ${image.width} × ${image.height}`
    + ` px · focal length ${camera.fx.toFixed(0)} px (${camera.source})`;
  $("warnings").replaceChildren(...warnings.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  $("curl").textContent = curlLine();
  const brief = (name, value) => (name === "data" ? `… ${value.length} characters` : value);
  $("answer").textContent = JSON.stringify(state.answer, brief, 1)
    .replace(/\[\s+([^[\]{}]*?)\s+\]/g, (_, inner) => `[${inner.replace(/\s+/g, " ")}]`);
}

function curlLine() {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = ["curl -s", `-F ${quoted(`image=@${state.file.name || "photo.jpg"}`)}`];
  if (state.boxes.length) parts.push(`-F ${quoted(`boxes=${JSON.stringify(state.boxes)}`)}`);
  if ($("key").value) parts.push('-H "Authorization: Bearer $RAYHMR_API_KEY"');
  return [...parts, new URL("v1/predict", location.href).href].join(" ");
}

function showPeople() {
  const chips = state.people.map((person, number) => {
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
      drawAll();
    });
    return chip;
  });
  $("people").replaceChildren(...(chips.length > 1 ? chips : []));
}

function enable(on) {
  for (const id of ["mark", "opacity", "show", "turn"]) $(id).disabled = !on;
  for (const button of $("views").querySelectorAll("button")) button.disabled = !on;
}

const css = (color) => `rgb(${color.map((value) => Math.round(255 * value))})`;

/** Pixels of the upright photo. */
function photoSize() {
  const { naturalWidth: width, naturalHeight: height } = $("photo");
  return state.answer?.image ?? { width, height };
}

/** The photo as large as its stage allows; the canvas and the boxes lie exactly over it. */
function fitPhoto() {
  const { width, height } = photoSize();
  if (!width || $("frame").hidden) return;
  const stage = $("drop");
  const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
  $("photo").style.width = `${Math.round(width * scale)}px`;
  $("photo").style.height = `${Math.round(height * scale)}px`;
  $("boxes").setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawBoxes();
  drawAll();
}

// --- drawing ------------------------------------------------------------------------------------

/** Vertices of everybody visible at a position of the refinement; `where` moves each of them. */
function meshesAt(position, where) {
  return state.people.filter(({ visible }) => visible).map(({ steps, color }) => {
    const lower = Math.min(Math.floor(position), steps.length - 1);
    const upper = Math.min(lower + 1, steps.length - 1);
    const vertices = between(
      where(steps, lower), where(steps, upper), Math.min(1, position - lower));
    return { vertices, normals: normalsOf(vertices, state.model.faces), color };
  });
}

const seen = (position) => meshesAt(position, (steps, k) => steps[k].vertices);

/** Every step where the last one stands, so that the eye need not follow. */
const turnable = (position) => meshesAt(position, (steps, k) => {
  const shift = steps.at(-1).cam_t.map((value, axis) => value - steps[k].cam_t[axis]);
  return steps[k].vertices.map((value, i) => value + shift[i % 3]);
});

function drawAll() {
  orbit.show(turnable(state.step));
  drawOverlay();
}

function drawOverlay() {
  const on = $("show").getAttribute("aria-pressed") === "true";
  const meshes = on ? seen(state.step) : [];
  const image = photoSize();
  const camera = state.answer?.camera ?? { fx: 1, fy: 1, cx: 0, cy: 0 };
  const [near, far] = meshes.length ? depthRange(meshes) : [1, 2];
  const projection = pinhole(camera, image.width, image.height, near, far);
  overlay.draw(meshes, CAMERA_VIEW, projection, Number($("opacity").value));
}

function drawBoxes(more = []) {
  const drawn = [...state.boxes, ...more].map(([x1, y1, x2, y2], number) => {
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    for (const [name, value] of Object.entries(place)) box.setAttribute(name, value);
    const colors = state.model.person_colors;
    box.style.stroke = css(colors[number % colors.length]);
    return box;
  });
  $("boxes").replaceChildren(...drawn);
}

// --- the refinement -----------------------------------------------------------------------------

function setStep(position) {
  state.step = position;
  $("step").value = position;
  const whole = Math.round(position);
  $("step-name").textContent = whole === 0 ? "start" : `step ${whole} of ${$("step").max}`;
  drawAll();
}

function play() {
  const last = Number($("step").max);
  cancelAnimationFrame(playing);
  const start = performance.now();
  const frame = (now) => {
    const share = Math.min(1, (now - start) / PLAY_MS);
    setStep(share * last);
    if (share < 1) playing = requestAnimationFrame(frame);
  };
  playing = requestAnimationFrame(frame);
}

// --- boxes drawn by hand ------------------------------------------------------------------------

function pixelOf(event) {
  const { left, top, width, height } = $("frame").getBoundingClientRect();
  const image = photoSize();
  const x = (event.clientX - left) / width * image.width;
  const y = (event.clientY - top) / height * image.height;
  return [Math.max(0, Math.min(image.width, x)), Math.max(0, Math.min(image.height, y))];
}

function listenForBoxes() {
  const frame = $("frame");
  let from = null;
  const boxTo = (event) => {
    const [x, y] = pixelOf(event);
    const sides = [Math.min(x, from[0]), Math.min(y, from[1]), Math.max(x, from[0]),
      Math.max(y, from[1])];
    return sides.map((value) => Math.round(value));
  };
  $("mark").addEventListener("click", () => {
    const on = frame.classList.toggle("marking");
    $("mark").setAttribute("aria-pressed", on);
    $("mark").textContent = on ? "Whole photo" : "Mark people";
    if (on || !state.boxes.length) return;
    state.boxes = [];
    recover();
  });
  frame.addEventListener("pointerdown", (event) => {
    if (!frame.classList.contains("marking")) return;
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    from = pixelOf(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (from) drawBoxes([boxTo(event)]);
  });
  frame.addEventListener("pointerup", (event) => {
    if (!from) return;
    const box = boxTo(event);
    from = null;
    const isBox = Math.min(box[2] - box[0], box[3] - box[1]) >= SMALLEST_BOX_PX;
    if (isBox) state.boxes = [...state.boxes, box];
    drawBoxes();
    if (isBox) recover();
  });
}

// --- what people do -----------------------------------------------------------------------------

function listenForPhotos() {
  const stage = $("drop");
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => open($("file").files[0]));
  $("example").addEventListener("click", () => attempt(async () => {
    const file = await fetchExample(exampleNumber);
    exampleNumber = (exampleNumber + 1) % EXAMPLES;
    await open(file);
  }));
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) stage.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    open(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => open(event.clipboardData.files[0]));
}

function listenForControls() {
  $("opacity").addEventListener("input", drawOverlay);
  $("show").addEventListener("click", () => {
    const on = $("show").getAttribute("aria-pressed") !== "true";
    $("show").setAttribute("aria-pressed", on);
    drawOverlay();
  });
  $("step").addEventListener("input", () => {
    cancelAnimationFrame(playing);
    setStep(Number($("step").value));
  });
  $("play").addEventListener("click", play);
  $("turn").addEventListener("click", () => {
    orbit.turn($("turn").getAttribute("aria-pressed") !== "true");
  });
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => orbit.look(button.dataset.view));
  }
  $("copy").addEventListener("click", () => navigator.clipboard.writeText($("curl").textContent));
  for (const button of document.querySelectorAll("[data-accept]")) {
    button.addEventListener("click", () => attempt(() => download(button.dataset)));
  }
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey($("key").value.trim());
    $("key-form").hidden = true;
    attempt(ensureModel).then(() => state.file && state.model && recover());
  });
}

async function download({ accept, suffix }) {
  const options = { boxes: state.boxes, include: "vertices", accept };
  const content = await predict(state.file, options);
  const blob = content instanceof Blob ? content : new Blob([JSON.stringify(content)]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${(state.file.name || "photo").replace(/\.[^.]*$/, "")}-body.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

listenForPhotos();
listenForBoxes();
listenForControls();
if (calm) $("turn").setAttribute("aria-pressed", "false");
new ResizeObserver(() => {
  fitPhoto();
  orbit.draw();
}).observe($("drop"));
attempt(ensureModel);
