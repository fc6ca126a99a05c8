import dataclasses
import json

import pytest

from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_checks import check_checkpoint_tokenizer, check_vocabulary


@dataclasses.dataclass
class Stub:
    """What the checks look at."""

    family: str
    vocab_size: int
    eot_id: int
    pad_id: int
    start_id: int | None = None


CLIP = Stub("clip", 49408, 49407, 0, 49406)
SIGLIP = Stub("siglip", 32000, 1, 1)
SIGLIP2 = Stub("siglip2", 256000, 1, 0)
TRAINED = Stub("trained", 32000, 2, 0)

# text_config of the published config.json files.
OPENAI = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": 49408}
# What transformers writes when it saves a model of either kind, whatever its tokenizer.
WRITTEN = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}


def config(kind, **text):
    return {"model_type": kind, "text_config": text}


@pytest.mark.parametrize(
    "tokenizer, values",
    [
        (CLIP, config("clip", **OPENAI)),
        (CLIP, config("clip", **WRITTEN, vocab_size=49408)),
        (CLIP, config("clip")),
        (dataclasses.replace(CLIP, pad_id=49407), config("clip", **OPENAI)),
        (SIGLIP, config("siglip", model_type="siglip_text_model")),
        (SIGLIP, config("siglip", **WRITTEN, vocab_size=32000)),
        (SIGLIP2, config("siglip", vocab_size=256000)),
        (SIGLIP2, config("siglip", **WRITTEN, vocab_size=256000)),
        (SIGLIP2, config("siglip2", pad_token_id=0, eos_token_id=1, vocab_size=256000)),
        (CLIP, {"model_type": "clip_text_model", **OPENAI}),
    ],
)
def test_published_tokenizers_belong_to_their_checkpoints(tokenizer, values):
    check_checkpoint_tokenizer(tokenizer, values)


@pytest.mark.parametrize(
    "tokenizer, values, message",
    [
        (SIGLIP, config("clip", **OPENAI), "vocab_size is 49408, the tokenizer's 32000"),
        (CLIP, config("siglip", **WRITTEN), "vocab_size is 32000, .*; .*pad_token_id is 1, .* 0"),
        (SIGLIP, config("siglip", vocab_size=256000), "256000, the tokenizer's 32000"),
        (SIGLIP2, config("siglip"), "vocab_size is 32000, the tokenizer's 256000"),
        (TRAINED, config("siglip", **WRITTEN, vocab_size=32000), "pad_token_id is 1, .* 0"),
        (TRAINED, config("siglip", eos_token_id=1, vocab_size=32000), "eos_token_id is 1, .* 2"),
        (
            dataclasses.replace(TRAINED, vocab_size=49408),
            config("clip", **OPENAI),
            "eos_token_id is 49407, the tokenizer's 2",
        ),
        (
            dataclasses.replace(CLIP, start_id=7),
            config("clip", **WRITTEN, vocab_size=49408),
            "bos_token_id is 49406, the tokenizer's 7",
        ),
    ],
)
def test_a_tokenizer_of_another_checkpoint_is_refused(tokenizer, values, message):
    with pytest.raises(ValueError, match=f"does not belong to NAME: .*{message}"):
        check_checkpoint_tokenizer(tokenizer, values, "NAME")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_tokenizer_trained_here_is_not_that_of_a_golden_checkpoint(shared, kind):
    path = shared / "golden" / f"hf_{kind}_tiny" / "config.json"
    values = json.loads(path.read_text())
    words = Tokenizer.train(["".join(map(chr, range(97, 123))) + " a dog in a hat"], 64)
    with pytest.raises(ValueError, match="does not belong to the checkpoint"):
        check_checkpoint_tokenizer(words, values)
    # The golden weights come without a tokenizer; this is what theirs would say.
    fitting = Stub("clip", 64, 63, 1, 62) if kind == "clip" else Stub("siglip", 64, 5, 1)
    check_checkpoint_tokenizer(fitting, values)


def test_a_vocabulary_larger_than_the_table_is_refused():
    check_vocabulary(CLIP, 49408)
    check_vocabulary(CLIP, 49536)
    with pytest.raises(ValueError, match=r"49408 ids, .* 512 rows; set .*vocab_size = 49408"):
        check_vocabulary(CLIP, 512)
