"""What the page says when something goes wrong, and how it asks for a key."""

from __future__ import annotations

import json

from playwright.sync_api import expect

WRONG = "a-wrong-key-of-22-letters-or-more"


def test_refusals_are_shown_in_the_services_words(visit, photo, tmp_path):
    opened = visit()
    opened.expected += ["415", "422", "413"]
    page, message = opened.page, opened.page.locator("#message")
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    (tmp_path / "words.jpg").write_text("no picture at all")
    (tmp_path / "large.jpg").write_bytes(photo.read_bytes() + bytes(2_000_000))
    for name, words in (("cut.jpg", "breaks off"), ("words.jpg", "send a JPEG, PNG or WebP"),
                        ("large.jpg", "at most 2,000,000 are accepted")):  # fmt: skip
        page.set_input_files("#file", tmp_path / name)
        expect(message).to_contain_text(words)
        expect(message).to_contain_text("Request ")
        expect(page.locator("#busy")).to_be_hidden()
        assert page.locator("#play").is_disabled()
    expect(page.locator("#hint-title")).to_be_hidden()  # large.jpg can be shown
    page.set_input_files("#file", tmp_path / "words.jpg")
    expect(page.locator("#hint-title")).to_have_text("This browser cannot show the file")
    page.click("#dismiss")
    expect(message).to_be_hidden()
    page.set_input_files("#file", tmp_path / "words.jpg")
    expect(message).to_be_visible()
    opened.open_photo(photo)
    expect(message).to_be_hidden()


def test_a_service_that_is_gone_is_called_that(visit, photo):
    opened = visit()
    opened.expected.append("ERR_FAILED")
    opened.page.route("**/v1/predict", lambda route: route.abort())
    opened.page.set_input_files("#file", photo)
    expect(opened.page.locator("#message")).to_contain_text("The service does not answer.")


def test_a_busy_service_is_given_the_time_it_asks_for(visit, photo):
    opened = visit()
    opened.expected.append("429")
    problem = {"detail": "8 requests are under way", "title": "Too Many Requests",
               "status": 429, "request_id": "abc"}  # fmt: skip
    refusals = [1, 1]

    def answer(route):
        if not refusals:
            route.continue_()
            return
        refusals.pop()
        route.fulfill(
            status=429, headers={"Retry-After": "1"}, body=json.dumps(problem),
            content_type="application/problem+json",
        )  # fmt: skip

    opened.page.route("**/v1/predict", answer)
    opened.page.set_input_files("#file", photo)
    expect(opened.page.locator("#notice")).to_have_text("The service is busy; trying again in 1 s.")
    expect(opened.page.locator("#step-name")).to_contain_text("result")
    expect(opened.page.locator("#notice")).to_be_hidden()
    expect(opened.page.locator("#message")).to_be_hidden()


def test_a_key_is_asked_for_checked_and_kept_out_of_everything(visit, guarded_url, photo):
    opened = visit(guarded_url)
    opened.expected.append("401")
    page = opened.page
    dialog = page.locator("#key-dialog")
    expect(dialog).to_be_visible()
    page.fill("#key", WRONG)
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).to_contain_text("does not know this key")
    key = "a-key-of-more-than-22-letters"
    page.fill("#key", key)
    page.keyboard.press("Enter")
    expect(page.locator("#model-facts")).to_contain_text("px")
    expect(dialog).to_be_hidden()
    opened.open_photo(photo)
    kept = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    )
    for place in (kept, page.url, *opened.requested, opened.text("#curl", False)):
        assert key not in place
    assert '-H "Authorization: Bearer $RAYHMR_API_KEY"' in opened.text("#curl", False)

    page.click("footer a >> text=API")
    expect(page.locator("#reference")).to_contain_text("/v1/predict")
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        page.click("footer a >> text=OpenAPI")
    assert json.loads(download.value.path().read_bytes())["openapi"].startswith("3.")


def test_the_model_of_several_is_the_visitors_choice(visit, guarded_url, photo):
    opened = visit(guarded_url)
    opened.expected.append("401")
    opened.page.fill("#key", "a-key-of-more-than-22-letters")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator("#models")).to_be_visible()
    opened.open_photo(photo)
    assert json.loads(opened.text("#answer", False))["model"]["name"] == "tiny"
    opened.page.select_option("#models", "second 1")
    expect(opened.page.locator("#answer")).to_contain_text('"name": "second"')
    assert "-F 'model=second@1'" in opened.text("#curl", False)
