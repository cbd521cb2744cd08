// Calls to the service. Every failure is a Refusal whose message is meant for people.

const MOST_TRIES = 6;
const LONGEST_WAIT_S = 10;
const LARGE_BYTES = 4_000_000;

export class Refusal extends Error {
  /** requestId: under which the service's log has more; empty when it never got there. */
  constructor(status, message, requestId = "") {
    super(message);
    Object.assign(this, { status, requestId });
  }
}

let key = ""; // kept in this page's memory only
let whileWaiting = () => {};

/** The API key for all later calls; it travels in a header, never in an address. */
export function useKey(text) {
  key = text;
}

export const hasKey = () => key !== "";

/** tell(message): called with words while a busy service is given time, with "" afterwards. */
export function onWaiting(tell) {
  whileWaiting = tell;
}

async function call(address, options = {}) {
  for (let tries = 1; ; tries++) {
    const answer = await once(address, options);
    if (answer.ok) return answer;
    const wait = Number(answer.headers.get("retry-after"));
    const isBusy = [429, 503].includes(answer.status) && wait > 0;
    if (!isBusy || wait > LONGEST_WAIT_S || tries === MOST_TRIES) throw await refusalOf(answer);
    whileWaiting(`The service is busy; trying again in ${wait} s.`);
    await pause(1000 * wait * (1 + 0.3 * Math.random()), options.signal)
      .finally(() => whileWaiting(""));
  }
}

async function once(address, options) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  try {
    return await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const size = options.body?.get("image")?.size ?? 0;
    const cause = size > LARGE_BYTES
      ? `It may refuse files as large as this one (${(size / 1e6).toFixed(0)} MB); try a smaller one.`
      : "Is it still running?";
    throw new Refusal(0, `The service does not answer. ${cause}`);
  }
}

async function refusalOf(answer) {
  const text = await answer.text();
  try {
    const { detail, request_id: requestId } = JSON.parse(text);
    if (answer.status === 401 && hasKey()) {
      return new Refusal(401, "The service does not know this key; check it.", requestId);
    }
    return new Refusal(answer.status, `${detail[0].toUpperCase()}${detail.slice(1)}.`, requestId);
  } catch { // a proxy's answer is no JSON
    const words = text.replace(/<[^>]*>/g, " ").trim().slice(0, 200);
    return new Refusal(answer.status, `The service answered ${answer.status}. ${words}`);
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}

/** What is served, the default first. */
export async function fetchModels() {
  return (await (await call("v1/models")).json()).models;
}

/** The triangles of a model's body, three indices each. */
export async function fetchFaces(model) {
  return new Uint32Array(await (await call(model.faces_url)).arrayBuffer());
}

/** A picture of a made-up person. */
export async function fetchExample(number, signal) {
  const blob = await (await call(`v1/examples/${number}`, { signal })).blob();
  return new File([blob], `example-${number}.jpg`, { type: blob.type });
}

/** The text of one of the service's own documents. */
export const fetchText = async (address) => (await call(address)).text();

/**
 * The people of a photo in one of the service's forms, as JSON or as a Blob.
 * boxes: none for the whole photo. model: name@version, none for the service's choice.
 */
export async function predict(file, { boxes = [], include = "", model, accept, signal }) {
  const form = new FormData();
  form.append("image", file, file.name || "photo");
  if (boxes.length) form.append("boxes", JSON.stringify(boxes));
  if (include) form.append("include", include);
  if (model) form.append("model", model);
  const answer = await call("v1/predict", {
    method: "POST", body: form, headers: { Accept: accept }, signal,
  });
  return accept === "application/json" ? answer.json() : answer.blob();
}
