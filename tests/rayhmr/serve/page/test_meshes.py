"""What the page draws is what the service computed."""

from __future__ import annotations

import io
import json

import httpx
import numpy as np
import pytest
import trimesh
from PIL import Image
from playwright.sync_api import expect

from hmr.crops import decode_image
from hmr.render import layer

ALIKE = 0.97
"""Least intersection over union of an outline on the page and the service's."""
NO_WEBGL = """
const real = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
  return kind.startsWith("webgl") ? null : real.call(this, kind, ...more);
};
"""
BOXES = [[10, 30, 230, 270], [250, 30, 470, 270]]


def painted(canvas):
    """Where a canvas is more than half as opaque as it is anywhere."""
    return canvas[..., 3] > canvas[..., 3].max() / 2


def set_boxes(page, boxes):
    """Boxes drawn with the mouse, in pixels of the photo."""
    page.click("#mark")
    frame = page.locator("#boxes").bounding_box()
    scale = frame["width"] / 480
    for x1, y1, x2, y2 in boxes:
        page.mouse.move(frame["x"] + x1 * scale, frame["y"] + y1 * scale)
        page.mouse.down()
        page.mouse.move(frame["x"] + x2 * scale, frame["y"] + y2 * scale, steps=3)
        with page.expect_response("**/v1/predict"):
            page.mouse.up()
    page.click("#mark")


@pytest.mark.parametrize("script", ["", NO_WEBGL], ids=["webgl", "without webgl"])
def test_the_overlay_has_the_outline_that_the_service_computes(
    visit, photo, ask, silhouette, iou, script
):
    opened = visit(script=script)
    opened.open_photo(photo)
    canvas, answer = opened.canvas("overlay"), ask(photo)
    meshes = [person["mesh"] for person in answer["people"]]
    assert iou(painted(canvas), silhouette(meshes, answer, canvas)) > ALIKE


def test_the_overlay_is_the_services_own_picture(visit, url, photo, iou):
    opened = visit(device_scale_factor=2)
    opened.open_photo(photo)
    files = {"image": photo.read_bytes()}
    png = httpx.post(f"{url}/v1/predict", files=files, headers={"accept": "image/png"}).content
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    changed = (abs(pixels - decode_image(photo.read_bytes())) > 1).any(-1)
    alpha = Image.fromarray(opened.canvas("overlay")[..., 3])
    shown = np.asarray(alpha.resize((480, 300), Image.Resampling.BOX))
    # The service blends edges too: every pixel that is covered at all differs from the photo.
    assert iou(shown > 12, changed) > ALIKE


def test_an_overlay_of_two_people_in_boxes(visit, photo, ask, silhouette, iou):
    opened = visit()
    opened.open_photo(photo)
    set_boxes(opened.page, BOXES)
    expect(opened.page.locator("#people button")).to_have_count(2)
    boxes = [person["box_xyxy"] for person in json.loads(opened.text("#answer", False))["people"]]
    np.testing.assert_allclose(boxes, BOXES, atol=2)
    answer = ask(photo, boxes)
    canvas = opened.canvas("overlay")
    meshes = [person["mesh"] for person in answer["people"]]
    assert iou(painted(canvas), silhouette(meshes, answer, canvas)) > ALIKE
    opened.page.locator("#people button").first.click()
    canvas = opened.canvas("overlay")
    assert iou(painted(canvas), silhouette(meshes[1:], answer, canvas)) > ALIKE


