"""The page in a real browser: mouse, touch, a phone's screen, and the same answers as PyTorch.

ONNXRUNTIME_WEB names the folder of the unpacked npm package, which answers for the address that the page loads.
"""

import base64
import io
import json
import mimetypes
import os
import re
import shutil
from math import cos, radians, sin
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, missing, optional
from PIL import Image

from experiment.weights import WEIGHTS, load_net
from ink import SMALL, center_digit
from predict import UNSURE
from study import export
from train import predict

DEMO = ROOT / "demo"
SITE = "https://owner.github.io/mnist/"
RUNTIME, VERSION = re.search(r"(https://cdn\S+?@([\d.]+)/)", (DEMO / "index.html").read_text()).groups()
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PHONE = {"viewport": {"width": 375, "height": 667}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
BOXES = """[...document.querySelectorAll("body *:not(#status, #verdict *)")].map((element) =>
    JSON.stringify([element.localName, element.id, element.getBoundingClientRect()]))"""


def arc(x, y, width, height, start, end):
    """Points of an ellipse about (x, y) from `start` to `end` degrees, clockwise from three o'clock."""
    angles = [radians(start + (end - start) * i / 24) for i in range(25)]
    return [(x + width / 2 * cos(angle), y + height / 2 * sin(angle)) for angle in angles]


DIGITS = [  # strokes in a square of side 1
    [arc(0.5, 0.5, 0.46, 0.7, -90, 270)],
    [[(0.54, 0.14), (0.47, 0.86)]],
    [[*arc(0.5, 0.33, 0.4, 0.36, 190, 400), (0.3, 0.84), (0.74, 0.84)]],
    [[*arc(0.46, 0.32, 0.38, 0.34, 200, 450), *arc(0.46, 0.67, 0.44, 0.36, -90, 150)]],
    [[(0.36, 0.15), (0.29, 0.54), (0.74, 0.54)], [(0.64, 0.22), (0.6, 0.88)]],
    [[(0.7, 0.15), (0.38, 0.15), (0.35, 0.46), *arc(0.47, 0.64, 0.42, 0.42, -115, 140)]],
    [[(0.62, 0.13), (0.43, 0.32), *arc(0.5, 0.67, 0.36, 0.36, 200, 560)]],
    [[(0.27, 0.17), (0.73, 0.17), (0.45, 0.87)]],
    [[*arc(0.5, 0.32, 0.32, 0.34, 90, 450), *arc(0.5, 0.67, 0.4, 0.36, -90, 270)]],
    [[*arc(0.5, 0.34, 0.36, 0.36, 0, -360), (0.66, 0.6), (0.6, 0.88)]],
]


@pytest.fixture(scope="module")
def open_page():
    """open_page(address): the page once it is ready; no other address than the two here can be reached."""
    api, package = optional("playwright.sync_api"), os.environ.get("ONNXRUNTIME_WEB")

    def open_page(address, changed=(), **options):
        def serve(route):
            url = route.request.url
            folder, name = (package, url.removeprefix(RUNTIME)) if url.startswith(RUNTIME) else (DEMO, Path(url).name)
            if options.get("offline") or not url.startswith((RUNTIME, SITE)):
                route.abort()
                return
            content = bytearray(Path(folder, name).read_bytes())
            if name.endswith(changed):
                content[-1] ^= 1
            headers = {"access-control-allow-origin": "*", "content-type": mimetypes.guess_type(name)[0]}
            route.fulfill(body=bytes(content), headers=headers)

        page = browser.new_context(**options).new_page()
        page.route(re.compile("^http"), serve)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text))
        page.goto(address)
        page.evaluate("answered")
        return page

    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=next(filter(None, map(shutil.which, BROWSERS)), None))
        except api.Error as error:
            missing(f"{str(error).splitlines()[0]}; install chromium")
        if not package:
            missing(f"ONNXRUNTIME_WEB is not set; npm pack onnxruntime-web@{VERSION}, unpack it, name its folder there")
        assert json.loads(Path(package, "package.json").read_text())["version"] == VERSION
        yield open_page
        browser.close()


@pytest.fixture(scope="module")
def opened(open_page):
    return open_page((DEMO / "index.html").as_uri())


@pytest.fixture
def page(opened):
    """The page opened as a file, with nothing drawn; at the end it has said nothing on the console."""
    opened.click("#clear")
    yield opened
    assert opened.problems == []


