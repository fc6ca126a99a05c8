"""The benchmark of the input pipeline on a few small files."""

import io
import json
import pathlib
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import input_pipeline as benchmark  # noqa: E402


@pytest.fixture
def tar(tmp_path):
    """Four smooth pictures of short side 40."""
    path = tmp_path / "pictures.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(4):
            small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
            picture = io.BytesIO()
            small.resize((50, 40), Image.Resampling.BICUBIC).save(picture, "JPEG")
            fields = json.dumps({"captions": [f"a red dog and {number} cats on a beach"]}).encode()
            for name, data in ((f"{number}.jpg", picture.getvalue()), (f"{number}.json", fields)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return str(path)


def run(tar, *more):
    sizes = ("--size", "32", "--images", "8", "--rounds", "1")
    return benchmark.main(["--tar", tar, *sizes, *more])


def test_every_candidate_is_timed_and_near_the_loop_in_pixels(tar, tmp_path, capsys):
    rows = run(tar, "--sides", "40,60", "--out", str(tmp_path / "rows.json"))
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert [row["side"] for row in rows] == [40] * 6 + [60] * 6
    assert {row["candidate"] for row in rows} >= {"Pillow loop", "images", "+ phrases, extracted"}
    for row in rows:
        assert row["images_per_second"] > 0
        # The same crops of the same pictures: another crop would be tens of levels away.
        assert row["mean"] < 0.3 and row["most"] <= 8
    assert rows[0]["times_the_loop"] == 1
    assert "of 255 from the loop's" in capsys.readouterr().out


def test_files_have_the_short_side_that_was_asked_for(tar, tmp_path):
    path = str(tmp_path / "large.tar")
    originals = benchmark.open_source("webdataset", path=tar)
    benchmark.make_tar(path, originals, 70, 8)
    source = benchmark.open_source("webdataset", path=path)
    assert len(source) == 8
    for index in range(8):
        assert min(Image.open(io.BytesIO(source[index].image)).size) == 70
        assert source[index].captions


def test_threads_are_compared_by_the_clock(tar):
    rows = run(tar, "--sides", "40", "--threads", "1,2")
    assert [row["threads"] for row in rows] == [1, 2]
