// What the page gives away: files, the answer as text, and the same request as a command.

/** Hands a Blob to the browser's downloads. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * Wavefront OBJ: one object a person, metres, turned from the camera's axes to y up and z towards
 * the viewer as in the GLB. Nine digits give float32 back bit for bit.
 */
export function objText(meshes, faces) {
  const lines = ["# metres; x right, y up, z towards the viewer"];
  const text = (value) => String(Number(value.toPrecision(9)));
  meshes.forEach((vertices, number) => {
    const before = number * vertices.length / 3 + 1;
    lines.push(`o person_${number}`);
    for (let i = 0; i < vertices.length; i += 3) {
      lines.push(`v ${text(vertices[i])} ${text(-vertices[i + 1])} ${text(-vertices[i + 2])}`);
    }
    for (let f = 0; f < faces.length; f += 3) {
      lines.push(`f ${faces[f] + before} ${faces[f + 1] + before} ${faces[f + 2] + before}`);
    }
  });
  return `${lines.join("\n")}\n`;
}

/** The answer for reading: lists of numbers on a line, the encoded vertices only counted. */
export function briefJson(answer) {
  const brief = (name, value) => (name === "data" ? `… ${value.length} characters` : value);
  return JSON.stringify(answer, brief, 1)
    .replace(/\[\s+([^[\]{}]*?)\s+\]/g, (_, inner) => `[${inner.replace(/\s+/g, " ")}]`);
}

/** A shell command that asks the same; the key stands in it as a variable only. */
export function curlLine(file, { boxes, model, hasKey }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = ["curl -s", `-F ${quoted(`image=@${file.name || "photo.jpg"}`)}`];
  if (boxes.length) parts.push(`-F ${quoted(`boxes=${JSON.stringify(boxes)}`)}`);
  if (model) parts.push(`-F ${quoted(`model=${model}`)}`);
  if (hasKey) parts.push('-H "Authorization: Bearer $RAYHMR_API_KEY"');
  return [...parts, new URL("v1/predict", location.href).href].join(" ");
}

/** Copies text; where the browser forbids it, the text is selected for the visitor to copy. */
export async function copy(element, button) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  } catch { // no permission, or no https
    getSelection().selectAllChildren(element);
  }
}
