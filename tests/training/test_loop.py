"""The run as a whole: what it leaves, how it resumes, what it refuses."""

import json
import os
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

from ccl_jax.training import loop, metrics
from tests.training.conftest import add_member, square

CCL = {
    "siglip": {"weight": 1.0},
    "npc": {"weight": 1.0, "duplicates": "positive"},
    "xac": {"weight": 0.1, "sharpness": 10.0},
}


def final_params(config, workdir):
    return jax.tree.leaves(loop.load_predictor(config, workdir).params)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Workdir of a whole run; made by the first test that asks, shared by the others."""
    return str(tmp_path_factory.mktemp("undisturbed") / "run")


def test_a_run_leaves_what_the_readme_says(make_config, undisturbed, capsys):
    config = make_config(**CCL)
    results = loop.run(config, undisturbed)
    assert list(results) == ["npc+siglip+xac"]
    present = set(os.listdir(undisturbed))
    assert {"checkpoints", "config.json", "metrics.jsonl", "report.md", "tensorboard"} <= present
    with open(os.path.join(undisturbed, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        parts = line["loss/siglip"] + line["loss/npc"] + 0.1 * line["loss/xac"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    printed = capsys.readouterr()
    assert "step 6/6" in printed.err and "images/s" in printed.err and "left" in printed.err
    assert "image_to_text_recall@1" in printed.out


def test_a_second_call_repeats_nothing(make_config, undisturbed, capsys, monkeypatch):
    config = make_config(**CCL)
    first = loop.run(config, undisturbed)
    monkeypatch.setattr(loop, "create_trainer", None)  # any training would fail
    assert loop.run(config, undisturbed) == first
    assert "Nothing to do" in capsys.readouterr().err


def test_two_runs_in_one_workdir_are_refused_while_both_live(make_config, undisturbed):
    config = make_config(**CCL)
    loop.run(config, undisturbed)
    hold = (
        "import sys; from ccl_jax.training.workdir_lock import locked\n"
        "with locked(sys.argv[1]): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, undisturbed]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=f"another run.*process {other.pid} on .*--workdir"):
            loop.run(config, undisturbed)
        other.kill()
    loop.run(config, undisturbed)


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    make_config, undisturbed, tmp_path, monkeypatch
):
    config, workdir = make_config(**CCL), str(tmp_path / "run")
    loop.run(config, undisturbed)
    show = metrics.Progress.show

    def interrupt(self, step, loss):
        if step == 5:
            raise KeyboardInterrupt
        return show(self, step, loss)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Progress, "show", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loop.run(config, workdir)
    loop.run(config, workdir)
    for whole, resumed in zip(
        final_params(config, undisturbed), final_params(config, workdir), strict=True
    ):
        np.testing.assert_array_equal(whole, resumed)
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        steps = [json.loads(line)["step"] for line in file]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_evaluate_alone_repeats_the_result_of_the_run(make_config, undisturbed):
    results = loop.run(make_config(**CCL), undisturbed)
    assert loop.evaluate(undisturbed) == results


def test_a_workdir_of_another_config_is_refused(make_config, undisturbed):
    config = make_config(**CCL)
    loop.run(config, undisturbed)
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"config\.optimizer\.learning_rate: 0\.001 -> 0\.5"):
        loop.run(config, undisturbed)


def test_runs_are_compared_in_order_with_the_same_data(make_config, tmp_path):
    config = make_config()
    with config.unlocked():
        config.run_order = ("siglip", "clip")
        config.runs = {
            "clip": {"objective": {"clip": {"weight": 1.0}}},
            "siglip": {"objective": {"siglip": {"weight": 1.0}}},
        }
    config.train.steps = 3
    results = loop.run(config, str(tmp_path))
    assert list(results) == ["siglip", "clip"]
    report = (tmp_path / "report.md").read_text()
    assert report.index("siglip") < report.index("clip")
    # Evaluating alone reads the config back from the workdir.
    assert list(loop.evaluate(str(tmp_path))) == ["siglip", "clip"]


def test_a_bad_record_is_skipped_and_told(make_config, tmp_path):
    path = tmp_path / "some_bad.tar"
    with tarfile.open(path, "w") as tar:
        for index in range(24):
            good = index != 7
            add_member(tar, f"{index:03}.png", square((9, 9, index)) if good else b"<html>")
            add_member(tar, f"{index:03}.txt", b"a dark square")
    config = make_config()
    config.data.source.path = str(path)
    config.train.steps = 3
    loop.run(config, str(tmp_path / "run"))
    done = json.loads((tmp_path / "run" / "results.json").read_text())
    assert done["skipped_records"] == {"unreadable image": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.data.update({"batch_size": 20}), "batch_size = 20 does not divide"),
        (lambda c: c.data.source.update({"path": "nowhere/x-*.tar"}), "nowhere"),
        (lambda c: c.objective.update({"sigclip": {}}), "did you mean 'siglip'"),
        (lambda c: c.objective.siglip.update({"wait": 1.0}), "no option 'wait'"),
        (lambda c: c.model.update({"preset": "B/61"}), "did you mean 'B/16'"),
        (lambda c: c.model.image.update({"widht": 8}), "did you mean 'width'"),
        (lambda c: c.data.update({"transform": "crop"}), "crop"),
        (lambda c: c.optimizer.update({"warmup_steps": 6}), "warmup_steps = 6"),
        (lambda c: c.evaluators.retrieval.update({"evaluator": "retrival"}), "'retrieval'"),
        (lambda c: c.evaluators.retrieval.update({"limits": 3}), "'limits'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_its_name(
    make_config, tmp_path, change, message
):
    config = make_config()
    with config.unlocked():
        change(config)
    with pytest.raises(ValueError, match=message):
        loop.run(config, str(tmp_path / "run"))


def test_a_tar_without_images_is_refused(make_config, tmp_path):
    path = tmp_path / "texts.tar"
    with tarfile.open(path, "w") as tar:
        add_member(tar, "0.txt", b"a caption")
    config = make_config()
    config.data.source.path = str(path)
    with pytest.raises(ValueError, match="texts.tar holds no"):
        loop.run(config, str(tmp_path / "run"))


def test_evaluating_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        loop.evaluate(str(tmp_path))
