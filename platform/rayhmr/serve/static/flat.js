// The painter's algorithm in 2D, far triangles first: slow, but it runs without WebGL.

import { FILL, KEY, LIGHT, multiply, unit } from "./geometry.js";

const dot = ([ax, ay, az], [bx, by, bz]) => ax * bx + ay * by + az * bz;

export class FlatPainter {
  constructor(canvas) {
    this.canvas = canvas;
    this.layer = document.createElement("canvas");
    this.meshes = [];
  }

  setFaces(faces) {
    this.faces = faces;
  }

  setMeshes(meshes) {
    this.meshes = meshes;
  }

  draw(view, projection, opacity) {
    const { canvas, layer } = this;
    fit(canvas);
    Object.assign(layer, { width: canvas.width, height: canvas.height });
    const triangles = this.meshes.flatMap((mesh) => this.#triangles(mesh, view, projection));
    triangles.sort((a, b) => b.depth - a.depth);
    const pen = layer.getContext("2d"); // as new, since its size was set
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
    // Strokes are wider than the body: what lies outside all triangles goes.
    const outline = new Path2D();
    for (const { corners: [first, ...others] } of triangles) {
      outline.moveTo(...first.slice(0, 2));
      for (const [x, y] of others) outline.lineTo(x, y);
      outline.closePath();
    }
    pen.globalCompositeOperation = "destination-in";
    pen.fill(outline);
    const target = canvas.getContext("2d");
    target.clearRect(0, 0, canvas.width, canvas.height);
    target.globalAlpha = opacity;
    target.drawImage(layer, 0, 0);
  }

  #triangles({ vertices, normals, color, offset = [0, 0, 0] }, view, projection) {
    const matrix = multiply(projection, view);
    const { width, height } = this.canvas;
    const [key, fill] = [unit(KEY), unit(FILL)];
    const row = (r, x, y, z) => matrix[r] * x + matrix[4 + r] * y + matrix[8 + r] * z
      + matrix[12 + r];
    const points = [];
    for (let i = 0; i < vertices.length; i += 3) {
      const place = [0, 1, 2].map((axis) => vertices[i + axis] + offset[axis]);
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
      const facing = [0, 1, 2].map((r) => view[r] * x + view[4 + r] * y + view[8 + r] * z);
      const light = LIGHT.ambient + LIGHT.key * Math.max(0, dot(key, facing))
        + LIGHT.fill * Math.max(0, dot(fill, facing));
      const style = `rgb(${color.map((value) => Math.min(255, Math.round(255 * value * light)))})`;
      triangles.push({ corners, style, depth: aw + bw + cw });
    }
    return triangles;
  }
}

/** As many pixels as the screen shows of a canvas, twice as fine at most. */
export function fit(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
}
