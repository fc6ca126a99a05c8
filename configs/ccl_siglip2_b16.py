"""CCL on SigLIP 2 B/16 at a fixed resolution of 224.

    python -m ccl_jax.main --config configs/ccl_siglip2_b16.py --workdir DIR \
        --config.data.source.path='train-{00000..00287}.tar' \
        --config.evaluators.retrieval.source.path='dev-*.tar'

Tschannen et al.: "SigLIP 2" (2025, arXiv 2502.14786) for the towers; no one has published CCL on
them, so everything else is the recipe of `ccl_siglip_b16_cc3m.py` (each value's source is there)
but for what is marked [ours]. `:tiny` shrinks it to a minute on a laptop.
"""

from ml_collections import ConfigDict

from ccl_jax.training.config import default_config
from ccl_jax.training.recipes import make_tiny


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "" or "tiny"."""
    if arg not in ("", "tiny"):
        raise ValueError(f"configs/ccl_siglip2_b16.py has no option {arg!r}; use tiny or none")
    config = default_config()

    # Fixed resolution (NaFlex is another family). Gemma's vocabulary of 256,000, texts in lower
    # case, 64 tokens, last position pooled; images resized to the square. All of it, cleaning
    # of texts included, is read from the checkpoint's tokenizer and processor.
    config.init_from = "google/siglip2-base-patch16-224"
    config.model.preset = "siglip2-B/16"

    with config.unlocked():
        # [ours] A man is in many pictures: his phrase is no negative for any of them.
        config.objective = {
            "siglip": {"weight": 1.0},
            "npc": {"weight": 1.0, "duplicates": "positive"},
            "xac": {"weight": 0.01, "sharpness": 1.0, "duplicates": "positive"},
        }
        config.data.source = {"kind": "webdataset", "path": "train-*.tar"}
        config.evaluators = {
            "retrieval": {
                "evaluator": "retrieval",
                "source": {"kind": "webdataset", "path": "dev-*.tar"},
            }
        }

    config.model.dtype = "bfloat16"
    config.data.batch_size = 768
    config.data.crop_scale = (0.9, 1.0)
    config.data.phrase_length = 64  # the last position is pooled: as long as a caption
    config.data.phrases_per_image = 6.0

    # [ours] Smaller than published: float32 weights keep every step.
    config.optimizer.learning_rate = 3e-6
    config.optimizer.warmup_steps = 50
    config.optimizer.b1, config.optimizer.b2, config.optimizer.eps = 0.9, 0.98, 1e-6
    config.optimizer.weight_decay = 0.1
    config.optimizer.max_scale = 100.0
    config.train.steps = 18_380

    if arg == "tiny":
        make_tiny(config)
    return config
