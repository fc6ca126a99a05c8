"""Checkpoints: what stays, what is verified, what is told when they cannot be written."""

import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.training import checkpoint_tools, checkpoints
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.sharding import create_mesh, sharded
from ccl_jax.training.step import TrainState


def state(step: int) -> TrainState:
    params = {"w": jnp.arange(64.0).reshape(8, 8) + step, "b": jnp.ones(5, jnp.bfloat16) * step}
    moments = ({"mu": {"w": jnp.ones((8, 8))}, "count": jnp.asarray(step)}, ())
    return TrainState(jnp.asarray(step), params, moments, None, jnp.zeros(2, jnp.int32))


def saved(workdir, steps, **options) -> Checkpoints:
    opened = Checkpoints(str(workdir), pauses=(0.01,), **options)
    for step in steps:
        opened.save(state(step), position={"step": step})
    opened.close()
    return opened


def files(folder: str):
    return [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]


def test_the_latest_stay_and_every_third(tmp_path):
    folder = saved(tmp_path, range(1, 9), keep=2, keep_every=3).folder
    assert checkpoints.complete_steps(folder) == [3, 6, 7, 8]


def test_the_best_by_a_metric_stays_also_for_a_run_that_goes_on(tmp_path):
    opened = Checkpoints(str(tmp_path), 1, best="recall")
    for step, recall in enumerate((10.0, 30.0, 20.0), 1):
        opened.save(state(step), {"recall": recall, "other": -recall})
    opened.close()
    opened = Checkpoints(str(tmp_path), 1, best="recall")
    assert (opened.best, opened.latest) == (2, 3)
    opened.save(state(4), {"recall": 25.0})
    opened.save(state(5))  # no evaluation at this step
    opened.close()
    assert checkpoints.complete_steps(opened.folder) == [2, 5]


def test_a_state_comes_back_on_another_mesh(tmp_path):
    saved(tmp_path, [3])
    placement = sharded(create_mesh(shape={"data": 2, "fsdp": 4}))
    like = jax.eval_shape(lambda: state(0))
    like.params["w"] = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=placement)
    opened = Checkpoints(str(tmp_path))
    found = opened.restore(like)
    opened.close()
    assert found.params["w"].sharding == placement
    np.testing.assert_array_equal(found.params["w"], state(3).params["w"])
    assert found.params["b"].dtype == jnp.bfloat16
    assert checkpoints.read_facts(opened.folder, 3)["data_position"] == {"step": 3}


def test_checksums_of_devices_and_files_agree_however_arrays_are_split(tmp_path):
    whole = state(7)
    placement = sharded(create_mesh())
    split = whole.replace(params=whole.params | {"w": jax.device_put(whole.params["w"], placement)})
    expected = np.asarray(whole.params["w"]).view(np.uint32).sum(dtype=np.uint32)
    assert checkpoints.checksums(split)["params/w"] == expected
    assert checkpoints.checksums(split) == checkpoints.checksums(whole)
    folder = saved(tmp_path, [7]).folder
    assert checkpoints.verify(folder, 7) == len(checkpoints.checksums(whole))


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    folder = saved(tmp_path, [2]).folder
    found = 0
    for path in files(os.path.join(folder, "2", "state")):
        data = path.read_bytes()
        if not data:
            continue
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        try:
            checkpoints.verify(folder, 2)
        except ValueError as error:
            assert "step 2" in str(error)
            found += 1
        path.write_bytes(data)
    assert found  # at least the file that holds the arrays
    assert checkpoints.verify(folder, 2)


def test_arrays_that_differ_from_what_was_saved_are_named(tmp_path):
    folder = saved(tmp_path, [2]).folder
    expected = checkpoints.checksums(state(3)) | {"opt_state/0/count": 2, "step": 2}
    with pytest.raises(ValueError, match="2 of 6 arrays differ.*params/b"):
        checkpoints.verify(folder, 2, expected)


def test_a_folder_removed_while_the_run_goes_on_is_made_again(tmp_path):
    opened = Checkpoints(str(tmp_path), pauses=(0.01,))
    opened.save(state(1))
    opened.save(state(2))
    shutil.rmtree(opened.folder, ignore_errors=True)  # a save may be writing into it
    opened.save(state(3))
    opened.save(state(4))
    opened.close()
    assert checkpoints.complete_steps(opened.folder)[-1] == 4
    assert checkpoints.verify(opened.folder, 4)


def test_a_write_that_fails_is_tried_again_then_told(tmp_path, monkeypatch):
    opened = Checkpoints(str(tmp_path), pauses=(0.01, 0.01))
    opened.save(state(1))
    calls = []

    def full(*_):
        calls.append(1)
        raise OSError(28, "No space left on device")

    real = opened._begin
    monkeypatch.setattr(opened, "_begin", full)
    with pytest.raises(ValueError, match="step 2 .*no space left.*continues at step 1"):
        opened.save(state(2))
    assert len(calls) == 3
    monkeypatch.setattr(opened, "_begin", lambda *a: real(*a) if len(calls) > 3 else full())
    opened.save(state(3))  # the second attempt goes through
    opened.close()
    assert checkpoints.complete_steps(opened.folder) == [1, 3]


def test_a_place_that_cannot_be_a_folder_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(ValueError, match="cannot use .*checkpoints"):
        Checkpoints(str(tmp_path), pauses=(0.01,))


def test_missing_checkpoints_are_told(tmp_path):
    opened = Checkpoints(str(tmp_path))
    with pytest.raises(ValueError, match="no checkpoint in"):
        opened.restore(state(0))
    opened.save(state(5))
    with pytest.raises(ValueError, match="no checkpoint of step 4.* there are 5"):
        opened.restore(state(0), step=4)
    other = state(0).replace(params={"other": jnp.zeros(3)})
    with pytest.raises(ValueError, match="step 5 .*does not hold this state"):
        opened.restore(other)
    opened.close()


def test_the_tools_list_describe_verify_and_prune(tmp_path):
    folder = saved(tmp_path, [1, 2, 3], keep=3).folder
    lines = checkpoint_tools.overview(str(tmp_path)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    described = checkpoint_tools.describe(str(tmp_path)).splitlines()
    assert "data step: 3" in described
    assert "params/w  8 x 8  float32  3 to 66" in described
    assert list(checkpoint_tools.verify(str(tmp_path))) == [(1, ""), (2, ""), (3, "")]
    assert checkpoint_tools.prune(str(tmp_path), 1, dry_run=True) == [1, 2]
    assert checkpoints.complete_steps(folder) == [1, 2, 3]
    assert checkpoint_tools.prune(str(tmp_path), 1) == [1, 2]
    assert checkpoints.complete_steps(folder) == [3]
    with pytest.raises(ValueError, match="no checkpoint of step 9; there are 3"):
        checkpoint_tools.describe(str(tmp_path), 9)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint_tools.overview(str(tmp_path / "elsewhere"))
