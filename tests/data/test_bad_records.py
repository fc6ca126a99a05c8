"""Bad input, made by hand, from the file to the batch: skipped, counted, named, never a hang."""

import io
import json
import pathlib
import pickle
import re
import struct
import time
import zlib

import numpy as np
import pytest
from absl import logging
from PIL import Image, ImageFile
from source_files import picture, write_tar

import ccl_jax.data
from ccl_jax.data.images import MAX_PIXELS, decode_image, transform_image
from ccl_jax.data.pipeline import PipelineOptions, TrainingBatches
from ccl_jax.data.records import BadRecord
from ccl_jax.data.sources import WebDatasetSource
from ccl_jax.data.sources.annotations import MAX_CAPTION_CHARS
from ccl_jax.data.text import Tokenizer

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
GOOD = 64
OPTIONS = {
    "batch_size": 8,
    "image_size": 8,
    "text_length": 8,
    "phrase_group": 2,
    "transform": "squash",
    "workers": 2,
}
# name -> (members of the record, reason for which it is skipped)
BAD = {
    "truncated": ({"jpg": picture(1, size=(64, 64))[:-200], "txt": "a dog"}, "unreadable image"),
    "zero bytes": ({"jpg": b"", "txt": "a dog"}, "unreadable image"),
    "html": ({"jpg": HTML, "txt": "a dog"}, "unreadable image"),
    "no sidecar": ({"jpg": picture(1)}, "missing caption"),
    "latin-1": ({"jpg": picture(1), "txt": b"caf\xe9"}, "invalid UTF-8"),
    "a page": ({"jpg": picture(1), "txt": "word " * 20_000}, "caption too long"),
    "empty json": ({"jpg": picture(1), "json": b""}, "invalid json"),
    "bare json": ({"jpg": picture(1), "json": "{}"}, "missing caption"),
    "no words": ({"jpg": picture(1), "txt": "\n"}, "empty caption"),
    "pickle": ({"jpg": picture(1), "pyd": pickle.dumps({"caption": "a dog"})}, "missing caption"),
}


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, bits, colour, rows, chunks=()):
    """A PNG from its parts: `rows` are the filtered scan lines, `chunks` come before them."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    packer = zlib.compressobj(1)
    pixels = b"".join(map(packer.compress, rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def record(name, parts):
    return [(f"{name}.{ending}", data) for ending, data in parts.items()]


def good(count, start=0):
    """Members of records whose grey value and caption tell their number."""
    members = []
    for i in range(start, start + count):
        members += record(f"good{i:04d}", {"jpg": picture(3 * i), "txt": f"a dog {i}"})
    return members


def stream(source, **changes):
    tokenizer = Tokenizer.train(["a dog 0123456789"], 50)
    return TrainingBatches(source, tokenizer, PipelineOptions(**{**OPTIONS, **changes}))


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    return messages


@pytest.mark.parametrize("transform", ["squash", "random_resized_crop"])
def test_each_bad_record_is_skipped_counted_and_named(tmp_path, warnings_logged, transform):
    members = good(GOOD)
    for name, (parts, _) in BAD.items():
        members += record(name, parts)
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", members))
    assert len(source) == GOOD + len(BAD)
    batches = stream(source, max_bad_share=0.5, transform=transform)
    seen = set()
    for batch in batches.batches(0, -(-len(source) // 8)):  # an epoch
        seen |= set(batch["sample_id"].tolist())
        for image, number in zip(batch["image"], batch["sample_id"], strict=True):
            assert abs(int(image[4, 4, 0]) - 3 * int(number)) <= 1
    assert seen == set(range(GOOD))
    expected = {}
    for _, reason in BAD.values():
        expected[reason] = expected.get(reason, 0) + 1
    assert batches.skipped == expected
    for name, (_, reason) in BAD.items():
        (line,) = [line for line in warnings_logged if line.startswith(f"Skipped {name}: {reason}")]


@pytest.mark.parametrize(
    "broken", [{"jpg": HTML, "txt": "a dog"}, {"jpg": picture(1), "json": "{}"}]
)
def test_when_everything_is_bad_the_run_stops_in_seconds(tmp_path, broken, warnings_logged):
    members = [member for i in range(2000) for member in record(f"{i:04d}", broken)]
    batches = stream(WebDatasetSource(write_tar(tmp_path / "x.tar", members)))
    start = time.process_time()
    with pytest.raises(ValueError, match="x.*(unusable|can be used)") as caught:
        for _ in batches.batches(0, 10):
            pass
    assert time.process_time() - start < 5
    assert re.search("unreadable image|missing caption", str(caught.value))
    assert len(warnings_logged) < 200


def test_an_epoch_smaller_than_a_batch_repeats(tmp_path):
    batches = stream(WebDatasetSource(write_tar(tmp_path / "x.tar", good(5))))
    seen = [i for batch in batches.batches(0, 5) for i in batch["sample_id"].tolist()]
    assert len(seen) == 40
    for epoch in range(8):
        assert sorted(seen[5 * epoch : 5 * epoch + 5]) == list(range(5))


def test_fewer_shards_than_hosts_is_no_matter(tmp_path):
    # Hosts share out places of one order over all records, not shards.
    source = WebDatasetSource(write_tar(tmp_path / "only.tar", good(20)))
    whole = list(stream(source).batches(0, 5))
    tokenizer = Tokenizer.train(["a dog 0123456789"], 50)
    hosts = [
        list(
            TrainingBatches(source, tokenizer, PipelineOptions(**OPTIONS), groups=[host]).batches(
                0, 5
            )
        )
        for host in range(4)
    ]
    for step, batch in enumerate(whole):
        rows = np.concatenate([host[step]["sample_id"] for host in hosts])
        np.testing.assert_array_equal(rows, batch["sample_id"])


def test_duplicate_keys_across_shards_are_records_of_their_own(tmp_path):
    for shard in range(2):
        write_tar(
            tmp_path / f"{shard}.tar", record("same", {"jpg": picture(9), "txt": f"in {shard}"})
        )
    source = WebDatasetSource(f"{tmp_path}/*.tar")
    assert [(r.sample_id, r.key, r.captions[0]) for r in source] == [
        (0, "same", "in 0"),
        (1, "same", "in 1"),
    ]


def test_long_captions_are_kept_up_to_a_limit(tmp_path):
    texts = ["a" * MAX_CAPTION_CHARS, "b" * (MAX_CAPTION_CHARS + 1), "short"]
    fields = json.dumps({"captions": texts, "phrases": [["a"], ["b"], ["c", "d" * 100_000]]})
    path = write_tar(tmp_path / "x.tar", record("k", {"jpg": b"x", "json": fields}))
    found = WebDatasetSource(path)[0]
    assert found.captions == (texts[0], "short")
    assert found.phrases == (("a",), ("c",))


def test_cmyk_jpegs_have_their_colours():
    # Without black ink, RGB is the complement of CMY; full black is black.
    for inks, expected in [((255, 0, 55, 0), (0, 255, 200)), ((0, 0, 0, 255), (0, 0, 0))]:
        data = encode(Image.new("CMYK", (16, 16), inks), "JPEG", quality=95)
        for transform in ("squash", "random_resized_crop"):
            rng = np.random.default_rng(0)
            pixels = transform_image(data, "k", size=4, transform=transform, rng=rng)
            np.testing.assert_allclose(pixels[2, 2].astype(int), expected, atol=4)


def test_sixteen_bit_pngs_keep_their_high_byte():
    values = [0x0000, 0x1234, 0x80FF, 0xFF00, 0xFFFF]
    grey = b"\0" + b"".join(struct.pack(">H", v) for v in values)
    pixels = np.asarray(decode_image(png(5, 1, 16, 0, [grey]), "k")).astype(int)
    for channel in range(3):
        np.testing.assert_allclose(pixels[0, :, channel], [v / 257 for v in values], atol=1)
    colour = b"\0" + b"".join(struct.pack(">HHH", v, 0, 0xFFFF - v) for v in values)
    pixels = np.asarray(decode_image(png(5, 1, 16, 2, [colour]), "k")).astype(int)
    np.testing.assert_allclose(pixels[0, :, 0], [v / 257 for v in values], atol=1)
    np.testing.assert_allclose(pixels[0, :, 2], [255 - v / 257 for v in values], atol=1)


def test_an_animated_webp_is_its_first_frame():
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(1, 6)]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    for transform in ("squash", "center_crop"):
        pixels = transform_image(data, "k", size=8, transform=transform)
        np.testing.assert_array_equal(pixels, np.full((8, 8, 3), (40, 0, 0)))


@pytest.fixture(scope="module")
def bombs():
    """Files of a few kilobytes with the size of a stadium screen."""
    row = b"\0" + bytes(30_000 // 8)
    jpeg = bytearray(picture(1, size=(16, 16)))
    place = jpeg.index(b"\xff\xc0") + 5  # in the frame header: height and width
    jpeg[place : place + 4] = struct.pack(">HH", 30_000, 30_000)
    gif = bytearray(encode(Image.new("P", (4, 4)), "GIF"))
    gif[6:10] = struct.pack("<HH", 30_000, 30_000)
    bmp = bytearray(encode(Image.new("RGB", (4, 4)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 30_000, 30_000)
    webp = bytearray(
        encode(
            Image.new("RGBA", (4, 4)),
            "WEBP",
            save_all=True,
            lossless=True,
            append_images=[Image.new("RGBA", (4, 4), "red")],
        )
    )
    place = webp.index(b"VP8X") + 12
    webp[place : place + 6] = (16_382).to_bytes(3, "little") * 2
    return {
        "png": png(30_000, 30_000, 1, 0, (row for _ in range(30_000))),
        "jpeg": bytes(jpeg),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "webp": bytes(webp),
    }


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
def test_a_bomb_is_refused_before_a_pixel_is_decoded(bombs, kind, monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert len(bombs[kind]) < 500_000
    for transform in ("squash", "random_resized_crop"):
        with pytest.raises(BadRecord) as caught:
            rng = np.random.default_rng(0)
            transform_image(bombs[kind], "k", size=8, transform=transform, rng=rng)
        assert caught.value.reason == "image too large"


def test_the_limit_of_pixels_is_an_option(bombs):
    assert 30_000**2 > MAX_PIXELS >= 8_000**2
    small = picture(7, size=(20, 10))
    with pytest.raises(BadRecord, match="20 x 10, over 199 pixels"):
        transform_image(small, "k", size=8, transform="squash", max_pixels=199)
    transform_image(small, "k", size=8, transform="squash", max_pixels=200)


def test_compressed_text_in_a_png_does_not_fill_the_memory():
    text = b"Comment\0\0" + zlib.compress(bytes(80_000_000), 1)
    data = png(1, 1, 8, 0, [b"\0\x07"], chunks=[(b"zTXt", text)])
    with pytest.raises(BadRecord, match="unreadable image"):
        decode_image(data, "k")


def test_nothing_in_the_data_package_loads_pickles():
    folder = pathlib.Path(ccl_jax.data.__file__).parent
    pattern = r"pickle\.loads?\b|allow_pickle\s*=\s*True|torch\.load|joblib|np\.load\([^)]*\)"
    found = [
        f"{path.name}: {match}"
        for path in folder.rglob("*.py")
        for match in re.findall(pattern, path.read_text(encoding="utf-8"))
        if "allow_pickle=False" not in match
    ]
    assert not found
