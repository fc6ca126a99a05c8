"""Checkpoints: what stays, what is verified, what is told when they cannot be written."""

import contextlib
import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.training import checkpoint_files as files
from ccl_jax.training import checkpoint_tools, checkpoints
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.sharding import create_mesh, replicated, sharded
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


def paths(folder: str):
    return [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]


def test_the_latest_stay_and_every_third(tmp_path):
    folder = saved(tmp_path, range(1, 9), keep=2, keep_every=3).folder
    assert files.complete_steps(folder) == [3, 6, 7, 8]


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
    assert files.complete_steps(opened.folder) == [2, 5]


def test_a_state_comes_back_on_another_mesh(tmp_path):
    saved(tmp_path, [3])
    mesh = create_mesh(shape={"data": 2, "fsdp": 4})
    placement = sharded(mesh)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        jax.eval_shape(lambda: state(0)),
    )
    like.params["w"] = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=placement)
    opened = Checkpoints(str(tmp_path))
    found = opened.restore(like)
    opened.close()
    assert found.params["w"].sharding == placement
    np.testing.assert_array_equal(found.params["w"], state(3).params["w"])
    assert found.params["b"].dtype == jnp.bfloat16
    assert files.read_facts(opened.folder, 3)["data_position"] == {"step": 3}


def test_checksums_of_devices_and_files_agree_however_arrays_are_split(tmp_path):
    whole = state(7)
    placement = sharded(create_mesh())
    split = whole.replace(params=whole.params | {"w": jax.device_put(whole.params["w"], placement)})
    expected = np.asarray(whole.params["w"]).view(np.uint32).sum(dtype=np.uint32)
    assert files.checksums(split)["params/w"] == expected
    assert files.checksums(split) == files.checksums(whole)
    folder = saved(tmp_path, [7]).folder
    assert files.verify(folder, 7) == len(files.checksums(whole))


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    folder = saved(tmp_path, [2]).folder
    found = 0
    for path in paths(os.path.join(folder, "2", "state")):
        data = path.read_bytes()
        if not data:
            continue
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        try:
            files.verify(folder, 2)
        except ValueError as error:
            assert "step 2" in str(error)
            found += 1
        path.write_bytes(data)
    assert found  # at least the file that holds the arrays
    assert files.verify(folder, 2)


def test_arrays_that_differ_from_what_was_saved_are_named(tmp_path):
    folder = saved(tmp_path, [2]).folder
    expected = files.checksums(state(3)) | {"opt_state/0/count": 2, "step": 2}
    with pytest.raises(ValueError, match="2 of 6 arrays differ.*params/b"):
        files.verify(folder, 2, expected)


def test_a_folder_removed_while_the_run_goes_on_is_made_again(tmp_path):
    opened = Checkpoints(str(tmp_path), pauses=(0.01,))
    opened.save(state(1))
    opened.save(state(2))
    shutil.rmtree(opened.folder, ignore_errors=True)  # a save may be writing into it
    opened.save(state(3))
    opened.save(state(4))
    opened.close()
    assert files.complete_steps(opened.folder)[-1] == 4
    assert files.verify(opened.folder, 4)


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
    assert files.complete_steps(opened.folder) == [1, 3]


def damage(folder, step):
    for path in paths(os.path.join(folder, str(step), "state")):
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path):
    folder = saved(tmp_path, [1, 2, 3], keep=3).folder
    damage(folder, 3)
    opened = Checkpoints(str(tmp_path), 3, pauses=())
    with pytest.raises(ValueError, match="step 3 "):
        opened.restore(state(0))
    found, said = opened.resume(state(0))
    assert int(found.step) == 2
    np.testing.assert_array_equal(found.params["w"], state(2).params["w"])
    (line,) = said
    assert "step 3 " in line and checkpoints.DAMAGED in line
    assert files.complete_steps(str(tmp_path / checkpoints.DAMAGED)) == [3]
    opened.save(state(3))  # the run comes by again
    opened.close()
    assert files.complete_steps(folder) == [1, 2, 3]
    assert files.verify(folder, 3)


def test_an_array_that_was_changed_whole_is_found_in_reading(tmp_path):
    """Its files are sound, so that only the checksum can tell."""
    opened = Checkpoints(str(tmp_path), pauses=())
    opened.save(state(1))
    opened.close()
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "other" / "checkpoints" / "1")
    elsewhere = saved(tmp_path / "more", [2])
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "1" / "state")
    shutil.copytree(
        os.path.join(elsewhere.folder, "2", "state"),
        tmp_path / "other" / "checkpoints" / "1" / "state",
    )
    opened = Checkpoints(str(tmp_path / "other"), read_only=True, pauses=())
    with pytest.raises(ValueError, match="is damaged: .* of 6 arrays differ"):
        opened.restore(state(0))
    opened.close()


def test_without_a_whole_checkpoint_nothing_is_moved(tmp_path):
    folder = saved(tmp_path, [1, 2]).folder
    damage(folder, 1)
    damage(folder, 2)
    opened = Checkpoints(str(tmp_path), pauses=())
    with pytest.raises(ValueError, match="step 2 "):
        opened.resume(state(0))
    opened.close()
    assert files.complete_steps(folder) == [1, 2]


def test_what_a_killed_save_left_is_removed_but_not_by_a_reader(tmp_path):
    folder = saved(tmp_path, [1]).folder
    left = pathlib.Path(folder) / "2.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    Checkpoints(str(tmp_path), read_only=True).close()
    assert left.is_dir()
    opened = Checkpoints(str(tmp_path))
    assert opened.latest == 1
    opened.save(state(2))
    opened.close()
    assert files.complete_steps(folder) == [1, 2]
    assert not left.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MB; a function that makes it another size, or read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")

    def remount(option):
        subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)

    yield place, remount
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_in_a_line_and_nothing_is_lost(small_disk, capsys, caplog):
    place, remount = small_disk
    saved(place, [1, 2], keep=1)
    opened = Checkpoints(str(place), 1, pauses=(0.01,))
    filler = place / "filler"
    with contextlib.suppress(OSError), open(filler, "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(ValueError, match="no space left on the device.*continues at step 2$"):
        for step in (3, 4):  # the first fails in the background
            opened.save(state(step))
    told = capsys.readouterr().err.splitlines()
    assert told and all("trying again in 0.01 s" in line for line in told)
    assert "Traceback" not in caplog.text
    filler.unlink()
    opened.save(state(5))
    opened.close()
    assert files.complete_steps(opened.folder)[-1] == 5
    assert files.verify(opened.folder, 5)


def test_a_read_only_workdir_is_told(small_disk):
    place, remount = small_disk
    remount("ro")
    with pytest.raises(ValueError, match="cannot use .*checkpoints.*Read-only"):
        Checkpoints(str(place), pauses=(0.01,))
    remount("rw")
    saved(place, [1])
    opened = Checkpoints(str(place), pauses=(0.01,))
    remount("ro")
    with pytest.raises(ValueError, match="could not be written.*[Rr]ead-only.*at step 1$"):
        for step in (3, 4):
            opened.save(state(step))


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
    for read in (opened.restore, opened.resume):
        with pytest.raises(ValueError, match=r"step 5 .*does not hold this state.*params/b is .5,"):
            read(other)
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
    assert files.complete_steps(folder) == [1, 2, 3]
    assert checkpoint_tools.prune(str(tmp_path), 1) == [1, 2]
    assert files.complete_steps(folder) == [3]
    with pytest.raises(ValueError, match="no checkpoint of step 9; there are 3"):
        checkpoint_tools.describe(str(tmp_path), 9)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint_tools.overview(str(tmp_path / "elsewhere"))
