"""What a visitor does with mouse, keys and fingers, and what the page says and loads."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import expect

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SHIFTS = """
window.shifts = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shifts += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


def answered_boxes(response):
    """The boxes that the service was sent; none when it took the whole photo."""
    people = response.json()["people"]
    if people[0]["box_source"] == "full_image":
        return None
    return [person["box_xyxy"] for person in people]


def drag(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


def place_of(page):
    """Function from a pixel of the 480 x 300 photo to the window's."""
    frame = page.locator("#boxes").bounding_box()
    return lambda x, y: (
        frame["x"] + x * frame["width"] / 480,
        frame["y"] + y * frame["height"] / 300,
    )


def test_boxes_are_drawn_moved_resized_and_removed_by_mouse(visit, photo):
    opened = visit()
    opened.open_photo(photo)
    page = opened.page
    page.click("#mark")
    at = place_of(page)
    asked = []
    steps = [
        (lambda: drag(page, at(100, 40), at(20, 280)), [[20, 40, 100, 280]]),  # from any corner
        (lambda: drag(page, at(300, 50), at(420, 250)), [[20, 40, 100, 280], [300, 50, 420, 250]]),
        (lambda: drag(page, at(60, 150), at(80, 160)), [[40, 50, 120, 290], [300, 50, 420, 250]]),
        (lambda: drag(page, at(420, 250), at(440, 270)), [[40, 50, 120, 290], [300, 50, 440, 270]]),
        (lambda: drag(page, at(380, 100), at(480, 0)), [[40, 50, 120, 290], [340, 0, 480, 220]]),
        (lambda: page.click("#remove-box"), [[40, 50, 120, 290]]),
        (lambda: page.click("#whole"), None),
    ]
    for act, expected in steps:
        with page.expect_response("**/v1/predict") as response:
            act()
        asked.append(answered_boxes(response.value))
        if expected is None:
            assert asked[-1] is None
        else:
            np.testing.assert_allclose(asked[-1], expected, atol=2)
    drag(page, at(100, 40), at(200, 200))
    expect(page.locator("#boxes g")).to_have_count(0)  # nobody is marking any more


def test_everything_works_from_the_keyboard(visit, photo):
    opened = visit()
    page = opened.page
    for _ in range(12):  # to the examples, and to the third of them
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "examples":
            break
    page.keyboard.press("Enter")
    third = page.locator("#gallery-list button").nth(2)
    expect(third).to_be_enabled()
    third.focus()
    with page.expect_response("**/v1/predict"):
        page.keyboard.press("Enter")
    expect(page.locator("#gallery")).to_be_hidden()
    expect(page.locator("#step-name")).to_contain_text("result")

    page.locator("#mark").press("Enter")
    with page.expect_response("**/v1/predict") as response:
        page.locator("#add-box").press("Enter")
    (first,) = answered_boxes(response.value)
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowUp"):  # the new box has the focus
        page.keyboard.press(key)
    stride = 5  # a hundredth of 480 pixels
    moved = [int(value) for value in np.add(first, [stride, stride, stride, 0])]
    expect(page.locator("#answer")).to_contain_text(f'"box_xyxy": {moved}')
    with page.expect_response("**/v1/predict") as response:
        page.keyboard.press("Delete")
    assert answered_boxes(response.value) is None

    page.locator("#add-box").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#mark")).to_have_attribute("aria-pressed", "false")
    page.locator("#orbit").focus()
    outline = page.locator("#orbit").evaluate("(orbit) => getComputedStyle(orbit).outlineStyle")
    assert outline != "none", "the focus is seen"
    expect(page.locator("#busy")).to_be_hidden()
    for key in ("ArrowLeft", "ArrowUp", "+"):
        before = opened.canvas("orbit")
        page.keyboard.press(key)
        assert (opened.canvas("orbit") != before).any(), key
    areas = []
    for key in ("Home", "+", "-", "-"):
        page.keyboard.press(key)
        areas.append((opened.canvas("orbit")[..., 3] > 127).sum())
    home, larger, same, smaller = areas
    assert larger > home > smaller
    assert abs(int(same) - int(home)) <= 2


def touch(session, kind, *points):
    session.send(
        "Input.dispatchTouchEvent",
        {
            "type": kind,
            "touchPoints": [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)],
        },
    )


