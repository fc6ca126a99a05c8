"""Frozen parts, averages and low-rank updates in the step, and what they cost."""

import functools

import jax
import numpy as np
import pytest

from ccl_jax.training import lora, parameters, sharding
from ccl_jax.training.checkpoints import Checkpoints
from ccl_jax.training.step import abstract_state, create_trainer

PACL = {"pacl": {"weight": 1.0}}


class Run:
    """A trainer whose step is counted, and compiled when it is first needed."""

    def __init__(self, config, batch, devices=1):
        self.mesh = sharding.create_mesh(jax.devices()[:devices])
        self.batch = jax.device_put(batch, sharding.sharded(self.mesh))
        self.trainer = create_trainer(config, self.mesh, eot_id=2)
        shapes = abstract_state(self.trainer)
        self._lowered = self.trainer.step.lower(shapes, self.batch)
        self.flops = self._lowered.cost_analysis()["flops"]
        self.bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes.opt_state))

    @functools.cached_property
    def _step(self):
        return self._lowered.compile()

    def steps(self, state, count):
        """The states after each step, as NumPy."""
        states = []
        for _ in range(count):
            state, _ = self._step(state, self.batch)
            states.append(jax.tree.map(np.array, state))
        return state, states


def flat(tree):
    return {path: np.array(value) for path, value in parameters.flatten(tree).items()}


def assert_same(left, right, message=""):
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=message + path)


def restored(run, folder, state):
    """The state as a checkpoint gives it back."""
    for save in (True, False):
        checkpoints = Checkpoints(str(folder))
        if save:
            checkpoints.save(state)
        else:
            state = checkpoints.restore(abstract_state(run.trainer))
        checkpoints.close()
    return state


