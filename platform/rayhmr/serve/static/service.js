// Calls to the service. Every failure is a Refusal whose message is meant for people.

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let key = "";

/** The API key for all later calls; it travels in a header, never in an address. */
export function useKey(text) {
  key = text;
}

async function call(address, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = `The service answered ${answer.status}. ${text.slice(0, 200)}`;
  try {
    const problem = JSON.parse(text);
    message = `${problem.title}: ${problem.detail} (request ${problem.request_id})`;
  } catch { /* a proxy's answer is no JSON */ }
  throw new Refusal(answer.status, message);
}

/** What is served: the description of the model, and its triangles. */
export async function fetchModel() {
  const { models: [model] } = await (await call("v1/models")).json();
  const faces = await (await call(model.faces_url)).arrayBuffer();
  return { ...model, faces: new Uint32Array(faces) };
}

/** A picture of a made-up person. */
export async function fetchExample(number) {
  const blob = await (await call(`v1/examples/${number}`)).blob();
  return new File([blob], `example-${number}.jpg`, { type: blob.type });
}

/** The people of a photo in one of the service's forms; boxes: none for the whole photo. */
export async function predict(file, { boxes = [], include = "", accept, signal }) {
  const form = new FormData();
  form.append("image", file, file.name || "photo");
  if (boxes.length) form.append("boxes", JSON.stringify(boxes));
  if (include) form.append("include", include);
  const answer = await call("v1/predict", {
    method: "POST", body: form, headers: { Accept: accept }, signal,
  });
  return accept === "application/json" ? answer.json() : answer.blob();
}