def test_fingers_turn_pinch_and_draw_on_a_phone(visit, photo):
    opened = visit(**PHONE)
    opened.open_photo(photo)
    page = opened.page
    session = page.context.new_cdp_session(page)
    page.locator("#orbit").scroll_into_view_if_needed()
    box = page.locator("#orbit").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    front = opened.canvas("orbit")
    touch(session, "touchStart", (x - 60, y))
    for step in range(1, 7):
        touch(session, "touchMove", (x - 60 + 20 * step, y))
    touch(session, "touchEnd")
    turned = opened.canvas("orbit")
    assert ((turned != front).any(-1)).mean() > 0.02

    touch(session, "touchStart", (x - 30, y), (x + 30, y))
    for step in range(1, 5):
        touch(session, "touchMove", (x - 30 - 12 * step, y), (x + 30 + 12 * step, y))
    touch(session, "touchEnd")
    covered = [(canvas[..., 3] > 127).mean() for canvas in (turned, opened.canvas("orbit"))]
    assert covered[1] > 1.5 * covered[0], "fingers apart: nearer"

    page.tap("#mark")
    page.locator("#boxes").scroll_into_view_if_needed()
    at = place_of(page)
    scroll = page.evaluate("scrollY")
    with page.expect_response("**/v1/predict") as response:
        touch(session, "touchStart", at(30, 40))
        touch(session, "touchMove", at(120, 150))
        touch(session, "touchMove", at(230, 270))
        touch(session, "touchEnd")
    np.testing.assert_allclose(answered_boxes(response.value), [[30, 40, 230, 270]], atol=3)
    assert page.evaluate("scrollY") == scroll, "drawing does not scroll the page"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_moves_and_nothing_is_cut_off(visit, photo, width):
    phone = PHONE if width < 800 else {}
    opened = visit(script=SHIFTS, **(phone | {"viewport": {"width": width, "height": 800}}))
    page = opened.page
    opened.open_photo(photo)
    page.wait_for_timeout(100)
    assert page.evaluate("window.shifts") < 0.02
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut_off = page.evaluate("""() => [...document.querySelectorAll("main button")]
      .filter((button) => button.offsetParent && (button.scrollWidth > button.clientWidth + 1
        || button.getBoundingClientRect().right > innerWidth))
      .map((button) => button.id || button.textContent)""")
    assert cut_off == []


def test_the_page_is_small_and_asks_nobody_else(visit):
    """Without the faces, which are fetched once and then kept."""
    opened = visit()
    sizes = {}
    for address in dict.fromkeys(opened.requested):
        if address.startswith("blob:"):
            continue
        answer = opened.page.request.get(address)
        assert answer.ok, address
        assert address.startswith(opened.base + "/")
        sizes[address] = len(answer.body())
    faces = {address for address in sizes if "/faces" in address}
    assert len(faces) == 1
    without = sum(size for address, size in sizes.items() if address not in faces)
    # Names of the headers and of the connection cost about 300 bytes a file.
    assert without + 300 * len(sizes) < 100_000
    assert any(address.endswith("/static/boxes.js") for address in sizes)


def test_every_control_has_a_name_and_enough_contrast(visit, photo):
    opened = visit()
    opened.open_photo(photo)
    page = opened.page
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
    wanted = {"button", "slider", "textbox", "combobox", "application", "link", "image"}
    nameless = [
        node for node in tree["nodes"]
        if node.get("role", {}).get("value") in wanted
        and not node.get("ignored") and not node.get("name", {}).get("value")
    ]  # fmt: skip
    assert nameless == []
    assert page.locator("#step").get_attribute("aria-valuetext") == "step 3 of 3 · result"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for front, back in (("text", "card"), ("quiet", "card"), ("quiet", "ground"),
                            ("quiet", "stage"), ("accent", "card"), ("accent", "ground"),
                            ("on-accent", "accent"), ("bad", "bad-ground")):  # fmt: skip
            assert contrast(page, front, back) >= 4.5, (scheme, front, back)


def contrast(page, *names):
    """WCAG's contrast ratio of two of the page's colours."""
    levels = []
    for name in names:
        text = page.evaluate(
            """(name) => {
              const probe = document.body.appendChild(document.createElement("i"));
              probe.style.color = `var(--${name})`;
              const { color } = getComputedStyle(probe);
              probe.remove();
              return color;
            }""", name)  # fmt: skip
        channels = np.array([int(value) for value in re.findall(r"\d+", text)[:3]]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        levels.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(levels) + 0.05) / (min(levels) + 0.05)
