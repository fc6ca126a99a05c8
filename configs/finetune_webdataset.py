"""CCL on WebDataset tars: image-caption data of your own.

    python -m ccl_jax.main --config configs/finetune_webdataset.py --workdir DIR \
        --config.data.source.path='train-{00000..00002}.tar' \
        --config.evaluators.retrieval.source.path='dev-00000.tar'

A sample is KEY.jpg (png, webp) with KEY.json {"captions": [...]} or KEY.txt. All captions of
an image are used, one an epoch; noun phrases are extracted where the record has none.
`:siglip` trains the baseline, `:tiny` a model that a laptop trains in minutes.
"""

from ml_collections import ConfigDict, FieldReference

from ccl_jax.training.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "", "siglip", "tiny" or "tiny,siglip"."""
    options = {option for option in arg.split(",") if option}
    if unknown := options - {"siglip", "tiny"}:
        raise ValueError(
            f"configs/finetune_webdataset.py has no option {', '.join(sorted(unknown))}; "
            "use siglip, tiny or both with a comma"
        )
    config = default_config()
    with config.unlocked():
        config.objective = {"siglip": {"weight": 1.0}}
        if "siglip" not in options:
            # A man is in many pictures: his phrase is no negative for any of them.
            config.objective.npc = {"weight": 1.0, "duplicates": "positive"}
            config.objective.xac = {"weight": 0.01, "sharpness": 1.0, "duplicates": "positive"}
        config.data.source = {"kind": "webdataset", "path": "train-*.tar"}
        # One path for both: an override of either is an override of the two.
        held_out = {"kind": "webdataset", "path": FieldReference("dev-*.tar")}
        config.evaluators = {"retrieval": {"evaluator": "retrieval", "source": held_out}}
        config.heatmaps.source = held_out
        # The towers start from scratch, with a tokenizer trained on the captions.
        config.model.text = {"pool": "eot", "length": 32, "vocab_size": 8_192}
        if "tiny" in options:
            config.model.image = {"image_size": 112, "patch_size": 16, "width": 128, "heads": 4}
            config.model.text.update({"width": 128, "heads": 4})

    config.model.preset = "tiny" if "tiny" in options else "S/16"
    config.data.batch_size = 128 if "tiny" in options else 256
    config.data.phrase_length = 8  # causal text: shorter padding gives the same embedding
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.train.steps = 2_000 if "tiny" in options else 20_000
    return config
