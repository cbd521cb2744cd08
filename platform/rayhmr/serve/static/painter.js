// Draws meshes on a canvas with WebGL 2; flat.js does it where a browser has none.
// Both: setFaces, setMeshes with {vertices, normals, color, offset}, draw(view, projection,
// opacity). Meshes are sent to the GPU once, however often they are drawn.

import { fit, FlatPainter } from "./flat.js";
import { FILL, KEY, LIGHT } from "./geometry.js";

const vec3 = (values) => `normalize(vec3(${values.map((value) => value.toFixed(4))}))`;

const VERTEX = `#version 300 es
uniform mat4 view, projection;
uniform vec3 offset;
in vec3 position, normal;
out vec3 facing;
void main() {
  facing = mat3(view) * normal;
  gl_Position = projection * view * vec4(position + offset, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform vec3 color;
uniform float opacity;
in vec3 facing;
out vec4 result;
const vec3 KEY = ${vec3(KEY)}, FILL = ${vec3(FILL)};
void main() {
  vec3 n = normalize(gl_FrontFacing ? facing : -facing);
  float light = ${LIGHT.ambient} + ${LIGHT.key} * max(dot(n, KEY), 0.0)
    + ${LIGHT.fill} * max(dot(n, FILL), 0.0);
  float shine = 0.1 * pow(max(dot(n, normalize(KEY + vec3(0.0, 0.0, 1.0))), 0.0), 30.0);
  result = vec4(min(color * light + shine, 1.0) * opacity, opacity);
}`;

/** The best painter that this browser has for a canvas. */
export function painterFor(canvas) {
  const options = { antialias: true, premultipliedAlpha: true, preserveDrawingBuffer: true };
  const gl = canvas.getContext("webgl2", options);
  return gl ? new GlPainter(canvas, gl) : new FlatPainter(canvas);
}

class GlPainter {
  constructor(canvas, gl) {
    this.canvas = canvas;
    this.gl = gl;
    this.meshes = [];
    // A tablet takes the context away from a page in the background, and gives it back empty.
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.#prepare();
      if (this.faces) this.setFaces(this.faces);
      this.setMeshes(this.meshes);
      if (this.last) this.draw(...this.last);
    });
    this.#prepare();
  }

  setFaces(faces) {
    const { gl } = this;
    this.faces = faces;
    gl.bindVertexArray(null);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.indices);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
  }

  setMeshes(meshes) {
    const { gl } = this;
    this.meshes = meshes;
    while (this.bodies.length < meshes.length) this.bodies.push(this.#newBody());
    while (this.bodies.length > meshes.length) this.#drop(this.bodies.pop());
    meshes.forEach((mesh, number) => {
      const { buffers } = this.bodies[number];
      for (const [name, values] of [["position", mesh.vertices], ["normal", mesh.normals]]) {
        gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]);
        gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
      }
    });
  }

  draw(view, projection, opacity) {
    this.last = [view, projection, opacity];
    const { gl, canvas, places } = this;
    fit(canvas);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix4fv(places.view, false, view);
    gl.uniformMatrix4fv(places.projection, false, projection);
    gl.uniform1f(places.opacity, opacity);
    // Depth first and colour second: only the nearest surface of all people is blended.
    for (const visible of [false, true]) {
      gl.colorMask(visible, visible, visible, visible);
      this.meshes.forEach(({ color, offset = [0, 0, 0] }, number) => {
        gl.bindVertexArray(this.bodies[number].array);
        gl.uniform3fv(places.color, color);
        gl.uniform3fv(places.offset, offset);
        gl.drawElements(gl.TRIANGLES, this.faces.length, gl.UNSIGNED_INT, 0);
      });
    }
  }

  #newBody() {
    const { gl } = this;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.indices);
    const buffers = {};
    for (const name of ["position", "normal"]) {
      buffers[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]);
      const place = gl.getAttribLocation(this.program, name);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
    }
    return { array, buffers };
  }

  #drop({ array, buffers }) {
    const { gl } = this;
    for (const buffer of Object.values(buffers)) gl.deleteBuffer(buffer);
    gl.deleteVertexArray(array);
  }

  #prepare() {
    const { gl } = this;
    this.program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(this.program, shader);
    }
    gl.linkProgram(this.program);
    gl.useProgram(this.program);
    this.places = {};
    for (const name of ["view", "projection", "color", "offset", "opacity"]) {
      this.places[name] = gl.getUniformLocation(this.program, name);
    }
    this.bodies = [];
    this.indices = gl.createBuffer();
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }
}
