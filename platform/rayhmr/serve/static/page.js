// The page: a photo goes to the service, the bodies come back over the photo and to turn around.

import { askForKey, listenForKey } from "./access.js";
import { Bodies } from "./bodies.js";
import { Boxes } from "./boxes.js";
import { clearFacts, css, showFacts, showModel, showPeople } from "./facts.js";
import { briefJson, copy, curlLine, objText, save } from "./files.js";
import { Gallery } from "./gallery.js";
import { CAMERA_VIEW, depthRange, pinhole } from "./geometry.js";
import { listenForPhotos } from "./intake.js";
import { hideMessage, showMessage, showNotice } from "./messages.js";
import { Orbit } from "./orbit.js";
import { painterFor } from "./painter.js";
import { Refinement } from "./refinement.js";
import { fetchFaces, fetchModels, hasKey, onWaiting, predict, Refusal } from "./service.js";

const KEYS_PAUSE_MS = 500;
const MEDIA = {
  glb: "model/gltf-binary", npz: "application/x-npz", json: "application/json", png: "image/png",
};
const NO_COLORS = [[0.55, 0.74, 0.94]]; // until the model says its own
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const $ = (id) => document.getElementById(id);

const state = {
  models: [], // what the service says about its models
  model: null, // the chosen one, with its faces
  file: null, // the photo
  answer: null, // the service's JSON
  bodies: null, // Bodies of the answer
};
const overlay = painterFor($("overlay"));
const orbit = new Orbit($("orbit"), (on) => $("turn").setAttribute("aria-pressed", on));
const boxes = new Boxes($("boxes"), { colorOf: (number) => css(colorOf(number)), onChange: again });
const refinement = new Refinement(
  { slider: $("step"), button: $("play"), name: $("step-name"), ticks: $("ticks") }, drawAll);
const gallery = new Gallery($("gallery"), $("gallery-list"), { attempt, onPick: open });
let running = null; // the request under way
let timer = 0;

const colors = () => state.model?.person_colors ?? NO_COLORS;
const colorOf = (number) => colors()[number % colors().length];
const isPressed = (id) => $(id).getAttribute("aria-pressed") === "true";

// --- talking to the service ---------------------------------------------------------------------

/** Runs an action and shows its failure in words; whether it went well. */
async function attempt(action) {
  hideMessage();
  try {
    await action();
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    if (error instanceof Refusal && error.status === 401) askForKey(error);
    else showMessage(error);
    if (!(error instanceof Refusal)) throw error;
    return false;
  }
}

async function ensureModel() {
  if (state.model) return;
  state.models = await fetchModels();
  $("models").replaceChildren(...state.models.map(({ name, version }) => {
    const option = document.createElement("option");
    option.textContent = `${name} ${version}`;
    return option;
  }));
  $("models").hidden = state.models.length < 2;
  await choose(state.models[0]);
}

async function choose(model) {
  const faces = await fetchFaces(model);
  state.model = { ...model, faces };
  overlay.setFaces(faces);
  orbit.painter.setFaces(faces);
  showModel(model, state.models.length > 1);
}

/** What the service is asked, besides the photo. */
function options() {
  const { name, version } = state.model;
  const model = state.models.length > 1 ? `${name}@${version}` : undefined;
  return { boxes: boxes.list, model };
}

async function open(file) {
  if (!file) return;
  clearResult();
  state.file = file;
  $("busy").hidden = false;
  const photo = $("photo");
  const earlier = photo.src;
  photo.src = URL.createObjectURL(file);
  if (earlier) URL.revokeObjectURL(earlier);
  const shown = await photo.decode().then(() => true, () => false);
  $("frame").hidden = !shown;
  $("hint").hidden = shown;
  $("hint-title").textContent = "This browser cannot show the file";
  $("hint-text").textContent = file.name;
  $("mark").disabled = !shown;
  boxes.clear();
  fitPhoto();
  await recover(!calm);
}

function clearResult() {
  Object.assign(state, { answer: null, bodies: null });
  mark(false);
  orbit.turn(false);
  refinement.clear();
  enable(false);
  drawAll(0);
  $("orbit-hint").hidden = false;
  clearFacts();
}

/** Asks for the people of the photo; played: their refinement is played at once. */
function recover(played = false) {
  clearTimeout(timer);
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  $("busy").hidden = false;
  return attempt(async () => {
    await ensureModel();
    const answer = await predict(state.file, {
      ...options(), include: "vertices,iterations", accept: MEDIA.json, signal,
    });
    if (signal.aborted) return;
    const { name, version } = answer.model;
    if (name !== state.model.name || version !== state.model.version) {
      state.model = null; // the service has exchanged it since
      await ensureModel();
    }
    showAnswer(answer, played);
  }).finally(() => {
    if (!signal.aborted) $("busy").hidden = true;
  });
}