def test_a_photo_on_its_side_is_shown_upright(visit, photo, ask, silhouette, iou, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.open(photo).rotate(90, expand=True).save(turned, quality=97, exif=exif)
    opened = visit()
    opened.open_photo(turned)
    canvas, answer = opened.canvas("overlay"), ask(turned)
    assert answer["image"] == {"width": 480, "height": 300, "exif_rotated": True}
    assert canvas.shape[1] > canvas.shape[0]
    assert iou(painted(canvas), silhouette([answer["people"][0]["mesh"]], answer, canvas)) > ALIKE


def test_every_step_of_the_refinement_is_the_services(visit, photo, ask, silhouette, iou):
    opened = visit()
    opened.open_photo(photo)
    answer = ask(photo)
    (person,) = answer["people"]
    slider = opened.page.locator("#step")
    slider.focus()
    slider.press("Home")
    masks = []
    for number, mesh in enumerate(person["meshes"]):
        canvas = opened.canvas("overlay")
        masks.append(painted(canvas))
        assert iou(masks[-1], silhouette([mesh], answer, canvas)) > ALIKE
        place = np.array(person["iterations"][number]["cam_t"]) - person["cam_t"]
        away = 1000 * np.linalg.norm(mesh - place - person["mesh"], axis=1).mean()
        last = len(person["meshes"]) - 1
        name = "start" if number == 0 else f"step {number} of {last}"
        figure = "result" if number == last else f"{away:.0f} mm to go"
        assert opened.text("#step-name") == f"{name} · {figure}"
        slider.press("ArrowRight")
    assert iou(masks[0], masks[-1]) < ALIKE, "the body moved"
    slider.press("ArrowLeft")
    assert opened.text("#step-name").startswith("step 2 of 3")


RECORD = """
window.seen = [];
const look = () => {
  const [slider, button] = ["step", "play"].map((id) => document.getElementById(id));
  if (slider && !slider.disabled) window.seen.push([Number(slider.value), button.textContent]);
  requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""


def test_playing_goes_through_all_steps_in_order(visit, photo):
    opened = visit(reduced_motion="no-preference", script=RECORD)
    page = opened.page
    opened.open_photo(photo)  # plays by itself
    expect(page.locator("#play")).to_have_text("▶ Play")
    seen = page.evaluate("window.seen")
    positions = [position for position, name in seen if name == "❚❚ Pause"]
    # A busy machine shows few of the frames, whatever there are come in order.
    assert positions == sorted(positions)
    assert all(0 <= position <= 3 for position in positions)
    assert page.input_value("#step") == "3"
    before = opened.canvas("orbit")
    expect(page.locator("#turn")).to_have_attribute("aria-pressed", "true")  # turns by itself
    for _ in range(100):
        page.wait_for_timeout(100)
        if (opened.canvas("orbit") != before).any():
            break
    else:
        pytest.fail("the body does not turn")
    # Started, moved and stopped before a frame can pass: it stays where it was put.
    page.evaluate("""() => {
      const [slider, button] = ["step", "play"].map((id) => document.getElementById(id));
      button.click();
      slider.value = 1.5;
      slider.dispatchEvent(new Event("input"));
    }""")
    assert opened.text("#play") == "▶ Play"
    page.wait_for_timeout(200)
    assert page.input_value("#step") == "1.5"


def test_opacity_is_the_sliders_and_the_overlay_can_be_hidden(visit, photo):
    opened = visit()
    opened.open_photo(photo)
    assert opened.canvas("overlay")[..., 3].max() == round(0.85 * 255)
    opened.page.locator("#opacity").fill("0.4")
    assert abs(int(opened.canvas("overlay")[..., 3].max()) - 0.4 * 255) <= 1
    opened.page.click("#show")
    assert opened.canvas("overlay")[..., 3].max() == 0
    opened.page.click("#show")
    assert opened.canvas("overlay")[..., 3].max() > 0


def orbit_silhouette(mesh, faces, azimuth, elevation, canvas):
    """The body from an eye that was turned around it, by the service's renderer."""
    height, width = canvas.shape[:2]
    low, high = mesh.min(0), mesh.max(0)
    points = (mesh - (low + high) / 2) * [1, -1, -1]  # y up, z towards the eye
    (ca, sa), (ce, se) = ((np.cos(a), np.sin(a)) for a in (azimuth, elevation))
    about_y = np.array([[ca, 0, -sa], [0, 1, 0], [sa, 0, ca]])
    about_x = np.array([[1, 0, 0], [0, ce, -se], [0, se, ce]])
    seen = points @ (about_x @ about_y).T * [1, -1, -1]
    distance = 1.75 * np.linalg.norm(high - low) * max(1, height / width)
    focal = height / 2 / np.tan(0.3)
    center = (width / 2, height / 2)
    _, alpha = layer(
        [seen + np.array([0, 0, distance])], faces, (width, height), (focal, focal), center
    )
    return alpha > 0.5


def test_front_side_back_and_top_are_where_they_say(visit, photo, ask, iou, predictor):
    opened = visit()
    opened.open_photo(photo)
    (person,) = ask(photo)["people"]
    angles = {"front": (0, 0), "side": (np.pi / 2, 0), "back": (np.pi, 0), "top": (0, 1.5)}
    for view, (azimuth, elevation) in angles.items():
        opened.page.click(f"[data-view={view}]")
        canvas = opened.canvas("orbit")
        expected = orbit_silhouette(
            person["mesh"], predictor.body.arrays.faces, azimuth, elevation, canvas
        )
        assert iou(painted(canvas), expected) > ALIKE, view
    opened.page.click("[data-view=front]")
    box = opened.page.locator("#orbit").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.page.mouse.move(x, y)
    opened.page.mouse.down()
    opened.page.mouse.move(x + 100, y - 40, steps=5)  # a hundredth of a radian a pixel
    opened.page.mouse.up()
    canvas = opened.canvas("orbit")
    expected = orbit_silhouette(person["mesh"], predictor.body.arrays.faces, -1.0, -0.4, canvas)
    assert iou(painted(canvas), expected) > ALIKE
    opened.page.mouse.wheel(0, -300)
    expect(opened.page.locator("#orbit")).to_be_visible()
    opened.page.wait_for_timeout(100)
    assert painted(opened.canvas("orbit")).sum() > 1.3 * painted(canvas).sum()


def test_downloads_hold_the_same_mesh(visit, photo, ask):
    opened = visit()
    opened.open_photo(photo)
    (person,) = ask(photo)["people"]
    files = {}
    for suffix in ("glb", "obj", "npz", "json", "png"):
        with opened.page.expect_download() as download:
            opened.page.click(f"[data-suffix={suffix}]")
        assert download.value.suggested_filename == f"two people-body.{suffix}"
        files[suffix] = download.value.path().read_bytes()
    upright = person["mesh"] * [1, -1, -1]
    glb = trimesh.load(io.BytesIO(files["glb"]), file_type="glb", process=False, force="mesh")
    np.testing.assert_allclose(glb.vertices, upright, atol=1e-5)
    obj = trimesh.load(io.BytesIO(files["obj"]), file_type="obj", process=False, force="mesh")
    np.testing.assert_allclose(obj.vertices, upright, atol=1e-5)
    np.testing.assert_array_equal(obj.faces, glb.faces)
    npz = np.load(io.BytesIO(files["npz"]))
    np.testing.assert_allclose(npz["vertices"][0], person["mesh"], atol=1e-5)
    (saved,) = json.loads(files["json"])["people"]
    assert saved["smpl"] == person["smpl"]
    assert Image.open(io.BytesIO(files["png"])).size == (480, 300)
