"""report.html: what it shows, what it leaves out, and how it behaves in a browser."""

import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import PIL.Image
import pytest

from ccl_jax.evaluation import html_report, tables
from ccl_jax.evaluation.html_report import failures, training
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.results import (
    BenchmarkResult,
    Image,
    Items,
    SuiteResult,
    ratio_metric,
)
from tests.chromium import Page

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> & \"q\""


class Text(html.parser.HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def images(self):
        return [attrs["src"] for tag, attrs in self.tags if tag == "img"]


def matching(fake, name, outcomes, *, size=32, margins=None, text="a red square"):
    """A benchmark of one-image items; the right text is `text`."""
    right = np.asarray(outcomes, float)
    n = len(right)
    margins = np.where(right > 0, 0.1, -0.1 * (1 + np.arange(n))) if margins is None else margins
    images = [
        Image(
            f"{name} {i}.png",
            f"{name} {i}",
            lambda: fake.record(0, [("red", 0, 0, size, size // 2)], size=(size, size)).image,
        )
        for i in range(n)
    ]
    items = Items(
        keys=tuple(f"{name}/{i}" for i in range(n)),
        groups=("all",) * n,
        images=tuple((image,) for image in images),
        texts=((text, "a blue square"),) * n,
        clusters=np.arange(n),
        outcomes={"right": right},
        scores=[np.array([[0.25, 0.25 - m]], np.float32) for m in margins],
        margin=np.asarray(margins, float),
    )
    metrics = {
        "accuracy": ratio_metric(right, np.arange(n), total=2 * n, chance=50),
        "first": ratio_metric(right[: n // 2], np.arange(n // 2), total=n // 2),
    }
    return BenchmarkResult(
        name, metrics, items, {"missing image": (HOSTILE, "b")}, {"split": "test"}, "accuracy"
    )


def retrieval(rank):
    metrics = {
        f"image_to_text_recall@{k}": ratio_metric(rank < k, np.arange(len(rank)), total=len(rank))
        for k in (1, 5, 10)
    }
    return BenchmarkResult(
        "c_retrieval", metrics, None, {}, {}, "image_to_text_recall@1", {"image_to_text_rank": rank}
    )


@pytest.fixture
def result(fake):
    """Two models, three benchmarks; b is better at the first."""
    rng = np.random.default_rng(0)
    a = rng.random(60) < 0.3
    b = a | (rng.random(60) < 0.6)
    results = {
        "first": {"a": matching(fake, "first", a), "b": matching(fake, "first", b)},
        "second": {m: matching(fake, "second", a, text=HOSTILE) for m in ("a", "b")},
        "c_retrieval": {"a": retrieval(np.arange(40)), "b": retrieval(np.arange(40) // 2)},
    }
    return SuiteResult(("a", "b"), results, {"gone": f"expected {HOSTILE}"}, {"date": "today"})


@pytest.fixture
def rows(result):
    return tables.rows_of(result, resamples=200, permutations=999)


@pytest.fixture
def run(tmp_path):
    """A workdir with training metrics, its last line cut off."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"step": s, "loss": 10 / s, HOSTILE: s} | {f"x/{k}": s for k in range(30)})
        for s in range(1, 400)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4', encoding="utf-8")
    return folder


@pytest.fixture
def report(result, rows, run, fake, tmp_path):
    models = [EvaluatedModel(name, fake.Predictor()) for name in ("a", "b")]
    path = tmp_path / "out" / "report.html"
    html_report.write_suite_report(path, result, rows, models=models, workdirs=[run])
    return path


def test_table_holds_the_numbers_of_the_tables(report, rows):
    source = report.read_text(encoding="utf-8")
    page = Text(source)
    cell = next(row for row in rows if row.benchmark == "first" and row.headline).cells["b"]
    assert f"{cell.interval.value:.1f}" in page.text
    assert f"[{cell.interval.low:.1f}, {cell.interval.high:.1f}]" in page.text
    assert f"{cell.comparison.difference:+.1f} ▲" in page.text and cell.p_holm < 0.05
    assert "50 %" in page.text and "60 / 120" in page.text  # coverage
    assert '<small class="partial">60 of 120 items</small>' in source
    assert source.count('data-significant="1"') >= 1
    assert "gone: expected" in page.text and "2 x missing image" in page.text


def test_all_text_is_escaped_and_nothing_is_fetched(report):
    page = Text(report.read_text(encoding="utf-8"))
    assert HOSTILE in page.text  # as text, of captions, reasons and metrics
    assert [tag for tag, _ in page.tags].count("script") == 1
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


def test_failures_are_wrong_hardest_first_and_pictured(report, result):
    found = failures.hardest(result, 4)
    assert len(found) == 8 and all(any(not v.right for v in one.verdicts) for one in found)
    items = result.results["first"]["a"].items
    wrong = np.flatnonzero(items.outcomes["right"] == 0)
    assert found[0].key == items.keys[wrong[items.margin[wrong].argmin()]]
    assert len({one.image_names for one in found}) == 8
    page = Text(report.read_text(encoding="utf-8"))
    pictures = page.images()
    cards = [attrs for tag, attrs in page.tags if tag == "article"]
    # An image, and for the mapped ones a map for each phrase and model.
    assert len(cards) == 16 and len(pictures) > 16
    data = base64.b64decode(pictures[0].split(",", 1)[1])
    assert PIL.Image.open(io.BytesIO(data)).size == (32, 32)
    assert "a red square [a]" in page.text or "red square [a]" in page.text
    assert "margin -" in page.text and "0.250" in page.text  # score of the right text
    assert any(attrs["data-right"] == "b" and attrs["data-wrong"] == "a" for attrs in cards)


def test_heat_map_is_hot_where_the_phrase_is(fake, result):
    (failure,) = failures.hardest(result, 1)[:1]
    model = EvaluatedModel("a", fake.Predictor())
    drawn = failures.draw([failure], [model], max_bytes=10**6, max_mapped=1)
    ((_, address),) = drawn.maps[0][:1]
    pixels = PIL.Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    pixels = np.asarray(pixels).astype(int)
    side = len(pixels)
    left, right = pixels[side // 2, side // 4], pixels[side // 2, -side // 8]
    assert left[0] > left[2] + 60  # red in the colour map
    assert np.ptp(right) < 30  # grey


def test_pictures_keep_within_their_bytes(fake, result, rows, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    png = fake.png(noise)

    def noisy(one):
        images = tuple((dataclasses.replace(i[0], read=lambda: png),) for i in one.items.images)
        return dataclasses.replace(one, items=dataclasses.replace(one.items, images=images))

    first = {model: noisy(one) for model, one in result.results["first"].items()}
    many = {f"set {k}": first for k in range(30)}
    found = failures.hardest(dataclasses.replace(result, results=many), 8)
    assert len(found) == 240
    drawn = failures.draw(found, [], max_bytes=200_000, max_mapped=0)
    assert sum(map(len, drawn.thumbs.values())) <= 200_000
    assert drawn.omitted + len(drawn.thumbs) == 240 and drawn.thumbs
    path = tmp_path / "r.html"
    html_report.write_report(path, tables.to_json(result, rows), failures=found, max_bytes=10**6)
    assert path.stat().st_size < 1.1e6
    text = Text(path.read_text(encoding="utf-8")).text
    assert "images are left out, so that the file is under 1 MB" in text
    assert "80 further failures are not shown" in text


def test_an_image_that_cannot_be_read_is_counted(result, rows, tmp_path):
    found = [
        dataclasses.replace(one, images=(Image("x", "x", lambda: b"no image"),))
        for one in failures.hardest(result, 1)
    ]
    html_report.write_report(tmp_path / "r.html", tables.to_json(result, rows), failures=found)
    assert "2 images of failures could not be decoded" in (tmp_path / "r.html").read_text()


def test_from_files(result, rows, run, tmp_path):
    tables.write_tables(result, rows, tmp_path / "out")
    html_report.write_report_from_files(
        tmp_path / "r.html", tmp_path / "out", workdirs=[run.parent], title=HOSTILE
    )
    page = Text((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("article") == 16 and not page.images()
    assert "image to text" in str(page.tags)  # a curve through the points of the metrics
    # The same failures as from memory.
    of_files = failures.read_failures(tmp_path / "out", {"first": "accuracy"}, 5)
    of_memory = [one for one in failures.hardest(result, 5) if one.benchmark == "first"]
    assert [one.key for one in of_files] == [one.key for one in of_memory]
    assert of_files[0].texts == of_memory[0].texts
    for one, other in zip(of_files, of_memory, strict=True):
        for read, kept in zip(one.verdicts, other.verdicts, strict=True):
            np.testing.assert_allclose(read.scores, kept.scores, rtol=1e-4)
    assert "text, the right one first" in page.text and "0.250" in page.text


def test_images_are_found_again(result, rows, fake, tmp_path):
    from ccl_jax.evaluation.benchmarks import MissingData
    from ccl_jax.evaluation.benchmarks.class_sets import ClassSet
    from ccl_jax.evaluation.benchmarks.karpathy import Captioned, Split
    from ccl_jax.evaluation.benchmarks.matching import Item
    from ccl_jax.evaluation.html_report.reopening import with_images

    class Opened:
        def __init__(self, data):
            self.data = data

        def open(self, data_dir):
            if self.data is None:
                raise MissingData("gone")
            return self.data

    image = Image("x.png", "x", lambda: fake.plain(0, "red").image)
    benchmarks = {
        "match": Opened([Item("k", "g", (image, image), ("x.png",) * 2, ("t",))]),
        "split": Opened(Split((Captioned("k", image, ("t",)), Captioned("l", None, ())), "test")),
        "classes": Opened([ClassSet("set", ("c",), ("{}",), "", ((image, 0),))]),
        "missing": Opened(None),
    }
    keys = {"match": "k", "split": "k", "classes": "set/x.png", "missing": "k", "other": "k"}
    named = [failures.Failure(b, key, ("x",), ("t",), ()) for b, key in keys.items()]
    found = {one.benchmark: one.images for one in with_images(named, tmp_path, benchmarks)}
    assert found == {
        "match": (image, image), "split": (image,), "classes": (image,), "missing": (), "other": (),
    }  # fmt: skip


def test_an_item_of_many_texts_and_images_is_cut(fake):
    from ccl_jax.evaluation.html_report import view

    one = failures.Failure(
        "b", "k", ("i",) * 9, ("x" * 1000,) * 40, (failures.Verdict("a", False, -1.0),)
    )
    (card,) = view.failure_cards([one], failures.Pictures())
    assert len(card["lines"]) == 12 and card["more_texts"] == 28 and len(card["pictures"]) == 4
    assert len(card["lines"][0]["text"]) == 400


def test_runs_alone_show_their_own_evaluators(run, tmp_path):
    values = {"metrics": {"zero_shot/top1": 12.5, "retrieval/mean": 3.0}, "step": 7}
    (run / "results.json").write_text(json.dumps(values))
    html_report.write_report_from_files(tmp_path / "r.html", None, workdirs=[run.parent])
    page = Text((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "12.5" in page.text and "top1" in page.text
    assert "15 training curves are not drawn" not in page.text
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and "aria-label" in attrs]
    assert {"loss", "x/0"} <= {attrs["aria-label"] for attrs in charts}
    assert "14 training curves are not drawn" in page.text  # of 32, 18 are


def test_training_curves_are_thinned_and_keep_their_ends(run):
    steps, values = training.read_curves(run)["loss"]
    assert len(steps) == 200 and (steps[0], steps[-1]) == (1, 399)
    np.testing.assert_allclose(values, 10 / steps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: None, "cannot be read as JSON"),
        (lambda at: (at / "results.json").write_text("[1]"), "does not hold results"),
        (lambda at: (at / "results.json").write_text("{"), "cannot be read as JSON"),
    ],
)
def test_files_of_another_form(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        html_report.write_report_from_files(tmp_path / "r.html", tmp_path)


def test_workdirs_of_another_form(tmp_path, result, rows):
    with pytest.raises(ValueError, match="nothing to report"):
        html_report.write_report_from_files(tmp_path / "r.html", None)
    with pytest.raises(ValueError, match="there is no metrics.jsonl"):
        html_report.write_report_from_files(tmp_path / "r.html", None, workdirs=[tmp_path])
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(ValueError, match="line 1 of .* is not a step's metrics"):
        html_report.write_report_from_files(tmp_path / "r.html", None, workdirs=[tmp_path])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="give another file"):
        html_report.write_suite_report(tmp_path / "file" / "r.html", result, rows)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


SHOWN = "[...document.querySelectorAll('{}')].filter(x => !x.hidden).length"
COLUMN = (
    "[...document.querySelectorAll('.results tbody tr')].map(row => row.cells[{}].dataset.value)"
)


def test_in_a_browser_it_sorts_and_filters(report, rows, browser):
    browser.open(report.as_uri())
    assert browser.run("document.title") == "Evaluation"
    before = browser.run(COLUMN.format(2))
    head = "document.querySelectorAll('.results thead th')[2]"
    browser.run(f"{head}.firstChild.click()")
    values = [float(value) for value in browser.run(COLUMN.format(2))]
    assert values == sorted(values, reverse=True) != [float(v) for v in before]
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "descending"
    browser.run(f"{head}.firstChild.click()")
    assert [float(v) for v in browser.run(COLUMN.format(2))] == sorted(values)
    browser.run(f"{head}.firstChild.click()")
    assert browser.run(COLUMN.format(2)) == before

    shown = SHOWN.format(".results tbody tr")
    assert browser.run(shown) == len(rows) == 7
    type_in = "(s => {{ s.{} = {}; s.dispatchEvent(new Event('input', {{bubbles: true}})) }})({})"
    search = "document.querySelector('#results [type=search]')"
    browser.run(type_in.format("value", "'RECALL c_'", search))
    assert browser.run(shown) == 3
    browser.run(type_in.format("value", "''", search))
    significant = "document.querySelector('[data-filter=significant]')"
    browser.run(type_in.format("checked", "true", significant))
    assert browser.run(shown) == sum(
        any(c.p_holm < 0.05 for c in row.cells.values()) for row in rows
    )
    select = "document.querySelector('[data-filter=right]')"
    browser.run(type_in.format("value", "'b'", select))
    cards = browser.run(SHOWN.format(".failure"))
    expected = browser.run("document.querySelectorAll('.failure[data-right=b]').length")
    assert 0 < cards == expected < 16
    assert browser.run("document.querySelector('#failures output').textContent") == f"{cards} of 16"
    assert not browser.errors and not browser.requests


def test_many_failures_are_shown_on_request(result, rows, browser, tmp_path):
    found = failures.hardest(result, 20) * 2
    html_report.write_report(tmp_path / "r.html", tables.to_json(result, rows), failures=found)
    browser.open((tmp_path / "r.html").as_uri())
    assert browser.run(SHOWN.format(".failure")) == 24 < len(found)
    browser.run("document.querySelector('#failures button').click()")
    assert browser.run(SHOWN.format(".failure")) == len(found)
    assert browser.run("document.querySelector('#failures button').hidden")
    assert not browser.errors


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_but_the_table_scrolls_sideways(report, browser, dark):
    browser.open(report.as_uri(), width=360, height=740, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert light < 60 if dark else light > 200
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert not browser.errors


def test_without_scripts_the_table_is_whole(report, browser):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report.as_uri())
        assert browser.run(SHOWN.format(".results tbody tr")) == 7
        assert browser.run("document.querySelector('.controls').offsetHeight") == 0
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
