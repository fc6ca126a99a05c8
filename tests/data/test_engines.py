"""One function over many items, in this process, in others, in threads, and by Beam."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from ccl_jax.data import engines


def write(folder, item):
    """The unit of work of these tests; of the module, so that other processes find it."""
    if item == 13:
        raise ValueError("thirteen is unusable")
    if item == 99:
        os._exit(3)
    path = pathlib.Path(folder, str(item))
    path.write_text(f"{os.getpid()} {threading.get_ident()}")


def wait_for_ever(folder, item):
    pathlib.Path(folder, str(item)).write_text(str(os.getpid()))
    time.sleep(600)


def found(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"workers": 3, "runner": engines.THREADS},
        pytest.param({"workers": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_item_is_done_once_and_told(tmp_path, options):
    told = []
    engines.run(
        functools.partial(write, tmp_path),
        range(10),
        progress=lambda done, total: told.append((done, total)),
        **options,
    )
    assert found(tmp_path) == list(range(10))
    assert told == [(i, 10) for i in range(1, 11)]
    processes = {path.read_text().split()[0] for path in tmp_path.iterdir()}
    local = options["workers"] == 1 or options.get("runner") == engines.THREADS
    assert (processes == {str(os.getpid())}) == local


def test_nothing_to_do_is_fine():
    engines.run(print, [], workers=4)


@pytest.mark.parametrize("runner", [engines.LOCAL, engines.THREADS])
def test_an_error_ends_the_run(tmp_path, runner):
    workers = 1 if runner == engines.LOCAL else 2
    with pytest.raises(ValueError, match="thirteen is unusable"):
        engines.run(
            functools.partial(write, tmp_path), [13, *range(100, 300)], workers=workers,
            runner=runner,
        )  # fmt: skip
    assert len(found(tmp_path)) < 200


@pytest.mark.slow
def test_a_dead_worker_is_no_hang(tmp_path):
    with pytest.raises(ValueError, match="a worker process died after .* run the same again"):
        engines.run(functools.partial(write, tmp_path), [1, 99, 2, 3], workers=2)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    code = f"""
import functools, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import test_engines
from ccl_jax.data import engines
if __name__ == "__main__":
    engines.run(functools.partial(test_engines.wait_for_ever, {str(tmp_path)!r}), [0, 1], workers=2)
"""
    script = tmp_path.parent / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": "."})
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 or not all(p.read_text() for p in tmp_path.iterdir()):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    workers = [int(path.read_text()) for path in tmp_path.iterdir()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # A process that ended is a zombie until whoever inherited it asks for its exit code.
    status = pathlib.Path(f"/proc/{number}/stat")
    return not status.exists() or ") Z " not in status.read_text()


def test_options_without_beam_and_bad_workers_are_refused():
    with pytest.raises(ValueError, match="are of Beam: name a Beam runner"):
        engines.run(print, [1], options=["--project=x"])
    with pytest.raises(ValueError, match="workers must be at least 1"):
        engines.run(print, [1], workers=0)


def test_without_beam_its_runners_are_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install 'ccl_jax\[beam\]'"):
        engines.run(print, [1], runner="DataflowRunner")


def test_beam_runs_the_same_function(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    told = []
    engines.run(
        functools.partial(write, str(tmp_path)),
        range(10),
        runner="DirectRunner",
        options=["--direct_num_workers=1"],
        progress=lambda done, total: told.append((done, total)),
    )
    assert found(tmp_path) == list(range(10)) and told == [(10, 10)]
    with pytest.raises(ValueError, match="NoSuchRunner"):
        engines.run(print, [1], runner="NoSuchRunner")