def on_board(page, strokes):
    """`strokes` in pixels of the page."""
    box = page.locator("#board").bounding_box()
    return [[(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke] for stroke in strokes]


def draw(page, strokes):
    for start, *rest in on_board(page, strokes):
        page.mouse.move(*start)
        page.mouse.down()
        for point in rest:
            page.mouse.move(*point)
        page.mouse.up()


def guess(page):
    page.evaluate("answered")
    return page.locator("#verdict b").text_content()


def probabilities(page):
    heights = page.evaluate("[...document.querySelectorAll('#bars i')].map((bar) => bar.parentNode.style.cssText)")
    return [float(height.removeprefix("--p:").rstrip(";")) for height in heights]


def ink_of(page, canvas):
    """The opacity of a canvas element's pixels, uint8 (H, W)."""
    png = page.evaluate(f"element('{canvas}').toDataURL().split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).getchannel("A"))


@pytest.mark.parametrize("digit", range(10))
def test_a_drawn_digit_is_read_and_centred_as_a_picture_is(page, digit):
    """As large as the board, and small in a corner; its probabilities are those of PyTorch."""
    best = load_net(WEIGHTS / "best.pth")
    for scale, shift in ((1, 0), (0.3, 0.66)):
        page.click("#clear")
        draw(page, [[(x * scale + shift, y * scale + shift) for x, y in stroke] for stroke in DIGITS[digit]])
        answer, view, expected = guess(page), ink_of(page, "view").copy(), center_digit(ink_of(page, "board") / 255)
        assert np.abs(expected.astype(int) - view).max() <= 2
        with torch.inference_mode():
            expected = (best(torch.from_numpy(view)[None, None]) / best.temperature).softmax(1)[0].tolist()
        assert probabilities(page) == pytest.approx(expected, abs=1e-4)
        assert str(np.argmax(expected)) == answer and (scale < 1 or answer == str(digit))
        assert scale < 1 or page.text_content("#verdict") == f"{digit}{max(probabilities(page)):.0%}"


def test_the_page_says_what_it_is_and_that_an_answer_below_the_threshold_of_predict_py_is_unsure(page):
    draw(page, [[(0.7, 0.15), (0.3, 0.15), (0.3, 0.85), (0.7, 0.85)], [(0.3, 0.5), (0.6, 0.5)]])  # an E
    assert guess(page) and UNSURE - 0.1 < max(probabilities(page)) < UNSURE
    assert page.text_content("#verdict span").endswith("%\nunsure")
    assert f"network of {page.evaluate('MODEL.parameters'):,} parameters" in page.text_content("header")
    assert page.get_attribute("#source", "href") == "../README.md"


@pytest.mark.parametrize("strokes, message", [([], "mouse"), ([0], "larger"), ([0.8], "larger"), ([1.2], "")])
def test_an_empty_board_or_too_little_ink_has_no_answer(page, strokes, message):
    """Strokes in lengths of the smallest digit that predict.py reads."""
    guess(page)
    empty = page.evaluate(BOXES)
    draw(page, [[(0.5, 0.5), (0.5, 0.5 + length * SMALL)] for length in strokes])
    assert (guess(page) == "") == (ink_of(page, "view").max() == 0) == bool(message)
    assert message in page.text_content("#status") and bool(message) == bool(page.text_content("#status"))
    assert page.evaluate(BOXES) == empty


def test_the_page_is_small_and_has_best_pth_and_what_it_is_most_wrong_on(mnist_test, monkeypatch):
    net, model = load_net(WEIGHTS / "best.pth"), json.loads(export.PAGE.read_text().partition("=")[2].rstrip(";\n"))
    session = optional("onnxruntime").InferenceSession(base64.b64decode(model["onnx"]))
    logits = torch.from_numpy(session.run(["logits"], {"images": mnist_test.images.numpy()})[0])
    torch.testing.assert_close(logits[:500], predict(net, mnist_test.images[:500], "fp32"), atol=1e-4, rtol=0)
    monkeypatch.setattr(export, "to_onnx", lambda net: b"")  # its bytes differ between versions of the exporter
    assert {**model, "onnx": ""} == export.for_page(net, mnist_test, logits)
    assert sum(file.stat().st_size for file in DEMO.iterdir()) < 250_000
    assert model["images"] - model["wrong"] == json.loads((WEIGHTS / "best.json").read_text())["correct"]


def test_its_mistakes_can_be_shown_and_drawing_goes_on_after_them(page):
    buttons = page.locator("#hardest button")
    assert buttons.count() == 5
    for i in range(5):
        buttons.nth(i).focus()
        page.keyboard.press("Enter")
        label, answer = re.fullmatch(r"label (\d)answer (\d)", buttons.nth(i).text_content()).groups()
        assert guess(page) == answer != label and f"labelled {label}" in page.text_content("#status")
        pixels = base64.b64decode(page.evaluate(f"MODEL.hardest[{i}].pixels"))
        assert ink_of(page, "view").tobytes() == pixels
    draw(page, DIGITS[1])
    assert guess(page) == "1" and "labelled" not in page.text_content("#status")


def test_a_phone(open_page):
    """Fingers draw and nothing moves; nothing is wider than the screen, and the answer stands below the drawing.

    The page links to the repository of its site.
    """
    page = open_page(f"{SITE}index.html", **PHONE)
    empty = page.evaluate(BOXES)
    [stroke], session = on_board(page, DIGITS[7]), page.context.new_cdp_session(page)
    for kind, (x, y) in zip(["touchStart"] + ["touchMove"] * len(stroke), stroke):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert guess(page) == "7" and page.evaluate(BOXES) == empty
    assert page.evaluate("[scrollX, scrollY, document.documentElement.scrollWidth]") == [0, 0, 375]
    bars = page.locator("#bars").bounding_box()
    assert bars["y"] + bars["height"] <= PHONE["viewport"]["height"]
    assert page.get_attribute("#source", "href") == "https://github.com/owner/mnist"
    assert page.problems == []


@pytest.mark.parametrize(
    "trouble", [{"offline": True}, {"changed": "ort.wasm.bundle.min.mjs"}, {"changed": "ort-wasm-simd-threaded.wasm"}]
)
def test_a_runtime_that_does_not_load_or_is_not_the_pinned_one_does_not_run(open_page, trouble):
    page = open_page((DEMO / "index.html").as_uri(), **trouble)
    draw(page, DIGITS[5])
    assert guess(page) == "" and ink_of(page, "view").max() > 200
    assert "needs the internet: ONNX Runtime did not load" in page.text_content("#status")
    assert page.text_content("#verdict") == ""


def test_picture_for_the_readme(open_page, request, tmp_path):
    file = request.config.getoption("--screenshot") or tmp_path / "page.png"
    page = open_page((DEMO / "index.html").as_uri(), viewport={"width": 800, "height": 600})
    draw(page, DIGITS[3])
    guess(page)
    page.locator("main").screenshot(path=file, animations="disabled")
    assert 20_000 < Path(file).stat().st_size < 100_000
