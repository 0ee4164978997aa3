"""The page in a real browser, Chromium; skipped where there is none."""

import os
import shutil
import socket
import threading
from contextlib import closing

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client, handle_file
from PIL import Image, ImageOps
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.app.page import build_page, launch
from diffusion_classifier.cli import app
from diffusion_classifier.data.fashion import load_sample

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
SECONDS = 60_000  # milliseconds that a slow machine may take for anything


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    command = ["evaluate", "fashion-sample", "--limit", "40", "--strategy", "fixed:4", "--store-errors", "--dtype"]
    result = CliRunner().invoke(app, [*command, "float32", "--batch-size", "32", "--out", str(out)])
    assert result.exit_code == 0
    return out


@pytest.fixture(scope="module")
def address(run_folder):
    page = build_page(["fashion", "scenes"], run_folders=[run_folder], device="cpu", dtype="float32", batch_size=16)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch(page, port=port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def new_page(browser, address):
    """Opens the page; whatever asks another machine for anything, or complains, is told in `.outside` and `.errors`."""
    contexts = []

    def open_page(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.outside, page.errors = [], []
        ours = (address, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(ours) else page.outside.append(r.url))
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.goto(address)
        page.get_by_role("button", name="Classify", exact=True).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def shirt(tmp_path):
    sample = load_sample(7)[6]
    sample.image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png", sample


def upload(page, file):
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Click to Upload").locator("visible=true").first.click()
    chooser.value.set_files(str(file))


def shown(page):
    page.locator(".dc-upload img:visible").first.wait_for()


def classify(page, quickly=True):
    if quickly:
        page.get_by_role("button", name="Settings").first.click()
        page.get_by_label("Slow enough to watch").uncheck()
    page.get_by_role("button", name="Classify", exact=True).click()


def answer(page):
    told = page.locator("#status strong")
    told.filter(has_not_text="Classify").wait_for()
    return told.inner_text()


def obstacles(page):
    """What keeps people from using the page as it stands, by WCAG 2 A and AA."""
    # What is being computed is pale, and darkens slowly once it is there.
    page.wait_for_function(
        "!document.querySelector('.pending') && !document.getAnimations().some(a => a instanceof CSSTransition)"
    )
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
    return [
        (v["id"], node["html"], node["failureSummary"])
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


def shot(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_classifies_as_the_library_does_and_asks_no_other_machine(new_page, shirt):
    file, _ = shirt
    (expected,) = DiffusionClassifier.from_pretrained("fashion", dtype="float32").classify([file])
    page = new_page()
    upload(page, file)
    shown(page)
    classify(page)
    assert answer(page) == expected.label
    ranks = page.locator("#race li")
    assert ranks.count() == 10
    first = ranks.first.inner_text().split()
    assert " ".join(first[:-1]) == expected.label
    assert abs(float(first[-1].rstrip("%")) / 100 - expected.score) < 0.001
    page.get_by_text("Why?").click()
    page.get_by_role("button", name="Show why").click()
    page.get_by_text("Inversion and reconstruction").wait_for()
    page.get_by_text("RMSE").first.wait_for()
    shot(page, "classify")
    assert page.outside == []
    assert page.errors == []


def test_a_photograph_on_a_light_ground_is_read_as_its_negative(new_page, shirt, tmp_path):
    (expected,) = DiffusionClassifier.from_pretrained("fashion", dtype="float32").classify([shirt[0]])
    ImageOps.invert(shirt[1].image.convert("RGB")).save(tmp_path / "light.png")
    page = new_page()
    upload(page, tmp_path / "light.png")
    shown(page)
    page.get_by_label("Invert light and dark").check()
    classify(page)
    assert answer(page) == expected.label
    assert expected.label != "Bag"  # what any image on a light ground is taken for


def test_the_race_is_seen(new_page):
    page = new_page()
    page.locator("button.thumbnail-item").nth(6).click()
    shown(page)
    seen = []
    page.expose_function("saw", lambda html: seen.append(html))
    page.evaluate(
        "new MutationObserver(() => saw(document.querySelector('#race').innerText))"
        ".observe(document.querySelector('#race'), {childList: true, subtree: true, characterData: true})"
    )
    classify(page, quickly=False)
    answer(page)
    outs = [text.count("out\n") + text.endswith("out") for text in seen]
    assert len(set(outs)) > 1  # classes drop out before one's eyes
    assert page.locator("#race li.best").count() == 1


def test_bad_uploads_get_a_sentence_and_the_page_goes_on(new_page, shirt, tmp_path):
    page = new_page()
    classify(page)
    page.get_by_text("there is no image yet").wait_for()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image at all")
    upload(page, bad)
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_text("bad.png: is no image").wait_for()
    shot(page, "bad")
    page = new_page()
    upload(page, shirt[0])
    shown(page)
    page.get_by_label("Labels").fill("Shirt, Hat")
    classify(page)
    page.get_by_text("Hat").last.wait_for()
    page.get_by_label("Labels").fill("Shirt, Bag")
    page.get_by_role("button", name="Classify", exact=True).click()
    assert answer(page) in ("Shirt", "Bag")


def test_a_large_upload_is_refused(new_page, tmp_path):
    page = new_page()
    noise = np.random.default_rng(0).integers(0, 256, (2700, 2700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 21e6
    upload(page, tmp_path / "large.png")
    page.get_by_text("exceed the maximum").first.wait_for()


def test_two_users_at_once(new_page):
    """Each gets the answer of his own image."""
    samples = load_sample(7)
    pages = [new_page(), new_page()]
    for page, i in zip(pages, (0, 2), strict=True):
        page.locator("button.thumbnail-item").nth(i).click()
        shown(page)
    for page in pages:
        classify(page, quickly=False)
    answers = [answer(page) for page in pages]
    expected = DiffusionClassifier.from_pretrained("fashion", dtype="float32").classify(
        [samples[0].image, samples[2].image]
    )
    assert answers == [r.label for r in expected]


def test_text_labels_beside_a_contrastive_model(new_page):
    page = new_page()
    page.get_by_label("Model").first.click()
    page.get_by_role("option", name="scenes").click()
    page.get_by_label("Prompt").wait_for()
    page.locator("button.thumbnail-item").first.click()
    shown(page)
    page.get_by_label("Labels").fill("a sneaker, a dress")
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("Slow enough to watch").uncheck()
    page.get_by_label("number input for Maximum draws").first.fill("4")
    page.get_by_role("button", name="Classify", exact=True).click()
    assert answer(page) in ("a sneaker", "a dress")
    page.get_by_text("Probabilities of a contrastive model").wait_for()
    assert page.locator("#contrastive li").count() == 2
    shot(page, "scenes")


@pytest.mark.slow
def test_a_drawing_is_classified(new_page):
    page = new_page()
    page.get_by_role("tab", name="Drawing").click()
    canvas = page.locator("canvas").first
    canvas.wait_for()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y - 80)
    page.mouse.down()
    for dx, dy in ((-40, 80), (40, 80), (40, -80), (-40, -80)):
        page.mouse.move(x + dx, y + dy, steps=10)
    page.mouse.up()
    page.wait_for_timeout(1000)
    classify(page)
    assert answer(page)
    shot(page, "drawing")


def test_captions_are_scored(new_page, shirt):
    page = new_page()
    page.get_by_role("tab", name="Captions").click()
    page.get_by_role("button", name="Score").wait_for()
    upload(page, shirt[0])
    shown(page)
    page.get_by_label("Captions").last.fill("a dress\na bag")
    page.get_by_label("number input for Draws").last.fill("4")
    page.get_by_role("button", name="Score").click()
    page.get_by_role("gridcell").filter(has_text="a bag").first.wait_for()
    assert obstacles(page) == []
    shot(page, "captions")


def test_a_run_is_browsed_and_answered_again(new_page):
    page = new_page()
    page.get_by_role("tab", name="Runs").click()
    page.get_by_text("of 40 images").wait_for()
    page.get_by_label("all", exact=True).check()
    page.get_by_text("40 of 40 images; page 1 of 2").wait_for()
    page.locator("button.thumbnail-item:visible").first.click()
    page.locator("#details li").first.wait_for()
    page.get_by_text("Rescore with other").click()
    page.get_by_label("number input for t/T = 0.25").fill("0")
    page.get_by_role("button", name="Rescore").last.click()
    page.get_by_text("calibration error").wait_for()
    assert obstacles(page) == []
    shot(page, "runs")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phones_and_the_dark(new_page, scheme, shirt):
    page = new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    upload(page, shirt[0])
    shown(page)
    classify(page)
    answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing to scroll to the side
    shot(page, f"phone-{scheme}")


def test_by_keyboard(new_page):
    """Tab and Enter alone reach an example and the button."""
    page = new_page()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('thumbnail-item')"):
            break
    page.keyboard.press("Enter")
    shown(page)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Classify":
            break
    page.keyboard.press("Enter")
    assert answer(page) == load_sample(1)[0].label


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(new_page, scheme, shirt):
    page = new_page(color_scheme=scheme)
    upload(page, shirt[0])
    classify(page)
    answer(page)
    assert obstacles(page) == []


def test_no_file_of_this_machine_is_served(address, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, "/etc/passwd", __file__):
        assert httpx.get(f"{address}/gradio_api/file={path}", timeout=60).status_code in (403, 404)
    with httpx.Client(base_url=address, timeout=60) as client:
        config = client.get("/config").json()
        (gallery,) = [
            d for d in config["dependencies"] if d["targets"][0][1] == "select" and d["inputs"] == d_model(config)
        ]
        forged = {"path": "", "index": 0, "value": {"image": {"path": str(secret)}}}
        body = {"data": ["fashion"], "event_data": forged, "fn_index": gallery["id"], "session_hash": "x"}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=x") as events:
            told = next(line for line in events.iter_lines() if "process_completed" in line)
    assert "secret.txt" not in told
    body = {"data": [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}, "fashion", "", "", 0, 0]}
    event = httpx.post(f"{address}/gradio_api/call/classify", json=body, timeout=60).json()["event_id"]
    told = httpx.get(f"{address}/gradio_api/call/classify/{event}", timeout=60).text
    assert "event: error" in told
    assert "secret" not in told.replace("secret.txt", "")


def test_a_drawing_is_no_way_around_the_limits(address):
    with httpx.Client(base_url=address, timeout=60) as client:
        config = client.get("/config").json()
        (canvas,) = [c["id"] for c in config["components"] if c["props"].get("label") == "Draw in white"]
        blob = {"component_id": canvas, "fn_name": "accept_blobs", "session_hash": "y"}
        form = {"type": "layer", "index": "10000000000", "id": "z"}
        told = client.post("/gradio_api/component_server", data=blob | form, files={"file": b"x"})
        assert told.status_code == 404
        (start, *_) = [d for d in config["dependencies"] if canvas in d["inputs"]]
        link = {"path": "https://127.0.0.1/x.png", "meta": {"_type": "gradio.FileData"}}
        sent = [
            "fashion",
            True,
            None,
            False,
            {"background": None, "layers": [link], "composite": link},
            "",
            "",
            0,
            0,
            1,
        ]
        body = {"data": sent, "fn_index": start["id"], "session_hash": "y"}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=y") as events:
            told = next(line for line in events.iter_lines() if "process_completed" in line)
    assert "not as a link" in told


def d_model(config):
    """Inputs of what is done when an example is chosen: the first model."""
    return [c["id"] for c in config["components"] if c["props"].get("label") == "Model"][:1]


def test_programs_are_served(address, shirt):
    file, _ = shirt
    (expected,) = DiffusionClassifier.from_pretrained("fashion", dtype="float32").classify([file])
    client = Client(address, verbose=False)
    row = client.predict(handle_file(str(file)), "fashion", "", "", 0, 0, api_name="/classify")
    assert row["label"] == expected.label
    assert row["num_evaluations"] == expected.num_evaluations
    assert abs(row["score"] - expected.score) < 1e-4
    with pytest.raises(Exception, match="Hat"):
        client.predict(handle_file(str(file)), "fashion", "Hat, Bag", "", 0, 0, api_name="/classify")
    link = {"path": "https://127.0.0.1/x.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match="not as a link"):
        client.predict(link, "fashion", "", "", 0, 0, api_name="/classify")
    empty = file.with_name("empty.png")
    empty.write_bytes(b"")
    with pytest.raises(Exception, match=r"^empty\.png: ") as e:
        client.predict(handle_file(str(empty)), "fashion", "", "", 0, 0, api_name="/classify")
    assert "/gradio" not in str(e.value)
    with pytest.raises(Exception, match="too many here"):
        client.predict("scenes", handle_file(str(file)), "\n".join(["a"] * 2000), 200, api_name="/score")
    labels = ",".join(map(str, range(4100)))
    for draws, text, complaint in ((0, labels, "too many here"), (0, "a" * 20_001, "too long here")):
        with pytest.raises(Exception, match=complaint):
            client.predict(handle_file(str(file)), "scenes", text, "{}", draws, 0, api_name="/classify")
    with pytest.raises(Exception, match="too long here"):
        client.predict("scenes", handle_file(str(file)), "a" * 20_001, 1, api_name="/score")
    with pytest.raises(Exception, match="/etc"):
        client.predict(handle_file(str(file)), "/etc", "", "", 0, 0, api_name="/classify")
    assert threading.active_count() < 100
