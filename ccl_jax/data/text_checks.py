"""Does a tokenizer fit a model, and is it the one that a checkpoint was trained with?"""

from collections.abc import Mapping
from typing import Any

from ccl_jax.data.text import Tokenizer

# What transformers' config classes say where a checkpoint's config.json says nothing.
_VOCAB_SIZES = {"clip": 49_408, "siglip": 32_000, "siglip2": 32_000}

# They put these ids, too, into every config that they write, whatever the tokenizer; so these
# values tell nothing. SigLIP's are CLIP's by descent; SigLIP 2 pads with 0.
_SIGLIP_DEFAULT_EOS, _SIGLIP_DEFAULT_PAD = 49_407, 1

# In the configs of OpenAI's checkpoints: the end of text is the greatest id in a row.
_CLIP_LEGACY_EOS = 2


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Checks that a model's embedding table has a row for every id of a tokenizer.

    Args:
      tokenizer: of the texts.
      vocab_size: rows of the table.

    Raises:
      ValueError: if the tokenizer has more ids; JAX would clamp them without a word.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's embedding table only "
            f"{vocab_size} rows; set config.model.text.vocab_size = {tokenizer.vocab_size}, or use "
            "the tokenizer that belongs to the model"
        )


def check_checkpoint_tokenizer(
    tokenizer: Tokenizer, config: Mapping[str, Any], name: str = "the checkpoint"
) -> None:
    """Checks that a tokenizer is that of a Hugging Face checkpoint, as far as its config tells.

    Compared with `text_config`: the size of the vocabulary; for CLIP the start and the end of
    text (padding is never seen); for SigLIP the padding, and the end of text if it is not the
    placeholder that transformers writes. What the config does not say is not compared.

    Args:
      tokenizer: of the texts.
      config: the content of the checkpoint's config.json.
      name: of the checkpoint, for the error.

    Raises:
      ValueError: for a difference, naming every one.
    """
    model_type = config.get("model_type", "clip" if tokenizer.family == "clip" else "siglip")
    text = config.get("text_config") or config
    vocab_size = text.get("vocab_size", _VOCAB_SIZES.get(model_type))
    ids = {key: text.get(f"{key}_token_id") for key in ("bos", "eos", "pad")}
    if "siglip" in model_type:
        ids["bos"] = None
        if ids["eos"] == _SIGLIP_DEFAULT_EOS:
            ids["eos"] = None
        if ids["pad"] == _SIGLIP_DEFAULT_PAD and tokenizer.family == "siglip2":
            ids["pad"] = None
    else:
        ids["pad"] = None
        if ids["eos"] == _CLIP_LEGACY_EOS:
            ids |= {"bos": None, "eos": vocab_size - 1}
    if tokenizer.family == "trained" and tokenizer.vocab_size <= vocab_size:
        vocab_size = None  # few captions give fewer tokens than the table has rows
    wanted = [("vocab_size", vocab_size, tokenizer.vocab_size)] + [
        (f"{key}_token_id", ids[key], getattr(tokenizer, attribute))
        for key, attribute in (("bos", "start_id"), ("eos", "eot_id"), ("pad", "pad_id"))
    ]
    different = [
        f"text_config.{key} is {expected}, the tokenizer's {found}"
        for key, expected, found in wanted
        if expected is not None and expected != found
    ]
    if different:
        raise ValueError(
            f"this tokenizer ({tokenizer.family}) does not belong to {name}: "
            f"{'; '.join(different)}; use the tokenizer files that came with the checkpoint"
        )
