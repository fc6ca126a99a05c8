"""The demo page in a browser: numbers as computed directly, limits, and nothing from elsewhere."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import jax
import numpy as np
import pytest
from PIL import Image

from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_ids import swap_ids
from ccl_jax.evaluation.demo import Demo
from ccl_jax.training import serving
from tests import chromium

pytestmark = pytest.mark.slow

PHRASES = "a red car; <b>the sea</b>"
CLASSES = "cat, dog, bird"
ANSWERED = "document.querySelector('#answers [role=alert], #answers section')"


@pytest.fixture(scope="module")
def models(shared, tmp_path_factory):
    """A SigLIP and a CLIP with other tokenizers, widths and heads."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs Gradio: pip install 'ccl_jax[demo]'")
    if not any(map(shutil.which, chromium.NAMES)):
        pytest.skip("needs Chromium: apt-get install chromium")
    folder = tmp_path_factory.mktemp("models")
    for name in ("siglip", "clip"):
        shutil.copytree(shared / "golden" / f"hf_{name}_tiny", folder / name)
        os.chmod(folder / name, 0o755)
    small = Tokenizer.train(["a cat and a dog", "two birds on a red car", "the sea"], 62)
    swap_ids(small, 0, 1).save(str(folder / "siglip"))  # its config pads with 1
    path = folder / "clip" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["bos_token_id"] = None  # ours has no start of text
    os.chmod(path, 0o644)
    path.write_text(json.dumps(config))
    full = Tokenizer.train([f"word{i} cat dog" for i in range(60)], 64)
    swap_ids(full, full.eot_id, 63).save(str(folder / "clip"))
    return {name: str(folder / name) for name in ("siglip", "clip")}


