"""What the recipes in `configs/` share: their `:tiny` variant."""

from ml_collections import ConfigDict

from ccl_jax.models.presets import PRESETS

_TINY_TOWER = {"width": 32, "depth": 2, "heads": 2, "mlp_dim": None}


def make_tiny(config: ConfigDict) -> None:
    """Shrinks a recipe to a run of a minute on a laptop, without a checkpoint or any data.

    Objective, pooling, compute type and optimiser stay those of the recipe. The towers have
    random weights and some ten thousand parameters each, the data are scenes that are drawn
    on the spot, and a few steps are enough to see that everything works.

    Args:
      config: of a recipe, with a preset; changed in place.
    """
    sizes = PRESETS[config.model.preset]
    image = sizes["image"] | config.model.image.to_dict() | _TINY_TOWER
    text = sizes["text"] | config.model.text.to_dict() | _TINY_TOWER
    for tower in (image, text):
        if tower.get("embed_dim"):
            tower["embed_dim"] = 24
    scenes = lambda split: {"kind": "scenes", "split": split, "size": "mini"}  # noqa: E731
    with config.unlocked():
        config.model.image = image | {"image_size": 48, "patch_size": 16}
        config.model.text = text | {"vocab_size": 512, "length": 20}
        config.data.source = scenes("train")
        config.evaluators = {
            "retrieval": {"evaluator": "retrieval", "source": scenes("validation")},
        }
        config.heatmaps.source = {}
    config.init_from = ""
    config.model.preset = None
    config.data.tokenizer = "train"
    config.data.batch_size = 16
    config.data.phrase_group = 2
    # SigLIP's towers pool the last position: what is shorter would be another text.
    config.data.phrase_length = 20 if text["pool"] == "last" else 8
    config.optimizer.learning_rate = 1e-3  # for random weights
    config.optimizer.warmup_steps = 2
    config.train.steps = 6
    config.train.log_every = 2
    config.train.checkpoint_every = 3
