// Draws meshes on a canvas: with WebGL 2, or, where a browser has none, triangle by triangle in 2D.
// Both: draw(meshes, view, projection, opacity) with meshes of {vertices, normals, color}.

import { multiply } from "./geometry.js";

const VERTEX = `#version 300 es
uniform mat4 view, projection;
in vec3 position, normal;
out vec3 facing;
void main() {
  facing = mat3(view) * normal;
  gl_Position = projection * view * vec4(position, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform vec3 color;
uniform float opacity;
in vec3 facing;
out vec4 result;
const vec3 KEY = normalize(vec3(0.3, 0.6, 1.0)), FILL = normalize(vec3(-0.6, 0.2, 0.4));
void main() {
  vec3 n = normalize(gl_FrontFacing ? facing : -facing);
  float light = 0.36 + 0.5 * max(dot(n, KEY), 0.0) + 0.18 * max(dot(n, FILL), 0.0);
  float shine = 0.1 * pow(max(dot(n, normalize(KEY + vec3(0.0, 0.0, 1.0))), 0.0), 30.0);
  result = vec4(min(color * light + shine, 1.0) * opacity, opacity);
}`;

/** The best painter that this browser has for a canvas. */
export function painterFor(canvas) {
  const options = { antialias: true, premultipliedAlpha: true, preserveDrawingBuffer: true };
  const gl = canvas.getContext("webgl2", options);
  return gl ? new GlPainter(canvas, gl) : new FlatPainter(canvas);
}

function fitted(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
}

class GlPainter {
  constructor(canvas, gl) {
    this.canvas = canvas;
    this.gl = gl;
    // A tablet takes the context away from a page in the background, and gives it back empty.
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.#prepare();
      if (this.faces) this.setFaces(this.faces);
      if (this.last) this.draw(...this.last);
    });
    this.#prepare();
  }

  setFaces(faces) {
    const { gl } = this;
    this.faces = faces;
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.indices);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
  }

  draw(meshes, view, projection, opacity) {
    this.last = [meshes, view, projection, opacity];
    const { gl, canvas } = this;
    fitted(canvas);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix4fv(this.places.view, false, view);
    gl.uniformMatrix4fv(this.places.projection, false, projection);
    gl.uniform1f(this.places.opacity, opacity);
    // Depth first and colour second: only the nearest surface of all people is blended.
    for (const visible of [false, true]) {
      gl.colorMask(visible, visible, visible, visible);
      for (const mesh of meshes) this.#drawOne(mesh);
    }
  }

  #drawOne({ vertices, normals, color }) {
    const { gl } = this;
    gl.uniform3fv(this.places.color, color);
    for (const [name, values] of [["position", vertices], ["normal", normals]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STREAM_DRAW);
    }
    gl.drawElements(gl.TRIANGLES, this.faces.length, gl.UNSIGNED_INT, 0);
  }

  #prepare() {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.places = {};
    for (const name of ["view", "projection", "color", "opacity"]) {
      this.places[name] = gl.getUniformLocation(program, name);
    }
    this.buffers = {};
    for (const name of ["position", "normal"]) {
      this.buffers[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      const place = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
    }
    this.indices = gl.createBuffer();
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }
}

/** The painter's algorithm: far triangles first. Slow, but it runs everywhere. */
class FlatPainter {
  constructor(canvas) {
    this.canvas = canvas;
    this.layer = document.createElement("canvas");
  }

  setFaces(faces) {
    this.faces = faces;
  }

  draw(meshes, view, projection, opacity) {
    const { canvas, layer } = this;
    fitted(canvas);
    Object.assign(layer, { width: canvas.width, height: canvas.height });
    const triangles = meshes.flatMap((mesh) => this.#triangles(mesh, view, projection));
    triangles.sort((a, b) => b.depth - a.depth);
    const pen = layer.getContext("2d");
    pen.lineWidth = 1;
    pen.lineJoin = "round";
    for (const { corners, style } of triangles) {
      pen.fillStyle = pen.strokeStyle = style;
      pen.beginPath();
      for (const [x, y] of corners) pen.lineTo(x, y);
      pen.closePath();
      pen.fill();
      pen.stroke(); // closes the hairlines between neighbours
    }
    const target = canvas.getContext("2d");
    target.clearRect(0, 0, canvas.width, canvas.height);
    target.globalAlpha = opacity;
    target.drawImage(layer, 0, 0);
  }

  #triangles({ vertices, normals, color }, view, projection) {
    const matrix = multiply(projection, view);
    const { width, height } = this.canvas;
    const row = (r, x, y, z) => matrix[r] * x + matrix[4 + r] * y + matrix[8 + r] * z
      + matrix[12 + r];
    const points = [];
    for (let i = 0; i < vertices.length; i += 3) {
      const place = vertices.subarray(i, i + 3);
      const w = row(3, ...place);
      points.push([(row(0, ...place) / w + 1) * width / 2, (1 - row(1, ...place) / w) * height / 2,
        w]);
    }
    const triangles = [];
    for (let f = 0; f < this.faces.length; f += 3) {
      const corners = [0, 1, 2].map((k) => points[this.faces[f + k]]);
      const [[ax, ay, aw], [bx, by, bw], [cx, cy, cw]] = corners;
      if (Math.min(aw, bw, cw) <= 0) continue;
      if ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax) >= 0) continue; // its back
      const n = 3 * this.faces[f];
      const [x, y, z] = normals.subarray(n, n + 3);
      const [ex, ey, ez] = [0, 1, 2].map((r) => view[r] * x + view[4 + r] * y + view[8 + r] * z);
      const light = 0.36 + 0.5 * Math.max(0, 0.25 * ex + 0.5 * ey + 0.83 * ez)
        + 0.18 * Math.max(0, -0.8 * ex + 0.27 * ey + 0.53 * ez);
      const style = `rgb(${color.map((value) => Math.min(255, Math.round(255 * value * light)))})`;
      triangles.push({ corners, style, depth: aw + bw + cw });
    }
    return triangles;
  }
}
