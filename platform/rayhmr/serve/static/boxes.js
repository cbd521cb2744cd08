// Boxes around people, drawn on the photo: by dragging, touching, or with the keyboard.

const SMALLEST_PX = 16;
const HANDLE_PX = 6;
const GRIP_PX = { mouse: 9, pen: 12, touch: 18 }; // how near to a corner takes hold of it
const SVG = "http://www.w3.org/2000/svg";
const ARROWS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
};
const CORNERS = [[0, 1], [2, 1], [0, 3], [2, 3]]; // which of x1, y1, x2, y2 each corner moves

export class Boxes {
  /**
   * svg: lies over the photo and takes its pixels as units. colorOf(number): a CSS colour.
   * onChange(soon): the boxes changed; soon: more changes may follow at once, as with keys.
   */
  constructor(svg, { colorOf, onChange }) {
    Object.assign(this, { svg, colorOf, onChange });
    this.list = []; // [x1, y1, x2, y2] in pixels of the upright photo
    this.drag = null;
    this.editing = false;
    [this.width, this.height] = [1, 1];
    svg.addEventListener("pointerdown", (event) => this.#down(event));
    svg.addEventListener("pointermove", (event) => this.#move(event));
    svg.addEventListener("pointerup", (event) => this.#up(event));
    svg.addEventListener("pointercancel", () => this.#cancel());
    svg.addEventListener("keydown", (event) => this.#press(event));
  }

  /** The photo's pixels. */
  resize(width, height) {
    [this.width, this.height] = [width, height];
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.draw();
  }

  edit(on) {
    this.editing = on;
    this.draw();
  }

  clear() {
    this.list = [];
    this.drag = null;
    this.draw();
  }

  /** One more in the middle, for those who do not drag; it gets the focus. */
  add() {
    const [w, h] = [this.width, this.height];
    const shift = 0.05 * (this.list.length % 5);
    this.list.push(this.#inside([w * (0.25 + shift), h * (0.1 + shift), w * (0.65 + shift),
      h * (0.75 + shift)]));
    this.draw();
    this.svg.children[this.list.length - 1].focus();
    this.onChange(true);
  }

  /** The box with the focus, or the last one. */
  remove() {
    if (!this.list.length) return;
    const focused = [...this.svg.children].indexOf(document.activeElement);
    const number = focused >= 0 ? focused : this.list.length - 1;
    this.list.splice(number, 1);
    this.draw();
    if (focused >= 0) this.svg.children[Math.min(number, this.list.length - 1)]?.focus();
    this.onChange(false);
  }

  draw() {
    const { svg } = this;
    svg.classList.toggle("editing", this.editing);
    svg.setAttribute("aria-hidden", !this.editing);
    const shown = this.drag?.fresh ? [...this.list, this.drag.box] : this.list;
    while (svg.children.length < shown.length) svg.append(newBox());
    while (svg.children.length > shown.length) svg.lastChild.remove();
    // Sizes in the photo's pixels of what is to have the same size on every screen.
    const unit = this.width / (svg.getBoundingClientRect().width || this.width);
    shown.forEach((box, number) => this.#place(svg.children[number], box, number, unit));
  }

  #place(group, box, number, unit) {
    const [x1, y1, x2, y2] = box;
    group.style.color = this.colorOf(number);
    group.tabIndex = this.editing ? 0 : -1;
    group.setAttribute("aria-label", `Person ${number + 1}, from ${x1}, ${y1} to ${x2}, ${y2}. `
      + "Arrow keys move the box, with Shift they change its size, Delete removes it.");
    const [rectangle, ...handles] = group.children;
    const sides = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    for (const [name, value] of Object.entries(sides)) rectangle.setAttribute(name, value);
    handles.forEach((handle, corner) => {
      const [x, y] = CORNERS[corner];
      handle.setAttribute("cx", box[x]);
      handle.setAttribute("cy", box[y]);
      handle.setAttribute("r", HANDLE_PX * unit);
    });
  }

  // --- pointers ---------------------------------------------------------------------------------

  #down(event) {
    if (!this.editing || this.drag || event.button !== 0) return;
    event.preventDefault();
    this.svg.setPointerCapture(event.pointerId);
    const from = this.#pixel(event);
    const { number, sides, fresh } = this.#hold(event, from);
    const box = fresh ? [...from, ...from] : this.list[number];
    this.svg.children[number]?.focus();
    this.drag = { from, number, sides, fresh, box: [...box], before: [...box], moved: false };
  }

  /** What a pointer takes hold of: the nearest corner, a whole box (no sides), or a new box. */
  #hold(event, [x, y]) {
    const unit = this.width / this.svg.getBoundingClientRect().width;
    const reach = (GRIP_PX[event.pointerType] ?? GRIP_PX.mouse) * unit;
    const corners = this.list.flatMap((box, number) => CORNERS.map((sides) => ({
      number, sides, distance: Math.hypot(box[sides[0]] - x, box[sides[1]] - y),
    })));
    corners.sort((a, b) => a.distance - b.distance);
    if (corners.length && corners[0].distance <= reach) return { ...corners[0], fresh: false };
    const number = [...this.svg.children].indexOf(event.target.closest("g"));
    if (number >= 0) return { number, sides: null, fresh: false };
    return { number: this.list.length, sides: [2, 3], fresh: true };
  }

  #move(event) {
    const { drag } = this;
    if (!drag) return;
    const [x, y] = this.#pixel(event);
    const [dx, dy] = [x - drag.from[0], y - drag.from[1]];
    drag.moved ||= Math.hypot(dx, dy) > 0;
    const moved = drag.before.map((value, side) => value + (side % 2 ? dy : dx));
    drag.box = drag.sides // of a whole box all move
      ? ordered(drag.before.map((value, side) => (drag.sides.includes(side) ? moved[side] : value)))
      : this.#shifted(drag.before, dx, dy);
    drag.box = this.#inside(drag.box);
    if (!drag.fresh) this.list[drag.number] = drag.box;
    this.draw();
  }

