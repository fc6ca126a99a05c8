"""The table of evaluators: names, options, sources opened once."""

import inspect

import pytest

from ccl_jax.evaluation import runner


@pytest.fixture
def opened(fake):
    """(open_source, the list of calls it got)."""
    calls = []

    def open_source(kind, **options):
        calls.append((kind, options))
        return fake.Source(
            [
                fake.plain(0, "red", captions=("red",), label=0, pairs=(("swap", "red", "blue"),)),
                fake.plain(1, "blue", captions=("blue",), label=1),
            ],
            class_names=("red", "blue"),
        )

    return open_source, calls


def test_runs_everything_and_opens_sources_once(fake, opened):
    open_source, calls = opened
    source = {"kind": "scenes", "split": "validation"}
    results = runner.evaluate(
        fake.Predictor(),
        {
            "all": {"evaluator": "retrieval", "source": source},
            "one": {
                "evaluator": "retrieval",
                "source": {"split": "validation", "kind": "scenes"},
                "limit": 1,
            },
            "objects": {"evaluator": "zero_shot", "source": {"kind": "scenes", "split": "o"}},
            "pairs": {"evaluator": "compositionality", "source": source},
        },
        open_source,
    )
    assert calls == [("scenes", {"split": "validation"}), ("scenes", {"split": "o"})]
    assert results["all/image_to_text_recall@1"] == 100
    assert results["objects/top1"] == 100
    assert results["pairs/swap"] == results["pairs/mean"] == 100
    groups = dict.fromkeys(name.split("/")[0] for name in results)
    assert list(groups) == ["all", "one", "objects", "pairs"]
    assert source == {"kind": "scenes", "split": "validation"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"evaluator": "retreival", "source": {"kind": "x"}}, "did you mean 'retrieval'"),
        ({"source": {"kind": "x"}}, "no 'evaluator'"),
        ({"evaluator": "retrieval"}, "no 'source'"),
        ({"evaluator": "retrieval", "source": {"split": "x"}}, "no 'kind'"),
        (
            {"evaluator": "retrieval", "source": {"kind": "x"}, "templates": ()},
            "no option 'templates'; its options are limit, captions",
        ),
        ({"evaluator": "benchmarks", "data_dir": "x"}, "no 'names'; add one"),
        (
            {"evaluator": "benchmarks", "source": {"kind": "x"}, "data_dir": "x", "names": ()},
            "no option 'source'; its options are data_dir, names, items",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(fake, opened, entry, message):
    open_source, calls = opened
    good = {"evaluator": "retrieval", "source": {"kind": "scenes"}}
    with pytest.raises(ValueError, match=message):
        runner.evaluate(fake.Predictor(), {"good": good, "bad": entry}, open_source)
    assert not calls


def test_every_evaluator_takes_its_options_by_keyword():
    for evaluator in runner.EVALUATORS.values():
        found = list(inspect.signature(evaluator.run).parameters.values())
        given = ["predictor", "source"] if evaluator.has_source else ["predictor"]
        assert [option.name for option in found[: len(given)]] == given
        assert all(option.kind is option.KEYWORD_ONLY for option in found[len(given) :])
        if evaluator.has_source:
            assert all(option.default is not option.empty for option in found[2:])
        assert {"limit", "items"} & {option.name for option in found}  # a bound
        if evaluator.check:
            assert (
                list(inspect.signature(evaluator.check).parameters.values()) == found[len(given) :]
            )


def test_no_evaluators(fake, opened):
    assert runner.evaluate(fake.Predictor(), {}, opened[0]) == {}


def test_an_evaluator_without_a_source_is_checked_before_a_run(fake, opened, monkeypatch):
    seen = []

    def run(predictor, *, words=()):
        return {"count": float(len(words))}

    def check(*, words=()):
        seen.append(words)
        if not words:
            raise ValueError("there are no words; give some")

    monkeypatch.setitem(runner.EVALUATORS, "words", runner.Evaluator(run, False, check))
    entries = {"two": {"evaluator": "words", "words": ("a", "b")}}
    runner.check(entries)
    assert seen == [("a", "b")]
    assert runner.evaluate(fake.Predictor(), entries, opened[0]) == {"two/count": 2}
    assert not opened[1]
    with pytest.raises(ValueError, match=r"^evaluators\['none'\]: there are no words"):
        runner.check(entries | {"none": {"evaluator": "words"}})
