// Matrices (4 x 4, column after column, as WebGL takes them) and meshes.
// Meshes arrive in camera axes: x right, y down, z forward, metres. Eyes look along -z, y up.

/** Where light comes from, before the eye, and how strong it is. */
export const KEY = [0.3, 0.6, 1];
export const FILL = [-0.6, 0.2, 0.4];
export const LIGHT = { ambient: 0.36, key: 0.5, fill: 0.18 };

/** Camera axes to an eye in the camera's place. */
export const CAMERA_VIEW = new Float32Array([1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1]);

/** The product a b. */
export function multiply(a, b) {
  const product = new Float32Array(16);
  for (let column = 0; column < 4; column++) {
    for (let row = 0; row < 4; row++) {
      let sum = 0;
      for (let k = 0; k < 4; k++) sum += a[4 * k + row] * b[4 * column + k];
      product[4 * column + row] = sum;
    }
  }
  return product;
}

/**
 * Projection of a pinhole camera: a point lands on the same spot of the canvas as on the photo.
 * fx, fy, cx, cy, width and height are in pixels of the photo, never of the canvas.
 */
export function pinhole({ fx, fy, cx, cy }, width, height, near, far) {
  const depth = far - near;
  return new Float32Array([
    2 * fx / width, 0, 0, 0,
    0, 2 * fy / height, 0, 0,
    1 - 2 * cx / width, 2 * cy / height - 1, -(far + near) / depth, -1,
    0, 0, -2 * far * near / depth, 0,
  ]);
}

/** An eye at `distance` from `target` (camera axes), turned by azimuth and elevation (radians). */
export function orbitView(target, azimuth, elevation, distance) {
  const [ca, sa] = [Math.cos(azimuth), Math.sin(azimuth)];
  const [ce, se] = [Math.cos(elevation), Math.sin(elevation)];
  const rotation = new Float32Array([
    ca, -se * sa, ce * sa, 0,
    0, ce, se, 0,
    -sa, -se * ca, ce * ca, 0,
    0, 0, -distance, 1,
  ]);
  const [x, y, z] = target;
  const centred = CAMERA_VIEW.slice();
  centred.set([-x, y, z], 12);
  return multiply(rotation, centred);
}

/** A direction at length 1. */
export function unit(vector) {
  const length = Math.hypot(...vector);
  return vector.map((value) => value / length);
}

/** The nearest and farthest z of all meshes with some air; planes that fit any focal length. */
export function depthRange(meshes) {
  let [near, far] = [Infinity, 0];
  for (const { vertices } of meshes) {
    for (let i = 2; i < vertices.length; i += 3) {
      near = Math.min(near, vertices[i]);
      far = Math.max(far, vertices[i]);
    }
  }
  const air = 0.1 + 0.05 * Math.max(0, far - near);
  const from = Math.max(0.02, near - air);
  return [from, Math.max(from * 1.01, far + air)];
}

/** The middle of the box around all meshes, and its diagonal in metres. */
export function bounds(meshes) {
  const low = [Infinity, Infinity, Infinity];
  const high = [-Infinity, -Infinity, -Infinity];
  for (const { vertices, offset = [0, 0, 0] } of meshes) {
    for (let i = 0; i < vertices.length; i++) {
      const value = vertices[i] + offset[i % 3];
      low[i % 3] = Math.min(low[i % 3], value);
      high[i % 3] = Math.max(high[i % 3], value);
    }
  }
  const middle = low.map((value, axis) => (value + high[axis]) / 2);
  return { middle, diagonal: Math.hypot(...low.map((value, axis) => high[axis] - value)) };
}

/** Unit normals of the vertices, pointing out of the body. */
export function normalsOf(vertices, faces) {
  const normals = new Float32Array(vertices.length);
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
    const ux = vertices[b] - vertices[a];
    const uy = vertices[b + 1] - vertices[a + 1];
    const uz = vertices[b + 2] - vertices[a + 2];
    const vx = vertices[c] - vertices[a];
    const vy = vertices[c + 1] - vertices[a + 1];
    const vz = vertices[c + 2] - vertices[a + 2];
    const [nx, ny, nz] = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
    for (const corner of [a, b, c]) {
      normals[corner] += nx;
      normals[corner + 1] += ny;
      normals[corner + 2] += nz;
    }
  }
  for (let i = 0; i < normals.length; i += 3) {
    const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
    normals[i] /= length;
    normals[i + 1] /= length;
    normals[i + 2] /= length;
  }
  return normals;
}

/** The array that the service encodes as {dtype: "f4", encoding: "base64", data}. */
export function decoded({ data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

/** The vertices between steps of the refinement: a + (b - a) share. */
export function between(a, b, share) {
  if (share === 0) return a;
  return a.map((value, i) => value + (b[i] - value) * share);
}
