// The people of an answer: their meshes at any position of the refinement.

import { between, decoded, normalsOf } from "./geometry.js";

export class Bodies {
  /** people: of the service's answer, with the vertices of every step; colors: RGB in 0..1. */
  constructor(people, faces, colors) {
    this.faces = faces;
    this.people = people.map((person, number) => ({
      color: colors[number % colors.length],
      visible: true,
      steps: person.iterations.map(({ vertices, cam_t }) => (
        { vertices: decoded(vertices), place: cam_t })),
    }));
    this.last = Math.max(0, ...this.people.map(({ steps }) => steps.length - 1));
  }

  /**
   * Everybody visible at a position; between whole positions a mixture. `offset` moves a mesh to
   * where its last step stands, so that whoever turns it around need not follow.
   */
  at(position) {
    return this.people.filter(({ visible }) => visible).map(({ steps, color }) => {
      const { vertices, place } = mixed(steps, position);
      const offset = steps.at(-1).place.map((value, axis) => value - place[axis]);
      return { vertices, normals: normalsOf(vertices, this.faces), color, offset };
    });
  }

  /** How far the vertices are from where the last step has them, in millimetres on average. */
  distance(position) {
    let [sum, count] = [0, 0];
    for (const { steps } of this.people) {
      const { vertices, place } = mixed(steps, position);
      const final = steps.at(-1);
      const shift = final.place.map((value, axis) => value - place[axis]);
      for (let i = 0; i < vertices.length; i += 3) {
        sum += Math.hypot(...[0, 1, 2].map(
          (axis) => vertices[i + axis] + shift[axis] - final.vertices[i + axis]));
      }
      count += vertices.length / 3;
    }
    return count ? 1000 * sum / count : 0;
  }
}

function mixed(steps, position) {
  const lower = Math.min(Math.floor(position), steps.length - 1);
  const upper = Math.min(lower + 1, steps.length - 1);
  const share = Math.min(1, position - lower);
  const [a, b] = [steps[lower], steps[upper]];
  return {
    vertices: between(a.vertices, b.vertices, share),
    place: a.place.map((value, axis) => value + (b.place[axis] - value) * share),
  };
}
