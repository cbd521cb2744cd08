// The bodies alone, to turn around: by mouse, fingers or keys, or by themselves.

import { bounds, orbitView, pinhole } from "./geometry.js";
import { painterFor } from "./painter.js";

const FIELD_OF_VIEW = 0.6;
const LARGEST_ELEVATION = 1.5;
const TURN_PER_SECOND = 0.7;
const TURN_PER_PX = 0.01;
const VIEWS = {
  front: [0, 0], side: [Math.PI / 2, 0], back: [Math.PI, 0], top: [0, LARGEST_ELEVATION],
};
const KEYS = {
  ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.15], ArrowDown: [0, -0.15],
};

export class Orbit {
  /** onTurning(isTurning): told when turning by itself begins or ends. */
  constructor(canvas, onTurning) {
    this.canvas = canvas;
    this.onTurning = onTurning;
    this.painter = painterFor(canvas);
    this.pointers = new Map(); // where each finger is, in CSS pixels
    [this.azimuth, this.elevation, this.zoom] = [0, 0, 1];
    this.#listen();
  }

  /** The bodies to look at from now on; the eye goes to where it sees all of them. */
  frame(meshes) {
    const { middle, diagonal } = bounds(meshes);
    [this.target, this.size] = [middle, diagonal];
  }

  show(meshes) {
    this.painter.setMeshes(meshes);
    this.draw();
  }

  look(view) {
    this.turn(false);
    [this.azimuth, this.elevation] = VIEWS[view];
    this.zoom = 1;
    this.draw();
  }

  turn(on) {
    if (on === Boolean(this.turning)) return;
    if (this.turning) cancelAnimationFrame(this.turning);
    this.turning = 0;
    let last = performance.now();
    const step = (now) => {
      this.azimuth += TURN_PER_SECOND * (now - last) / 1000;
      last = now;
      this.draw();
      this.turning = requestAnimationFrame(step);
    };
    if (on) this.turning = requestAnimationFrame(step);
    this.onTurning(on);
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!this.target || !width || !height) return;
    const distance = 1.75 * this.size * this.zoom * Math.max(1, height / width);
    const view = orbitView(this.target, this.azimuth, this.elevation, distance);
    const focal = height / 2 / Math.tan(FIELD_OF_VIEW / 2);
    const camera = { fx: focal, fy: focal, cx: width / 2, cy: height / 2 };
    const near = Math.max(0.02, distance - 2 * this.size);
    const projection = pinhole(camera, width, height, near, distance + 2 * this.size);
    this.painter.draw(view, projection, 1);
  }

  #listen() {
    const { canvas, pointers } = this;
    const place = ({ clientX, clientY }) => [clientX, clientY];
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (pointers.has(event.pointerId)) this.#drag(event.pointerId, place(event));
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#scale(Math.exp(0.001 * event.deltaY));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.key in KEYS) this.#move(...KEYS[event.key]);
      else if (event.key === "+" || event.key === "=") this.#scale(1 / 1.1);
      else if (event.key === "-") this.#scale(1.1);
      else if (event.key === "Home") this.look("front");
      else return;
      event.preventDefault();
    });
  }

  /** One finger turns; two turn together, and zoom by the distance between them. */
  #drag(id, to) {
    const { pointers } = this;
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 0;
    };
    const [before, from] = [spread(), pointers.get(id)];
    pointers.set(id, to);
    const share = TURN_PER_PX / pointers.size;
    this.#move(-share * (to[0] - from[0]), share * (to[1] - from[1]));
    if (before && spread()) this.#scale(before / spread());
  }

  #move(azimuth, elevation) {
    this.turn(false);
    this.azimuth += azimuth;
    const raised = this.elevation + elevation;
    this.elevation = Math.max(-LARGEST_ELEVATION, Math.min(LARGEST_ELEVATION, raised));
    this.draw();
  }

  #scale(factor) {
    this.zoom = Math.max(0.2, Math.min(5, this.zoom * factor));
    this.draw();
  }
}
