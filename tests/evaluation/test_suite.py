"""The suite: what is skipped and named, and the tables that it leaves."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from ccl_jax.evaluation import suite, tables
from ccl_jax.evaluation.benchmarks import BENCHMARKS, SUITES, MissingData
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.results import BenchmarkResult, Image, Items, ratio_metric


@dataclasses.dataclass
class Coins:
    """A benchmark whose items come out as each model was told to."""

    name: str
    outcomes: dict
    error: Exception | None = None
    opened: int = 0

    def open(self, data_dir):
        self.opened += 1
        if self.error:
            raise self.error
        return data_dir

    def run(self, model, data):
        right = np.asarray(self.outcomes[model.name], float)
        clusters = np.arange(len(right))
        image = Image("one | two.jpg", "id", lambda: b"")
        items = Items(
            keys=tuple(f"item {i}" for i in clusters),
            groups=("all",) * len(right),
            images=((image,),) * len(right),
            texts=(("right, text", 'wrong "text"'),) * len(right),
            clusters=clusters,
            outcomes={"right": right},
            scores=[np.zeros((1, 2), np.float32)] * len(right),
            margin=right - 0.5,
        )
        metrics = {
            "accuracy": ratio_metric(right, clusters, total=len(right) + 2, chance=50),
            "first_half": ratio_metric(
                right[: len(right) // 2], clusters[: len(right) // 2], total=len(right) // 2
            ),
        }
        left_out = {"missing image": ("item x (x.jpg)", "item y (y.jpg)")}
        return BenchmarkResult(self.name, metrics, items, left_out, {"split": "test"}, "accuracy")


@pytest.fixture
def models(fake):
    return [EvaluatedModel(name, fake.Predictor()) for name in ("a", "b")]


@pytest.fixture
def coins():
    rng = np.random.default_rng(0)
    a = rng.random(200) < 0.5
    return Coins("coins", {"a": a, "b": a | (rng.random(200) < 0.4)})


def run(models, tmp_path, *benchmarks):
    told = []
    table = {benchmark.name: benchmark for benchmark in benchmarks}
    return suite.run_suite(models, list(table), tmp_path, benchmarks=table, tell=told.append), told


def test_missing_and_damaged_benchmarks_are_named_and_skipped(models, coins, tmp_path):
    gone = Coins("gone", {}, MissingData("expected gone/x.json"))
    damaged = Coins("damaged", {}, ValueError("x.json\nis cut"))
    result, told = run(models, tmp_path, gone, damaged, coins)
    assert result.skipped == {"gone": "expected gone/x.json", "damaged": "x.json is cut"}
    assert list(result.results) == ["coins"] and coins.opened == 1
    assert told[0] == "gone: skipped, expected gone/x.json"
    assert told[2].startswith("coins, a: accuracy ") and "(200 of 202)" in told[2]


def test_a_model_that_cannot_take_part_is_named(models, coins, tmp_path):
    coins.outcomes = {"a": coins.outcomes["a"]}
    coins.run = lambda model, data: (
        Coins.run(coins, model, data) if model.name == "a" else _refuse()
    )
    result, _ = run(models, tmp_path, coins)
    assert result.skipped == {"coins (b)": "no patch embedder"}
    assert list(result.results["coins"]) == ["a"]


def _refuse():
    raise ValueError("no patch embedder")


def test_nothing_could_be_run(models, tmp_path):
    with pytest.raises(ValueError, match="no benchmark could be run .*gone: expected"):
        run(models, tmp_path, Coins("gone", {}, MissingData("expected x")))
    with pytest.raises(ValueError, match="no folder"):
        run(models, tmp_path / "nowhere", Coins("gone", {}))
    with pytest.raises(ValueError, match="names of their own"):
        run([models[0], models[0]], tmp_path)


def test_names_of_suites_and_benchmarks():
    assert suite.chosen_benchmarks(["valse", "compositionality"])[0] == "valse"
    assert len(suite.chosen_benchmarks(["standard", "valse"])) == len(SUITES["standard"])
    assert set(SUITES["standard"]) < set(BENCHMARKS)
    with pytest.raises(ValueError, match="did you mean 'sugarcrepe'"):
        suite.chosen_benchmarks(["sugercrepe"])
    with pytest.raises(ValueError, match="no benchmark chosen"):
        suite.chosen_benchmarks([])


def test_every_benchmark_is_in_a_suite_under_its_name():
    assert set().union(*SUITES.values()) == set(BENCHMARKS)
    assert all(benchmark.name == name for name, benchmark in BENCHMARKS.items())


def test_tables(models, coins, tmp_path):
    result, _ = run(models, tmp_path, coins)
    rows = tables.rows_of(result, resamples=500, permutations=999)
    assert [(row.metric, row.headline) for row in rows] == [
        ("accuracy", True),
        ("first_half", False),
    ]
    first, second = rows[0].cells["a"], rows[0].cells["b"]
    assert first.comparison is None and second.comparison.difference > 0
    assert second.p_holm == pytest.approx(2 * second.comparison.p_value)
    assert second.interval.value - first.interval.value == pytest.approx(
        second.comparison.difference
    )

    tables.write_tables(result, rows, tmp_path / "out")
    written = json.loads((tmp_path / "out/results.json").read_text())
    cell = written["benchmarks"]["coins"]["metrics"]["accuracy"]["models"]["b"]
    assert cell["value"] == second.interval.value and cell["low"] == second.interval.low
    assert (cell["items"], cell["total"]) == (200, 202)
    assert cell["difference_low"] == second.comparison.low
    assert written["benchmarks"]["coins"]["left_out"]["a"] == {
        "missing image": ["item x (x.jpg)", "item y (y.jpg)"]
    }
    with open(tmp_path / "out/results.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4
    assert float(table[1]["difference"]) == pytest.approx(second.comparison.difference)
    assert table[0]["difference"] == "" and table[0]["chance"] == "50"
    with open(tmp_path / "out/items/coins.csv", newline="", encoding="utf-8") as file:
        items = list(csv.DictReader(file))
    assert len(items) == 200 and items[0]["text_0"] == "right, text"
    assert [float(row["a: right"]) for row in items] == coins.outcomes["a"].astype(float).tolist()
    assert items[0]["a: scores"] == "0 0"
    text = (tmp_path / "out/results.md").read_text()
    assert "| accuracy | 200 / 202 | 50.0 |" in text and "*, p = 0.001 |" in text
    assert "2 x missing image: item x (x.jpg)" in text


def test_scores_as_text():
    for scores in ([[0.25, -0.125]], [[0.25, -0.5, 3.0], [0.0, 1.0, -1e-4]], [7.0]):
        text = tables.scores_to_text(np.array(scores, np.float32))
        np.testing.assert_allclose(tables.scores_from_text(text), np.atleast_2d(scores), rtol=1e-4)
    with pytest.raises(ValueError):
        tables.scores_from_text("0.1 x")


def test_the_headline_is_one_that_all_models_have(models, coins, tmp_path):
    def run_coins(model, data):
        found = Coins.run(coins, model, data)
        if model.name == "b":
            metrics = {"first_half": found.metrics["first_half"]}
            found = dataclasses.replace(found, metrics=metrics, headline="first_half")
        return found

    coins.run = run_coins
    result, _ = run(models, tmp_path, coins)
    rows = tables.rows_of(result, resamples=50, permutations=9)
    assert [row.metric for row in rows if row.headline] == ["first_half"]
    assert tables.to_json(result, rows)["benchmarks"]["coins"]["headline"] == "first_half"


def test_ties_are_told_below_the_table():
    settings = {
        "one": {"a": {"ties": "3 of 9 items"}, "b": {"ties": "0 of 9 items"}},
        "two": {"a": {"ties": "1 of 4 items"}, "b": {"ties": "1 of 4 items"}},
        "three": {"a": {"split": "test"}, "b": {}},
    }
    assert tables.ties_in(settings).endswith("tie: one 3 of 9 items (a); two 1 of 4 items.")
    assert tables.ties_in({"one": {"a": {"ties": "0 of 9 items"}}}) == ""


def test_what_differs_between_models_says_whose_it_is(models, coins, tmp_path):
    def run_coins(model, data):
        found = Coins.run(coins, model, data)
        left_out = {**found.left_out, "cut": ("item z",)} if model.name == "b" else found.left_out
        settings = {"split": "test", "ties": model.name}
        return dataclasses.replace(found, settings=settings, left_out=left_out)

    coins.run = run_coins
    result, _ = run(models, tmp_path, coins)
    text = tables.to_markdown(result, tables.rows_of(result, resamples=50, permutations=9))
    assert "| coins: ties (a) | a |" in text and "| coins: ties (b) | b |" in text
    assert "| coins: split | test |" in text and text.count("coins: split") == 1
    assert "- coins: 1 x cut: item z (b)" in text
    assert text.count("2 x missing image: item x (x.jpg), item y (y.jpg)\n") == 1


def test_other_items_are_not_compared(models, coins, tmp_path):
    coins.outcomes["b"] = coins.outcomes["b"][:-1]
    result, _ = run(models, tmp_path, coins)
    (accuracy, _) = tables.rows_of(result, resamples=50)
    assert accuracy.cells["b"].comparison is None and np.isnan(accuracy.cells["b"].p_holm)
    assert tables.to_json(result, [accuracy])  # NaN is no JSON
    json.dumps(tables.to_json(result, [accuracy]), allow_nan=False)


def test_a_folder_that_cannot_be_written(models, coins, tmp_path):
    (tmp_path / "file").write_text("")
    result, _ = run(models, tmp_path, coins)
    with pytest.raises(ValueError, match="--output"):
        tables.write_tables(result, [], tmp_path / "file")
