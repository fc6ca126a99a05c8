"""The quickstart: SigLIP against SigLIP + CCL on scenes that it draws itself.

    python -m ccl_jax.main --config configs/quickstart.py --workdir ~/ccl_quickstart

trains both, with the same model, data order and steps, and puts them side by side. One
alone: `--config configs/quickstart.py:siglip`, `:ccl` or `:pacl`. `:smoke` runs both for a
few steps on a small set.
"""

from ml_collections import ConfigDict

from ccl_jax.training.config import default_config

OBJECTIVES = {
    "siglip": {"siglip": {"weight": 1.0}},
    "ccl": {
        "siglip": {"weight": 1.0},
        # Phrases such as "a red circle" occur in many images: positive for all of them.
        "npc": {"weight": 1.0, "duplicates": "positive"},
        "xac": {"weight": 0.1, "sharpness": 10.0, "duplicates": "positive"},
    },
    # PACL is meant for frozen, pretrained towers; from scratch SigLIP trains them beside it.
    "pacl": {"siglip": {"weight": 1.0}, "pacl": {"weight": 1.0}},
}


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "", "siglip", "ccl", "pacl" or "smoke"."""
    if arg not in ("", "smoke", *OBJECTIVES):
        raise ValueError(
            f"configs/quickstart.py has no variant {arg!r}; use {', '.join(OBJECTIVES)} or smoke"
        )
    config = default_config()
    with config.unlocked():
        if arg in OBJECTIVES:
            config.objective = OBJECTIVES[arg]
            config.model.patch_embedder = arg == "pacl"
        else:
            config.run_order = ("siglip", "ccl")
            config.runs = {name: {"objective": OBJECTIVES[name]} for name in config.run_order}

        size = "mini" if arg == "smoke" else "full"
        scenes = lambda split: {"kind": "scenes", "split": split, "size": size}  # noqa: E731
        config.data.source = scenes("train")
        config.evaluators = {
            "retrieval": {
                "evaluator": "retrieval",
                "source": scenes("validation"),
                "captions": "longest",
            },
            "zero_shot": {"evaluator": "zero_shot", "source": scenes("objects")},
            "compositionality": {"evaluator": "compositionality", "source": scenes("validation")},
            "compositionality_unseen": {
                "evaluator": "compositionality",
                "source": scenes("compositional"),
            },
            "segmentation": {
                "evaluator": "segmentation",
                "source": scenes("validation"),
                "limit": 500,
            },
        }
        config.heatmaps.source = scenes("validation")

    config.model.preset = "tiny"
    with config.model.unlocked():
        config.model.image = {"depth": 5}
        # Causal with end-of-text pooling: a phrase may be padded to fewer tokens than a caption.
        config.model.text = {"length": 20, "pool": "eot"}

    config.model.init_bias = -5.0  # about -log(batch size)

    config.data.batch_size = 64
    config.data.transform = "squash"  # the images have the model's size: pixels as they are
    config.data.phrase_length = 6  # a small dotted green diamond, and the end
    config.data.phrases_per_image = 2.5

    # At 2e-3 the text tower merges words whose look is not learnt yet, and stays there.
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0

    config.train.steps = 2_200
    config.train.checkpoint_every = 550
    if arg == "smoke":
        config.data.batch_size = 32
        config.optimizer.warmup_steps = 2
        config.train.steps = 6
        config.train.log_every = 2
        config.train.checkpoint_every = 3
    return config
