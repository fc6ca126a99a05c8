"""The command from tars to Parquet, and errors in one line."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_ids import swap_ids


@pytest.mark.slow
def test_tars_to_npy(shared, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(shared / "golden" / "hf_siglip_tiny", model)
    os.chmod(model, 0o755)
    swap_ids(Tokenizer.train(["a red square", "a blue one"], 60), 0, 1).save(str(model))
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for name, colour in (("a", "red"), ("b", "blue")):
            file = io.BytesIO()
            Image.new("RGB", (20, 20), colour).save(file, "PNG")
            for member, data in {
                f"{name}.png": file.getvalue(),
                f"{name}.json": json.dumps({"captions": [f"a {colour} square"]}).encode(),
            }.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    command = [sys.executable, "-m", "ccl_jax.tools.embed", "--model", str(model), "--batch_size",
               "8", "--format", "npy", "--output", str(tmp_path / "out")]  # fmt: skip
    found = subprocess.run(
        [*command, "--source", str(tmp_path / "some.tar")],
        capture_output=True, text=True, env=os.environ, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "2 images, 2 texts in 1 shards" in found.stdout
    rows = np.load(tmp_path / "out/image-00000.npy")
    assert rows.shape == (2, 32) and not np.allclose(rows[0], rows[1])
    found = subprocess.run(
        [*command, "--source", str(tmp_path / "other.tar")],
        capture_output=True, text=True, env=os.environ, check=False,
    )  # fmt: skip
    assert found.returncode == 1 and "nothing matches" in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