  #up(event) {
    const { drag } = this;
    if (!drag) return;
    this.#move(event);
    this.drag = null;
    const isLarge = Math.min(drag.box[2] - drag.box[0], drag.box[3] - drag.box[1]) >= SMALLEST_PX;
    if (drag.fresh && isLarge) this.list.push(drag.box);
    if (!drag.fresh && !isLarge) this.list[drag.number] = drag.before;
    this.draw();
    if (drag.moved && isLarge) this.onChange(false);
  }

  #cancel() {
    if (this.drag && !this.drag.fresh) this.list[this.drag.number] = this.drag.before;
    this.drag = null;
    this.draw();
  }

  #pixel(event) {
    const { left, top, width, height } = this.svg.getBoundingClientRect();
    return [(event.clientX - left) / width * this.width,
      (event.clientY - top) / height * this.height];
  }

  // --- keys -------------------------------------------------------------------------------------

  #press(event) {
    const number = [...this.svg.children].indexOf(event.target);
    if (!this.editing || number < 0) return;
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      this.remove();
      return;
    }
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    const stride = Math.max(1, Math.round(0.01 * Math.max(this.width, this.height)));
    const [dx, dy] = ARROWS[event.key].map((direction) => direction * stride);
    const [x1, y1, x2, y2] = this.list[number];
    const box = event.shiftKey
      ? [x1, y1, Math.max(x1 + SMALLEST_PX, x2 + dx), Math.max(y1 + SMALLEST_PX, y2 + dy)]
      : this.#shifted(this.list[number], dx, dy);
    this.list[number] = this.#inside(box);
    this.draw();
    this.onChange(true);
  }

  // --- rules ------------------------------------------------------------------------------------

  /** Moved as far as the photo reaches, at the same size. */
  #shifted([x1, y1, x2, y2], dx, dy) {
    const x = Math.max(-x1, Math.min(this.width - x2, dx));
    const y = Math.max(-y1, Math.min(this.height - y2, dy));
    return [x1 + x, y1 + y, x2 + x, y2 + y];
  }

  #inside(box) {
    return box.map((value, side) => (
      Math.round(Math.max(0, Math.min(side % 2 ? this.height : this.width, value)))));
  }
}

function ordered([x1, y1, x2, y2]) {
  return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
}

function newBox() {
  const group = document.createElementNS(SVG, "g");
  group.setAttribute("role", "group");
  group.append(document.createElementNS(SVG, "rect"));
  for (const _ of CORNERS) group.append(document.createElementNS(SVG, "circle"));
  return group;
}
