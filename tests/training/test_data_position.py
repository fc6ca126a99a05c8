"""A run keeps its place in the data beside its checkpoints, and refuses to lose it unnoticed."""

import json
import os
import tarfile

import pytest

from ccl_jax.training import loop
from tests.training.conftest import add_member, square


@pytest.mark.slow
def test_a_run_whose_data_grew_is_refused(make_config, tmp_path):
    tar, workdir = str(tmp_path / "squares.tar"), str(tmp_path / "run")

    def write(count):
        with tarfile.open(tar, "w") as archive:
            for number in range(count):
                add_member(archive, f"{number:03}.png", square((9, 9, number)))
                add_member(archive, f"{number:03}.txt", b"a dark square")

    write(24)
    config = make_config()
    config.data.source.path = tar
    config.train.steps = 3
    loop.run(config, workdir)
    with open(os.path.join(workdir, "data_position.json"), encoding="utf-8") as file:
        saved = json.load(file)
    assert (saved["source"], saved["records"], saved["seed"]) == ("squares", 24, 0)
    os.remove(os.path.join(workdir, "results.json"))  # as if it had been killed before its end
    write(25)
    with pytest.raises(ValueError, match="records: 24, now 25.*new workdir"):
        loop.run(config, workdir)
