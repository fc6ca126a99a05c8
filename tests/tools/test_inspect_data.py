"""What `inspect_data` says of a made source, and the picture that it draws."""

import dataclasses
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data import inspection
from ccl_jax.data.pipeline import PipelineOptions, Sample, TrainingBatches
from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.text import Tokenizer

CAPTIONS = ("a red dog on the beach", "the beach")
OPTIONS = PipelineOptions(
    batch_size=8,
    image_size=8,
    text_length=6,
    phrase_length=4,
    phrases_per_image=2.0,
    phrase_group=4,
    transform="squash",
    workers=1,
)


class Pictures:
    """Record i: 10 + i pixels wide and 12 high, two captions, three phrases or one."""

    name = "pictures"

    def __init__(self, count=16, bad=()):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRecord(f"picture-{index}", "truncated")
        file = io.BytesIO()
        Image.new("RGB", (10 + index, 12), (9 * index, 0, 0)).save(file, "PNG")
        phrases = ("a red dog", "the beach", f"number {index}"), ()
        return Record(index, f"picture-{index}", file.getvalue(), CAPTIONS, phrases)


def batches(source=None, **changes):
    tokenizer = Tokenizer.train(["a red dog on the beach number 0 1 2 3 4 5 6 7 8 9"], 200)
    return TrainingBatches(source or Pictures(), tokenizer, dataclasses.replace(OPTIONS, **changes))


def test_the_findings_are_those_of_the_records():
    found, samples = inspection.inspect(batches(), 2)  # an epoch: each record once
    assert (
        found["source"] | {"name": "pictures", "records": 16, "batches an epoch": 2.0}
        == (found["source"])
    )
    assert found["batch"]["image"] == "(8, 8, 8, 3) uint8"
    assert found["batch"]["phrase_text"] == "(16, 4) int32"
    images = found["images"]
    assert images["width"] == {"least": 10, "median": 18, "95 %": 24, "most": 25}
    assert images["height"]["least"] == images["height"]["most"] == 12
    assert images["formats"] == "PNG x 16" and images["short side under 8"] == "0.0%"
    # Six words and the end are cut at 6 tokens, two words are not.
    assert found["captions"]["cut at 6 tokens"] == "50.0%"
    assert found["captions"]["tokens, with start and end"]["most"] == 7
    assert found["captions"]["an image"]["median"] == 2
    assert len(samples) == 8 and isinstance(samples[0], Sample)


def test_phrases_are_counted_before_and_after_the_budget():
    inspected = batches()
    found, _ = inspection.inspect(inspected, 2)
    samples = [sample for step in range(2) for sample in inspected.samples(step)]
    # Three phrases where the first caption was drawn, the caption itself where the second was.
    first = sum(sample.caption == CAPTIONS[0] for sample in samples)
    total = 3 * first + (16 - first)
    assert 0 < first < 16
    phrases = found["phrases"]
    assert phrases["an image, mean"] == pytest.approx(total / 16, abs=0.01)
    assert phrases["images whose caption is the phrase"] == f"{(16 - first) / 16:.1%}"
    dropped = sum(len(sample.dropped) for sample in samples)
    assert phrases["dropped for want of room"] == f"{dropped / total:.1%}"
    assert phrases["room in the batch used"] == f"{(total - dropped) / 32:.1%}"
    losing = sum(bool(sample.dropped) for sample in samples)
    assert phrases["images that lose one"] == f"{losing / 16:.1%}"
    repeats = []
    for step in (0, 1):
        texts = [text for sample in inspected.samples(step) for text in sample.phrases]
        repeats.append(len(texts) - len(set(texts)))
    spread = phrases["repeats in a batch of 8 images"]
    assert (spread["least"], spread["most"]) == (min(repeats), max(repeats))


def test_without_phrases_there_is_no_word_of_them():
    found, _ = inspection.inspect(batches(phrases_per_image=0.0), 1)
    assert "phrases" not in found and "phrase" not in inspection.describe(found)


def test_skipped_records_and_speed_are_told():
    found, _ = inspection.inspect(batches(Pictures(bad={3}), max_bad_share=0.1), 2)
    assert found["skipped records"] == {"truncated": 1}
    assert found["throughput"]["images a second"] > 0
    text = inspection.describe(found)
    assert re.search(r"skipped records\n +truncated +1\n", text)
    assert re.search(r"width +least 10, median 1\d, 95 % 2\d, most 25", text)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        inspection.inspect(batches(), 0)


def test_the_picture_has_each_image_in_its_place(tmp_path):
    colours = [(200, 30, 40), (30, 200, 40), (30, 40, 200), (200, 200, 40), (20, 200, 200)]
    samples = [
        Sample(
            Record(number, str(number), b"", CAPTIONS),
            np.full((8, 8, 3), colour, np.uint8),
            "a caption of $some$ words, 雪の上の犬, and many more " * 9,
            ("a very long phrase " * 9, "a dog"),
            ("a lost one",) * 12,
        )
        for number, colour in enumerate(colours)
    ]
    path = tmp_path / "new" / "batch.png"
    inspection.draw_samples(samples, path)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width = picture.shape[:2]
    for number, colour in enumerate(colours):
        found = np.abs(picture - colour).max(axis=-1) < 3
        rows, columns = np.nonzero(found)
        assert rows.max() - rows.min() == pytest.approx(columns.max() - columns.min(), abs=3)
        assert int(columns.mean() / width * 4) == number % 4
        assert (rows.mean() > height / 2) == (number // 4 == 1)


def run_tool(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ccl_jax.tools.inspect_data", *arguments],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_command_prints_and_draws(tmp_path, shared):
    tar = shared / "data" / "flickr8k_112_dev-00000.tar"
    out = tmp_path / "out"
    done = run_tool(
        *("--config", "configs/finetune_webdataset.py:tiny", f"--config.data.source.path={tar}"),
        *("--config.data.batch_size=64", "--config.data.tokenizer_captions=500"),
        *("--batches", "2", "--output", str(out)),
    )
    assert done.returncode == 0, done.stderr
    for word in ("1,000", "(64, 112, 112, 3) uint8", "JPEG x 128", "most frequent", "a second"):
        assert word in done.stdout
    found = json.loads((out / "inspection.json").read_text())
    assert 2 < found["phrases"]["an image, mean"] < 4
    with Image.open(out / "batch.png") as picture:
        assert picture.width > 800
    wrong = run_tool(
        *("--config", "configs/finetune_webdataset.py", "--config.data.source.path=nowhere-*.tar")
    )
    assert wrong.returncode != 0 and "Traceback" not in wrong.stderr
    assert "nothing matches nowhere-*.tar" in wrong.stderr
