"""CCL as published: SigLIP B/16 fine-tuned on CC3M with the captions of DreamLIP.

    python -m ccl_jax.main --config configs/ccl_siglip_b16_cc3m.py --workdir DIR \
        --config.data.source.path='cc3m/{00000..00287}.tar' \
        --config.evaluators.retrieval.source.path='flickr30k/test-*.tar'

Pham, Hoffmann, Guerrero, Martinez: "No Hard Negatives Required" (CVPR 2026, arXiv 2603.25722).
[code] is a value of their release (SamsungLabs/concept_centric_clip), [paper] one of the paper,
[ours] a choice of our own. `:siglip` trains the baseline, the same without CCL; `:tiny` shrinks
either (`:tiny,siglip`) to a minute on a laptop, without a checkpoint or data.

We differ from the release in four ways, all meant:

- Weights are float32 and only the computation is bfloat16. The release keeps nearly all weights
  in bfloat16, where a step of 1e-5 is lost in rounding for most of them: 6 to 15 % of the weights
  change at all in 200 steps. Float32 weights move much further at the same learning rate, so
  expect to need a smaller one for the published zero-shot accuracy (ImageNet 73.5), and say
  which one you used: --config.optimizer.learning_rate=3e-6 is where to begin.
- The loss is that of the global batch, and so is its gradient. The release's gathering keeps the
  gradient of the local slice alone, a W-th of it on W devices, which Adam mostly hides.
- Phrases have a budget (`phrases_per_image`), so that shapes do not change from batch to batch.
- A phrase that another image has too stays a negative there, as published;
  --config.objective.npc.duplicates=positive (and xac) is what we would choose.
"""

from ml_collections import ConfigDict

from ccl_jax.training.config import default_config
from ccl_jax.training.recipes import make_tiny


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` is "", "siglip", "tiny" or "tiny,siglip"."""
    options = {option for option in arg.split(",") if option}
    if unknown := options - {"siglip", "tiny"}:
        raise ValueError(
            f"configs/ccl_siglip_b16_cc3m.py has no option {', '.join(sorted(unknown))}; "
            "use siglip, tiny or both with a comma"
        )
    config = default_config()

    # [code] ViT-B-16-SigLIP of OpenCLIP, trained on WebLI at 224; these are the same weights.
    # All of it is trained, the scale and bias of the similarities included.
    config.init_from = "google/siglip-base-patch16-224"
    config.model.preset = "B/16"

    with config.unlocked():
        config.objective = {"siglip": {"weight": 1.0}}  # [code]
        if "siglip" not in options:
            # [code] Weight 1.0 of NPC; foreign phrases are negatives whatever they say.
            config.objective.npc = {"weight": 1.0, "duplicates": "negative"}
            # [code] Weight 0.01 of XAC; plain dot products of unit vectors in the softmax.
            config.objective.xac = {"weight": 0.01, "sharpness": 1.0, "duplicates": "negative"}
        # [code] WebDataset tars of CC3M, 2,823,019 pairs, with DreamLIP's short captions and the
        # phrases of each (the paper: spaCy's noun phrases). A caption without any is its own one.
        config.data.source = {
            "kind": "webdataset",
            "path": "cc3m-*.tar",
            "caption_fields": ("shortLLA_captions",),
            "phrase_fields": ("nounphrases",),
        }
        # [paper] Flickr30k and COCO, mean R@5 of both directions.
        config.evaluators = {
            "retrieval": {
                "evaluator": "retrieval",
                "source": {"kind": "webdataset", "path": "flickr30k-test-*.tar"},
            }
        }

    config.model.dtype = "bfloat16"  # [code] computes in it; [ours] keeps weights in float32
    config.model.init_scale, config.model.init_bias = 10.0, -10.0  # unused: the checkpoint's
    # [ours] For a device that does not hold its share of the batch: --config.train.micro_batch=96,
    # with the gradient of all 768.
    config.train.micro_batch = 0

    config.data.batch_size = 768  # [code] 96 on each of 8 GPUs
    config.data.transform = "random_resized_crop"  # [code] no flip
    config.data.crop_scale = (0.9, 1.0)  # [code]
    config.data.resample = "bicubic"  # [code]
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)  # [code]
    config.data.eval_transform = "squash"  # [code] the square resize of SigLIP
    # [code] Captions and phrases have 64 tokens, lower case without punctuation: SigLIP pools
    # the last position, so a shorter phrase would be another text to it.
    config.data.phrase_length = 64
    config.data.phrases_per_image = 6.0  # [ours] the release takes all; those left out are counted

    config.optimizer.learning_rate = 1e-5  # [code]
    config.optimizer.warmup_steps = 50  # [code] then cosine to 0
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.98  # [code]
    config.optimizer.eps = 1e-6  # [code]
    config.optimizer.weight_decay = 0.1  # [code] none below two dimensions: norms, biases, scale
    # [code] The probe of attention pooling has more than one dimension there, so it decays.
    config.optimizer.weight_decays = (("image_tower/head/probe", 0.1), (".*", "default"))
    config.optimizer.clip_norm = 0.0  # [code]
    # [code] The multiplier stays in [1, 100]; SigLIP's 117.3 is cut to 100 by the first step.
    config.optimizer.max_scale = 100.0
    config.train.steps = 18_380  # [code] 5 epochs

    if "tiny" in options:
        make_tiny(config)
    return config