def test_a_locked_image_tower_costs_neither_memory_nor_a_backward_pass(
    make_config, batch, tmp_path
):
    config = make_config()
    whole = Run(config, batch)
    config.optimizer.frozen = "image"
    config.train.ema_decay = 0.4
    run = Run(config, batch)
    start = run.trainer.init()
    tower = flat(start.params["image_tower"])
    initial = flat(start.params)

    # Two moments of four bytes for every parameter that is trained, and two counts.
    sizes = {path: value.size for path, value in initial.items()}
    trained = [path for path in sizes if not path.startswith("image_tower/")]
    assert whole.bytes == 8 * sum(sizes.values()) + 8
    assert run.bytes == 8 * sum(sizes[path] for path in trained) + 8
    # A backward pass is twice a forward pass: two parts of the six of both towers go.
    assert run.flops < 0.75 * whole.flops

    middle, first = run.steps(start, 2)
    resumed = restored(run, tmp_path, middle)
    end, last = run.steps(middle, 2)
    assert_same(end.params["image_tower"], tower)
    for path in trained:
        if path != "bias":
            assert not np.array_equal(flat(end.params)[path], initial[path]), path

    # The average, of the trained part alone, by its definition.
    average = {path: np.float64(initial[path]) for path in trained}
    for n, state in enumerate(first + last, 1):
        weight = min(0.4, (1 + n) / (10 + n))
        values = flat(state.params)
        for path in trained:
            average[path] = weight * average[path] + (1 - weight) * values[path]
    assert flat(end.ema).keys() == set(trained)
    for path, value in flat(end.ema).items():
        np.testing.assert_allclose(value, average[path], rtol=1e-5, atol=1e-7, err_msg=path)

    # It is what is evaluated, under the frozen part as it is.
    evaluated = flat(run.trainer.evaluated(end))
    assert_same({k: v for k, v in evaluated.items() if k in trained}, flat(end.ema))
    assert_same(
        {k: v for k, v in evaluated.items() if k not in trained},
        {f"image_tower/{path}": value for path, value in tower.items()},
    )

    # Resumed in the middle it ends the same.
    again, _ = run.steps(resumed, 2)
    for left, right in zip(jax.tree.leaves(again), jax.tree.leaves(end), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_locked_towers_leave_the_embedder_and_the_scale_to_pacl(make_config, batch):
    config = make_config(**PACL)
    config.model.patch_embedder = True
    whole = Run(config, batch)
    config.optimizer.frozen = "towers"
    config.optimizer.weight_decay = 10.0  # would show
    run = Run(config, batch)
    start = run.trainer.init()
    initial = flat(start.params)
    moments = sum(v.size for k, v in initial.items() if "_tower/" not in k)
    assert run.bytes == 8 * moments + 8 < whole.bytes / 5
    assert run.flops < 0.5 * whole.flops
    end, _ = run.steps(start, 3)
    for path, value in flat(end.params).items():
        # The objective reads no bias.
        assert np.array_equal(value, initial[path]) == ("_tower/" in path or path == "bias"), path


@pytest.mark.slow
def test_low_rank_updates_are_trained_over_a_frozen_base(make_config, batch):
    config = make_config()
    config.lora.rank, config.lora.alpha = 2, 3.0
    config.optimizer.layer_decay = 0.5
    config.optimizer.weight_decays = ((".*/b", 0.0), (".*", "default"))
    config.optimizer.learning_rate = 0.1
    run = Run(config, batch)
    start = run.trainer.init()
    initial = flat(start.params)
    base = {k: v for k, v in initial.items() if "_tower/" in k and not k.startswith("lora/")}
    adapters = {k: v for k, v in initial.items() if k.startswith("lora/")}
    # Six kernels in each of two blocks and in the head, with two factors each.
    assert len(adapters) == 2 * 6 * 3
    assert run.bytes == 8 * (sum(x.size for x in adapters.values()) + 2) + 8
    # It begins as the model without.
    plain = jax.tree.map(np.array, lora.without(start.params))
    assert_same(run.trainer.evaluated(start), plain)
    for path, value in flat(parameters.initial(run.trainer.model, config.seed)).items():
        np.testing.assert_allclose(initial[path], value, rtol=1e-5, atol=1e-9, err_msg=path)

    end, _ = run.steps(start, 2)
    final = flat(end.params)
    assert_same({k: final[k] for k in base}, base)
    found = flat(run.trainer.evaluated(end))
    assert found.keys() == flat(plain).keys()
    for path, kernel in base.items():
        expected = kernel
        if f"lora/{path}/a" in adapters:
            a, b = (np.float64(final[f"lora/{path}/{name}"]) for name in "ab")
            assert np.abs(b).max() > 0, path
            expected = kernel + 3.0 / 2 * a @ b
            assert np.linalg.matrix_rank(found[path] - kernel, tol=1e-5) <= 2, path
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)

    # Other weights of the towers under the same updates, as a checkpoint brings them.
    moved = jax.tree.map(lambda x: x + 1, plain)
    started = run.trainer.start(run.trainer.init(), moved)
    assert_same(lora.without(started.params), moved)
    assert_same({"lora": started.params["lora"]}, adapters)


@pytest.mark.slow
def test_eight_devices_fine_tune_as_one_does(make_config, batch):
    config = make_config()
    config.lora.rank = 2
    config.train.ema_decay = 0.5
    config.optimizer.frozen = "image"
    config.optimizer.clip_norm = 1.0
    config.optimizer.layer_decay = 0.7
    ends = []
    for devices in (1, 8):
        run = Run(config, batch, devices)
        end, _ = run.steps(run.trainer.init(), 3)
        ends.append(flat(run.trainer.evaluated(end)))
    for path, value in ends[0].items():
        np.testing.assert_allclose(value, ends[1][path], atol=2e-4, err_msg=path)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((r"image_tower/attn/.*",), "lora.targets holds 'image_tower/attn/.*'.*no parameter"),
        ((r"text_tower/.*/bias",), r"selects text_tower/.*/bias of shape .*only matrices"),
        ((), "lora.targets is empty"),
    ],
)
def test_low_rank_targets_are_matrices_that_there_are(make_config, targets, message):
    config = make_config()
    config.lora.rank, config.lora.targets = 2, targets
    with pytest.raises(ValueError, match=message):
        create_trainer(config, sharding.create_mesh(jax.devices()[:1]), eot_id=2)
