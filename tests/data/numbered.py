"""A source whose images, captions and phrases all tell their number, and streams over it."""

import dataclasses
import functools
import io

import numpy as np
from PIL import Image

from ccl_jax.data.pipeline import PipelineOptions, TrainingBatches
from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.text import Tokenizer

NUMBERS = [f"n{i}" for i in range(64)]
VERBS = ["first", "second", "third"]
OPTIONS = PipelineOptions(
    batch_size=8,
    image_size=4,
    text_length=8,
    phrase_length=5,
    phrases_per_image=2.0,
    phrase_group=4,
    transform="squash",
    workers=2,
    seed=3,
)


@functools.cache
def tokenizer():
    words = [f"x{part}" for part in range(6)]
    return Tokenizer.train([" ".join(NUMBERS), " ".join(VERBS), " ".join(words)], 1000)


@functools.cache
def words():
    """Token id -> word."""
    known = NUMBERS + VERBS + [f"x{part}" for part in range(6)]
    table = {int(tokenizer()([word], 2)[0, 0]): word for word in known}
    assert len(table) == len(known)  # every word is one token
    return table


def read(row):
    """The words of a row of tokens."""
    return [words()[int(token)] for token in row if int(token) in words()]


class Numbered:
    """Record i: all pixels have the value 3 i; captions "ni first", ...; phrases "ni x0", ..."""

    name = "numbered"

    def __init__(self, count, *, captions=1, phrases=1, bad=()):
        self.count, self.captions, self.phrases, self.bad = count, captions, phrases, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRecord(f"record-{index}", "truncated")
        file = io.BytesIO()
        Image.new("RGB", (5, 4), (3 * index,) * 3).save(file, "PNG")
        phrases = tuple(f"n{index} x{part}" for part in range(self.phrases))
        return Record(
            sample_id=index,
            key=f"record-{index}",
            image=file.getvalue(),
            captions=tuple(f"n{index} {verb}" for verb in VERBS[: self.captions]),
            phrases=(phrases,) * self.captions,
        )


def stream(source, groups=None, **changes):
    options = dataclasses.replace(OPTIONS, **changes)
    return TrainingBatches(source, tokenizer(), options, groups=groups)


def numbers(batch):
    """Image number by the pixels, checked against caption and sample id."""
    found = batch["image"][:, 0, 0, 0] // 3
    np.testing.assert_array_equal(found, batch["sample_id"])
    assert [read(row)[0] for row in batch["text"]] == [f"n{i}" for i in found]
    return [int(i) for i in found]
