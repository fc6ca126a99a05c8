"""Tokenizers: text to token ids of one length.

One class for the families of `FAMILIES`, which differ in how a text is cleaned, cut and framed:

| family | cut by | cleaning | frame | padding | length |
|---|---|---|---|---|---|
| trained | BPE, learnt on the data set | `canonicalize` | text, 2 | 0 | any |
| clip | byte-level BPE | see `text_formats` | start, text, end | end, or 0 | 77 |
| siglip | sentencepiece | `clean_siglip` | text, 1 | 1 | 64 |
| siglip2 | Gemma's BPE | lower case | text, 1 | 0 | 64 |

CLIP's text tower pools the first end-of-text token behind a causal mask, so its padding is
never seen; SigLIP's pools the last position and sees every other, so padding and length are
part of the text. `text_formats.open_tokenizer` finds the family from files.
"""

import functools
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int

from ccl_jax.data.text_cleaning import canonicalize as canonicalize  # part of this module's API
from ccl_jax.data.text_cleaning import find_cleaning
from ccl_jax.data.text_encoders import Encoder, JsonEncoder, SentencePieceEncoder

# Of a tokenizer trained on the spot.
PAD_ID, UNKNOWN_ID, EOT_ID = 0, 1, 2
_SPECIAL = ["<pad>", "<unk>", "<eot>"]

SETTINGS_FILE = "ccl_tokenizer.json"
HF_FILE = "tokenizer_config.json"

# Length of the published models' texts, and the class of transformers for their files.
FAMILIES = {
    "trained": (None, "PreTrainedTokenizerFast"),
    "clip": (77, "CLIPTokenizer"),
    "siglip": (64, "SiglipTokenizer"),
    "siglip2": (64, "Siglip2Tokenizer"),
}