/** The boxes changed; soon: by a key, and more keys may follow. */
function again(soon) {
  clearTimeout(timer);
  timer = setTimeout(recover, soon ? KEYS_PAUSE_MS : 0);
}

// --- showing an answer --------------------------------------------------------------------------

function showAnswer(answer, played) {
  const isFirst = !state.answer;
  state.answer = answer;
  state.bodies = new Bodies(answer.people, state.model.faces, state.model.person_colors);
  const { bodies } = state;
  const anybody = bodies.people.length > 0;
  $("orbit-hint").hidden = anybody;
  enable(anybody);
  showFacts(answer);
  showPeople(bodies.people, () => drawAll(refinement.position));
  $("curl").textContent = curlLine(state.file, { ...options(), hasKey: hasKey() });
  $("answer").textContent = briefJson(answer);
  fitPhoto();
  if (!anybody) return;
  orbit.frame(bodies.at(bodies.last));
  refinement.reset(bodies.last, (position) => bodies.distance(position));
  if (played) refinement.playFromStart();
  if (isFirst && !calm) orbit.turn(true);
}

function enable(on) {
  for (const id of ["opacity", "show", "turn"]) $(id).disabled = !on;
  for (const button of document.querySelectorAll("#views button, #downloads button")) {
    button.disabled = !on;
  }
}

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
  boxes.resize(width, height);
  drawOverlay();
}

function drawAll(position) {
  const meshes = state.bodies?.at(position) ?? [];
  orbit.show(meshes);
  overlay.setMeshes(meshes.map((mesh) => ({ ...mesh, offset: [0, 0, 0] })));
  drawOverlay();
}

function drawOverlay() {
  const { meshes } = overlay;
  const { width, height } = photoSize();
  if (!width) return;
  const camera = state.answer?.camera ?? { fx: 1, fy: 1, cx: 0, cy: 0 };
  const [near, far] = meshes.length ? depthRange(meshes) : [1, 2];
  const opacity = isPressed("show") ? Number($("opacity").value) : 0;
  overlay.draw(CAMERA_VIEW, pinhole(camera, width, height, near, far), opacity);
}

// --- what people do -----------------------------------------------------------------------------

function mark(on) {
  $("mark").setAttribute("aria-pressed", on);
  $("mark").textContent = on ? "Done" : "Mark people";
  $("frame").classList.toggle("marking", on);
  $("box-tools").hidden = !on;
  $("overlay-tools").hidden = on;
  boxes.edit(on);
}

function listenForBoxes() {
  $("mark").addEventListener("click", () => mark(!isPressed("mark")));
  $("photo-card").addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isPressed("mark")) return;
    mark(false);
    $("mark").focus();
  });
  $("add-box").addEventListener("click", () => boxes.add());
  $("remove-box").addEventListener("click", () => boxes.remove());
  $("whole").addEventListener("click", () => {
    mark(false);
    boxes.clear();
    recover();
  });
}

function listenForControls() {
  $("examples").addEventListener("click", () => gallery.open());
  $("opacity").addEventListener("input", drawOverlay);
  $("show").addEventListener("click", () => {
    $("show").setAttribute("aria-pressed", !isPressed("show"));
    drawOverlay();
  });
  $("turn").addEventListener("click", () => orbit.turn(!isPressed("turn")));
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => orbit.look(button.dataset.view));
  }
  $("models").addEventListener("change", () => attempt(async () => {
    clearResult(); // its meshes may be of another body
    await choose(state.models[$("models").selectedIndex]);
    if (state.file) await recover();
  }));
  $("copy").addEventListener("click", () => copy($("curl"), $("copy")));
  for (const button of document.querySelectorAll("[data-suffix]")) {
    button.addEventListener("click", () => attempt(() => download(button.dataset.suffix)));
  }
  for (const button of document.querySelectorAll("dialog .close")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}

async function download(suffix) {
  const name = `${(state.file.name || "photo").replace(/\.[^.]*$/, "")}-body.${suffix}`;
  if (suffix === "obj") {
    const meshes = state.bodies.people.map(({ steps }) => steps.at(-1).vertices);
    save(new Blob([objText(meshes, state.model.faces)]), name);
    return;
  }
  const content = await predict(
    state.file, { ...options(), include: "vertices", accept: MEDIA[suffix] });
  save(content instanceof Blob ? content : new Blob([JSON.stringify(content)]), name);
}

onWaiting(showNotice);
listenForPhotos(open);
listenForBoxes();
listenForControls();
listenForKey(attempt, async () => {
  if (await attempt(ensureModel) && state.file) recover(!calm);
});
refinement.clear();
new ResizeObserver(() => {
  fitPhoto();
  orbit.draw();
}).observe($("drop"));
attempt(ensureModel);
