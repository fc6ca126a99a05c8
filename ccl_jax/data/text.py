"""Tokenizers: text to token ids of one length."""

import functools
import itertools
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int

PAD_ID, UNKNOWN_ID, EOT_ID = 0, 1, 2
_SPECIAL = ["<pad>", "<unk>", "<eot>"]


def canonicalize(text: str) -> str:
    """Lower case, without punctuation, single spaces: what SigLIP's text tower is fed."""
    return " ".join(re.sub(r"[^\w\s]|_", " ", text.lower()).split())


class Tokenizer:
    """Byte-pair encoding over canonicalised text, end-of-text token, padding to a length.

    For data sets that come without a tokenizer; trained on their captions.
    """

    eot_id = EOT_ID

    def __init__(self, encoder: tokenizers.Tokenizer):
        self._encoder = encoder
        self._encode = functools.lru_cache(maxsize=1 << 17)(self._encode_text)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns at most `vocab_size` tokens (whole frequent words among them) from `texts`.

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
        return cls(encoder)

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Reads what `save` wrote.

        Raises:
          ValueError: if there is no such file.
        """
        if not os.path.exists(path):
            raise ValueError(f"no tokenizer at {path}; give the workdir of a run that has one")
        return cls(tokenizers.Tokenizer.from_file(path))

    def save(self, path: str) -> None:
        """Writes the tokenizer as a `tokenizer.json` of the tokenizers library."""
        self._encoder.save(path)

    @property
    def vocab_size(self) -> int:
        """Number of token ids in use."""
        return self._encoder.get_vocab_size()

    def __call__(self, texts: Sequence[str], length: int) -> Int[np.ndarray, "n length"]:
        """Token ids (n, length) int32: text, one end-of-text token, padding.

        Longer texts are cut so that the end-of-text token stays.
        """
        ids = np.full((len(texts), length), PAD_ID, np.int32)
        for row, text in zip(ids, texts, strict=True):
            tokens = self._encode(text)[: length - 1]
            row[: len(tokens)] = tokens
            row[len(tokens)] = EOT_ID
        return ids

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._encoder.encode(canonicalize(text)).ids)