def command(*arguments):
    return [sys.executable, "-m", "ccl_jax.tools.demo", *map(str, arguments)]


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    """The page's address and the file of what its server says."""
    folder = tmp_path_factory.mktemp("server")
    log = folder / "log.txt"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"TMPDIR": str(folder), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    given = [f"--model={path}" for path in models.values()]
    limits = ["--max_mb=0.25", "--max_megapixels=0.5", "--max_phrases=4"]
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command(*given, *limits, "--port=0"), stdout=file, stderr=file, env=environment
        )
    try:
        until(lambda: "The page is at" in log.read_text() or process.poll() is not None, 240)
        found = re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())
        assert found, log.read_text()
        yield found[0], log
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert [path.name for path in folder.glob("ccl_jax_demo_*")] == []  # uploads are gone
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, :45, 0] = pixels[:30, 45:, 2] = 255
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def quick():
    """The models are small: compiling is what takes long."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def browser(server, tmp_path):
    with chromium.Page(tmp_path / "profile") as page:
        page.call("DOM.enable")
        yield page


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def visit(page, address, **window):
    page.open(address, **window)
    until(lambda: page.run("!!document.querySelector('#show')"))


def upload(page, path):
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    field = page.call("DOM.querySelector", nodeId=root, selector="#image input[type=file]")
    page.call("DOM.setFileInputFiles", nodeId=field["nodeId"], files=[str(path)])


def fill(page, field, text):
    page.run(
        f"(e => {{ e.value = {json.dumps(text)};"
        " e.dispatchEvent(new Event('input', {bubbles: true})); })"
        f"(document.querySelector('#{field} textarea, #{field} input'))"
    )


def answer(page):
    """Presses the button; what the page shows then."""
    page.run(f"{ANSWERED}?.remove()")
    page.run("document.querySelector('#show').click()")
    until(lambda: page.run(f"!!{ANSWERED}"))
    return page.run("document.querySelector('#answers').innerText")


def table(page, model, name):
    cells = "[...row.cells].map(cell => cell.innerText)"
    found = f"document.querySelectorAll('[data-model={model}] .ccl-{name} tbody tr')"
    return page.run(f"[...{found}].map(row => {cells})")


def unexpected(page, address):
    """Errors and requests that a visitor should not have."""
    # Gradio asks how far a small file is that has arrived already.
    errors = [error for error in page.errors if "upload_progress" not in error]
    return errors, [url for url in page.requests if not url.startswith((address, "blob:"))]


def test_two_models_side_by_side(server, models, browser, picture, quick):
    address, _ = server
    visit(browser, address)
    upload(browser, picture)
    until(lambda: browser.run("!!document.querySelector('#image img')"))
    fill(browser, "phrases", PHRASES)
    fill(browser, "classes", CLASSES)
    answer(browser)
    opened = {name: serving.open_model(path, batch_size=1) for name, path in models.items()}
    for expected in Demo(opened).answer(picture, PHRASES, classes=CLASSES):
        rows = table(browser, expected.model, "scores")
        assert [row[0] for row in rows] == list(expected.found.phrases)
        shown = [float(row[1]) for row in rows]
        np.testing.assert_allclose(shown, expected.found.scores, atol=6e-4)
        rows = table(browser, expected.model, "labels")
        assert [row[0] for row in rows] == [label.name for label in expected.labels]
        shown = [[float(row[1]), float(row[2].strip("% "))] for row in rows]
        labels = [[label.cosine, 100 * label.share] for label in expected.labels]
        np.testing.assert_allclose(shown, labels, atol=0.06)
    until(
        lambda: browser.run("[...document.querySelectorAll('#answers img')].every(i => i.complete)")
    )
    drawn = "[...document.querySelectorAll('[data-model={}] [data-kind={}] img')]"
    drawn += ".filter(i => i.naturalWidth > 100).length"
    for name in models:
        assert browser.run(drawn.format(name, "attention")) == 2
        assert browser.run(drawn.format(name, "similarity")) == 2
        assert browser.run(drawn.format(name, "segmentation_similarity")) == 1
    places = [
        browser.run(f"document.querySelector('[data-model={name}]').getBoundingClientRect().left")
        for name in models
    ]
    assert places[1] > places[0] + 300
    assert unexpected(browser, address) == ([], [])


def test_what_is_refused_is_told(server, browser, picture, tmp_path):
    address, log = server
    visit(browser, address)
    assert "there is no phrase" in answer(browser)
    fill(browser, "phrases", PHRASES)
    assert "there is no image" in answer(browser)
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (1000, 600)).save(tmp_path / "large.png")
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "heavy.png")

    for name, message in {"text.jpg": "give a JPEG", "large.png": "image too large"}.items():
        upload(browser, tmp_path / name)
        until(lambda: browser.run("!!document.querySelector('#image img')"))
        assert f"{name}: " in (text := answer(browser)) and message in text
        browser.run("document.querySelector('#image [aria-label^=Remove]').click()")
        until(lambda: browser.run("!!document.querySelector('#image input[type=file]')"))
    upload(browser, tmp_path / "heavy.png")
    until(lambda: "maximum allowed size" in browser.run("document.body.innerText"))
    upload(browser, picture)
    until(lambda: browser.run("!!document.querySelector('#image img')"))
    fill(browser, "phrases", "a; b; c; d; e")
    assert "5 phrases are more than 4" in answer(browser)
    fill(browser, "phrases", "a")
    browser.run("document.querySelectorAll('#maps input')[2].click()")
    assert answer(browser).count("no patch embedder") == 2
    assert "Traceback" not in browser.run("document.body.innerText") + log.read_text()
    assert unexpected(browser, address) == ([], [])


def test_class_names_of_a_set(server, browser):
    visit(browser, server[0])
    browser.run("document.querySelector('#known input').dispatchEvent(new Event('focus'))")
    option = "[...document.querySelectorAll('[role=option]')].find(o => o.ariaLabel == 'STL10')"
    until(lambda: browser.run(f"!!{option}"))
    browser.run(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    value = "document.querySelector('#classes textarea').value"
    until(lambda: browser.run(value).startswith("airplane\nbird\n"))
    assert browser.run(value).count("\n") == 9


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(server, browser, picture, dark):
    address, _ = server
    visit(browser, address, width=360, height=740, dark=dark)
    upload(browser, picture)
    until(lambda: browser.run("!!document.querySelector('#image img')"))
    fill(browser, "phrases", "a red car; " + "x" * 80)
    answer(browser)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert light < 60 if dark else light > 200
    assert unexpected(browser, address) == ([], [])


def test_an_address_is_not_fetched(server):
    """Gradio itself would, for whoever writes requests by hand."""
    address, log = server
    image = {"path": "https://example.org/x.png", "meta": {"_type": "gradio.FileData"}}
    data = [image, "a", [], 20, "", "{}"]
    with urllib.request.urlopen(f"{address}config", timeout=30) as response:
        functions = json.load(response)["dependencies"]
    number = next(one["id"] for one in functions if len(one["inputs"]) == len(data))
    body = json.dumps({"data": data, "fn_index": number, "session_hash": "one"}).encode()
    headers = {"Content-Type": "application/json"}
    post = urllib.request.Request(f"{address}gradio_api/queue/join", body, headers)
    with urllib.request.urlopen(post, timeout=30) as response:
        assert response.status == 200
        policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "http" not in policy
    with urllib.request.urlopen(
        f"{address}gradio_api/queue/data?session_hash=one", timeout=30
    ) as response:
        events = response.read().decode()
    assert '"success":false' in events
    assert "the image is an address" in log.read_text()


def test_a_port_in_use_is_one_line(server, models):
    port = server[0].split(":")[-1].strip("/")
    found = subprocess.run(
        command("--model", models["siglip"], "--port", port),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1 and "Traceback" not in found.stderr
    line = found.stderr.splitlines()[-1]
    assert line.startswith("ccl_jax: cannot serve at") and "--port" in line