class Tokenizer:
    """Texts to rows of token ids: cleaning, encoding, frame, padding to a length.

    Can be called by several threads and pickled; texts met before are not encoded again.

    Attributes:
      encoder: cuts a cleaned text into ids.
      family: a name in `FAMILIES`.
      cleaning: a name in `text_cleaning.CLEANINGS`.
      start_id: put before the text; None for none.
      eot_id: put after the text.
      pad_id: fills the rest.
      vocab_size: the greatest id + 1.
      length: tokens that the family's published models take; None if any number is as good.
    """

    eot_id = EOT_ID

    def __init__(
        self,
        encoder: Encoder,
        *,
        family: str = "trained",
        cleaning: str = "canonical",
        start_id: int | None = None,
        eot_id: int = EOT_ID,
        pad_id: int = PAD_ID,
    ):
        """Puts a tokenizer together; `train` and `text_formats.open_tokenizer` do so.

        Args:
          encoder: cuts a cleaned text into ids.
          family: a name in `FAMILIES`.
          cleaning: a name in `text_cleaning.CLEANINGS`.
          start_id: put before the text; None for none.
          eot_id: put after the text.
          pad_id: fills the rest.

        Raises:
          ValueError: for an unknown family or cleaning.
        """
        if family not in FAMILIES:
            raise ValueError(f"unknown tokenizer family {family!r}; known: {', '.join(FAMILIES)}")
        find_cleaning(cleaning)
        self.family = family
        self.cleaning = cleaning
        self.start_id = start_id
        self.eot_id = eot_id
        self.pad_id = pad_id
        self.vocab_size = encoder.vocab_size
        self.length = FAMILIES[family][0]
        self.encoder = encoder
        self._make_cache()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns at most `vocab_size` tokens (whole frequent words among them) from `texts`.

        For data sets that come without a tokenizer: BPE over canonicalised captions.

        Raises:
          ValueError: if there is no text to learn from.
        """
        texts = iter(texts)
        first = next(texts, None)
        if first is None:
            raise ValueError("no caption to train a tokenizer on: the data source is empty")
        encoder = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=_SPECIAL[UNKNOWN_ID]))
        encoder.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=_SPECIAL, show_progress=False
        )
        corpus = map(canonicalize, itertools.chain([first], texts))
        encoder.train_from_iterator(corpus, trainer)
        # For other readers of the file: here, texts are canonicalised already.
        encoder.normalizer = tokenizers.normalizers.Sequence(
            [
                tokenizers.normalizers.Lowercase(),
                tokenizers.normalizers.Replace(tokenizers.Regex(r"[^\p{L}\p{N}\s]"), " "),
            ]
        )
        encoder.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"$A {_SPECIAL[EOT_ID]}", special_tokens=[(_SPECIAL[EOT_ID], EOT_ID)]
        )
        return cls(JsonEncoder(encoder))

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Reads what `save` wrote: a folder, or the `tokenizer.json` of a trained tokenizer.

        Raises:
          ValueError: if there is no such file, or it is damaged.
        """
        settings_path = os.path.join(path, SETTINGS_FILE)
        if os.path.isfile(path):
            encoder = JsonEncoder.read(path)
            if encoder.id_of(_SPECIAL[EOT_ID]) != EOT_ID:
                raise ValueError(f"{path} is not of a tokenizer trained here; use open_tokenizer")
            return cls(encoder)
        if not os.path.exists(settings_path):
            raise ValueError(f"no tokenizer at {path}; give the workdir of a run that has one")
        settings = read_json(settings_path)
        try:
            file = os.path.join(path, settings.pop("file"))
            reader = JsonEncoder if file.endswith(".json") else SentencePieceEncoder
            return cls(reader.read(file), **settings)
        except (KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(
                f"{settings_path} does not describe a tokenizer ({error!r}); copy the folder again"
            ) from error

    def save(self, path: str) -> None:
        """Writes the tokenizer, so that `load` needs nothing else.

        Args:
          path: a folder, made if missing. transformers' `AutoTokenizer` reads it too, with its
            own cleaning for CLIP (no HTML entities, no ftfy), and not at all for a SigLIP 2
            tokenizer that came as a sentencepiece model. A name that ends in ".json" is taken
            for a file; a trained tokenizer fits into one.

        Raises:
          ValueError: for a file and a tokenizer that is not "trained".
        """
        if path.endswith(".json"):
            if self.family != "trained":
                raise ValueError(f"a {self.family} tokenizer is saved to a folder, not to {path}")
            self.encoder.encoder.save(path)
            return
        os.makedirs(path, exist_ok=True)
        settings = {
            "family": self.family,
            "file": self.encoder.write(path),
            "cleaning": self.cleaning,
            "start_id": self.start_id,
            "eot_id": self.eot_id,
            "pad_id": self.pad_id,
        }
        files = {}
        # Of a Gemma sentencepiece model, Siglip2Tokenizer would make an empty vocabulary.
        if self.family != "siglip2" or isinstance(self.encoder, JsonEncoder):
            files[HF_FILE] = self._described_for_hf()
        files[SETTINGS_FILE] = settings  # last: where it is, the rest is whole
        for name, values in files.items():
            with open(os.path.join(path, name), "w", encoding="utf-8") as file:
                json.dump(values, file, indent=2)

    def _described_for_hf(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json`."""
        length, reader = FAMILIES[self.family]
        if self.family == "siglip" and isinstance(self.encoder, JsonEncoder):
            reader = "PreTrainedTokenizerFast"  # SiglipTokenizer reads sentencepiece alone
        values = {"tokenizer_class": reader, "padding_side": "right"}
        special = {"bos": self.start_id, "eos": self.eot_id, "pad": self.pad_id}
        if self.family == "trained":
            special["unk"] = UNKNOWN_ID
        if self.family == "clip":
            # OpenAI's 0 is "!": transformers would cut texts at it, as at any special token.
            special["pad"] = self.eot_id
        for name, token_id in special.items():
            if token_id is not None:
                values[f"{name}_token"] = self.encoder.token_of(token_id)
        if length is not None:
            values["model_max_length"] = length
        if self.family == "siglip":
            values["do_lower_case"] = self.cleaning != "siglip_cased"
        return values

    def __call__(self, texts: Sequence[str], length: int) -> Int[np.ndarray, "n length"]:
        """Token ids (n, length) int32: start if the family has one, text, end, padding.

        Longer texts are cut so that the end-of-text token stays. No text can write a special
        token: "<|endoftext|>" in a caption is punctuation and letters (for OpenAI's tokenizer it
        is the end).

        Raises:
          ValueError: if `length` has no room for the frame.
        """
        start = () if self.start_id is None else (self.start_id,)
        room = length - len(start) - 1
        if room < 0:
            raise ValueError(
                f"a text of {length} tokens has no room for the start and end of text; use at "
                f"least {len(start) + 1}"
            )
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text in zip(ids, texts, strict=True):
            tokens = (*start, *self._encode(text)[:room], self.eot_id)
            row[: len(tokens)] = tokens
        return ids

    def _make_cache(self):
        clean, encoder = find_cleaning(self.cleaning), self.encoder
        # Measured: one by one is no slower than in batches of a pipeline's size.
        self._encode = functools.lru_cache(maxsize=1 << 17)(
            lambda text: tuple(encoder.ids(clean(text)))
        )

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_encode"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._make_cache()


def read_json(path: str) -> dict:
    """The object in a JSON file.

    Raises:
      ValueError: if the file is damaged, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, or cut ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object; copy it again")
    return values
