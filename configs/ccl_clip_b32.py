"""CCL on CLIP B/32: class-token pooling, causal text, the softmax loss.

    python -m ccl_jax.main --config configs/ccl_clip_b32.py --workdir DIR \
        --config.data.source.path='train-{00000..00287}.tar' \
        --config.evaluators.retrieval.source.path='dev-*.tar'

Radford et al. (2021) for the towers. There is no published recipe of CCL for CLIP; this is the
natural analogue. Captions are compared by CLIP's softmax, phrases by the sigmoid terms of CCL, as
a phrase may fit several images of a batch. Patch tokens of XAC are the patch states after the last
norm and the projection, as the class token's. Values without a mark are those of
`ccl_siglip_b16_cc3m.py`, where their sources stand; [ours] are choices. `:tiny` shrinks it to a
minute on a laptop.
"""

from ml_collections import ConfigDict

from ccl_jax.training.config import default_config
from ccl_jax.training.recipes import make_tiny


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "" or "tiny"."""
    if arg not in ("", "tiny"):
        raise ValueError(f"configs/ccl_clip_b32.py has no option {arg!r}; use tiny or none")
    config = default_config()

    # Tokenizer (CLIP's BPE, 77 tokens) and image processor (shortest side, centre crop, mean and
    # std of its own) come with the checkpoint.
    config.init_from = "openai/clip-vit-base-patch32"
    config.model.preset = "clip-B/32"

    with config.unlocked():
        config.objective = {
            "clip": {"weight": 1.0},
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

    # [ours], not tried on real weights: CLIP has no bias and a multiplier of 100. With -20 the
    # sigmoid terms start undecided at a cosine of 0.2; the bias, which no one has trained yet,
    # learns a thousand times faster than the towers.
    config.model.init_bias = -20.0
    config.optimizer.lr_multipliers = (("bias", 1000.0), (".*", 1.0))

    config.model.dtype = "bfloat16"
    config.data.batch_size = 768
    config.data.crop_scale = (0.9, 1.0)
    config.data.phrase_length = 16  # causal text: shorter padding gives the same embedding
    config.data.phrases_per_image = 6.0

    # [ours] Smaller than published: float32 weights keep every step.
    config.optimizer.learning_rate = 3e-6
    config.optimizer.warmup_steps = 50
    config.optimizer.b1, config.optimizer.b2, config.optimizer.eps = 0.9, 0.98, 1e-6
    config.optimizer.weight_decay = 0.1
    config.optimizer.max_scale = 100.0  # Radford et al. (2021), section 2.5
    config.train.steps = 18_380

    if arg == "tiny":
        make_tiny(config)
    return config
