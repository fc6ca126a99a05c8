"""Between the start and the end of a fine-tuning: exact at both, and a table over shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import weights
from ccl_jax.models.presets import build_model
from ccl_jax.training import averaging, loop, parameters, pretrained


def test_interpolation_is_exact_at_both_ends_and_linear_between():
    rng = np.random.default_rng(0)
    start, trained = ({"w": jnp.asarray(rng.normal(size=5), jnp.float32)} for _ in range(2))
    np.testing.assert_array_equal(averaging.interpolate(start, trained, 0.0)["w"], start["w"])
    np.testing.assert_array_equal(averaging.interpolate(start, trained, 1.0)["w"], trained["w"])
    found = averaging.interpolate(start, trained, 0.25)["w"]
    np.testing.assert_allclose(found, 0.75 * start["w"] + 0.25 * trained["w"], rtol=1e-6)


def test_the_average_forgets_its_start_and_then_keeps_to_its_decay():
    ema, params = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    # After the first step 2 / 11 of the start are left, whatever the decay.
    first = averaging.update_ema(ema, params, jnp.int32(1), 0.99)
    np.testing.assert_allclose(first["w"], 9 / 11, rtol=1e-6)
    late = averaging.update_ema(ema, params, jnp.int32(10_000), 0.99)
    np.testing.assert_allclose(late["w"], 0.01, rtol=1e-4)


@pytest.mark.slow
def test_shares_of_a_fine_tuning_are_rows_of_one_table(make_config, tmp_path, monkeypatch):
    seen = []

    def evaluate(predictor, entries, open_source):
        seen.append(jax.tree.map(np.asarray, predictor.params))
        return {"retrieval/recall": float(len(seen))}

    monkeypatch.setattr(loop.runner, "evaluate", evaluate)
    config = make_config()
    model = build_model(config.model.to_dict(), eot_id=2)
    start = jax.tree.map(np.asarray, jax.jit(lambda: parameters.initial(model, 5))())
    folder, workdir = str(tmp_path / "siglip"), str(tmp_path / "run")
    weights.save(folder, start, {"image": dict(model.image), "text": dict(model.text)})
    config.init_from, config.data.tokenizer = folder, "train"
    config.train.steps, config.optimizer.warmup_steps = 2, 1
    config.optimizer.learning_rate = 0.1  # far enough to show
    config.train.ema_decay = 0.5
    loop.run(config, workdir)

    found = loop.evaluate(workdir, wise_ft=[0.0, 0.5, 1.0])
    assert list(found) == [f"siglip, {share} trained" for share in ("0", "0.5", "1")]
    assert [row["retrieval/recall"] for row in found.values()] == [2.0, 3.0, 4.0]
    # From the checkpoint to what the run evaluated, its average.
    leaves_of_all = list(zip(*map(jax.tree.leaves, (start, *seen)), strict=True))
    for leaves in leaves_of_all:
        np.testing.assert_array_equal(leaves[2], leaves[0])
        np.testing.assert_allclose(leaves[3], (leaves[0] + leaves[1]) / 2, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(leaves[4], leaves[1])
    assert any(np.abs(a - b).max() > 0.01 for a, b, *_ in leaves_of_all)

    with pytest.raises(ValueError, match=r"shares .* are in \[0, 1\]; got \[2\.0\]"):
        loop.evaluate(workdir, wise_ft=[2.0])


def test_a_run_from_scratch_has_no_start_to_go_back_to(make_config, tmp_path):
    with pytest.raises(ValueError, match=r"config\.init_from is empty.*leave --wise_ft out"):
        pretrained.start_weights(make_config(), str(tmp_path), None)
