"""SigLIP B/16 from scratch, on WebDataset tars.

    python -m ccl_jax.main --config configs/siglip_b16.py --workdir DIR \
        --config.data.source.path='train-{00000..09999}.tar' \
        --config.evaluators.retrieval.source.path='dev-*.tar'

[1] is Zhai et al.: "Sigmoid Loss for Language Image Pre-Training" (2023, arXiv 2303.15343), [2]
Tschannen et al.: "SigLIP 2" (2025, arXiv 2502.14786), [ours] a choice of our own, [unchecked] a
value held to be [1]'s or its code's and not compared with them yet. The batch is that of the
papers, for a pod; with less, lower `batch_size`, or give `--config.train.micro_batch` what fits,
and mind that steps x batch_size are the examples seen. `:tiny` shrinks it to a minute on a laptop.
"""

from ml_collections import ConfigDict

from ccl_jax.training.config import default_config
from ccl_jax.training.recipes import make_tiny


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "" or "tiny"."""
    if arg not in ("", "tiny"):
        raise ValueError(f"configs/siglip_b16.py has no option {arg!r}; use tiny or none")
    config = default_config()
    # [1] B/16 at 224, a text tower of the same shape, 64 tokens, vocabulary of 32,000.
    config.model.preset = "B/16"
    config.model.init_scale, config.model.init_bias = 10.0, -10.0  # [1] section 3.2
    config.model.dtype = "bfloat16"  # [ours] with float32 weights
    config.model.remat = "dots"  # [ours] for 256 images a device and more

    with config.unlocked():
        config.objective = {"siglip": {"weight": 1.0}}
        config.data.source = {"kind": "webdataset", "path": "train-*.tar"}
        config.evaluators = {
            "retrieval": {
                "evaluator": "retrieval",
                "source": {"kind": "webdataset", "path": "dev-*.tar"},
            }
        }

    config.data.batch_size = 32_768  # [1] [2]
    config.data.transform = "squash"  # [1] plain resizing to the square, no augmentation
    config.data.resample = "bilinear"  # [unchecked]
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)  # [1]
    # [ours] [1] uses a sentencepiece model of C4; this trains one on the captions, or give its
    # file as --config.data.tokenizer.
    config.data.tokenizer = "train"

    config.optimizer.learning_rate = 1e-3  # [unchecked]
    config.optimizer.warmup_steps = 20_000  # [2] then cosine to 0
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95  # [1] 0.95 for large batches
    config.optimizer.weight_decay = 1e-4  # [unchecked]
    config.optimizer.clip_norm = 1.0  # [unchecked]
    config.optimizer.max_scale = 1e6  # [1] has no bound
    config.train.steps = 274_658  # [unchecked] 9 billion examples
    config.train.checkpoint_every = 5_000

    if arg == "tiny":
        make_tiny(config)
    return config
