"""Captions with their words in another order, as in ARO's COCO-Order and Flickr30k-Order.

Yuksekgonul et al. (ICLR 2023), section 2.2: nouns and adjectives each permuted among themselves;
every other word permuted; words permuted within each group of three; groups of three permuted. The
published code draws without a seed and tags with spaCy; here the draw is a function of the item's
key, and words are told apart by the package's own grammar, so that nothing is downloaded and every
model sees the same texts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import numpy as np

from ccl_jax.data.concepts import grammar
from ccl_jax.evaluation.cache import digest

SEED = 0
_MAX_WORDS = 30
_ATTEMPTS = 10
# They stand in noun phrases without being noun or adjective.
_FUNCTION_WORDS = frozenset(
    "a an the this that these those my your his her its our their whose 's ’s and or , one two "
    "three four five six seven eight nine ten some several all both each every another many few "
    "any no very".split()
)


def shortened(caption: str) -> str:
    """A caption as the published code gives it to a model.

    Lower case, the signs . ! " ( ) * # : ; ~ taken for spaces, at most 30 words.
    """
    words = re.sub(r'[.!"()*#:;~]', " ", caption.lower()).split()
    return " ".join(words[:_MAX_WORDS])


def perturbed(caption: str, key: str) -> list[str]:
    """Up to four reorderings of a caption, the same at every call.

    Args:
      caption: of any length.
      key: of the item; together with `SEED` it determines the draw.

    Returns:
      One text for each way of reordering, without those that cannot change the caption (a single
      noun has no other order): a negative that equals the caption would be a tie.
    """
    tokens = grammar.tokenize(shortened(caption))
    rng = np.random.default_rng([SEED, *digest(key)])
    texts = []
    for reorder in _WAYS:
        for _ in range(_ATTEMPTS):
            found = reorder(tokens, rng)
            if found != tokens:
                texts.append(" ".join(found))
                break
    return texts


def _kinds(tokens: list[str]) -> tuple[list[int], list[int]]:
    """Positions of nouns and of adjectives."""
    nouns, adjectives = [], []
    for start, end in grammar.chunk(tokens):
        for i in range(start, end):
            if tokens[i] in _FUNCTION_WORDS or tokens[i].isdigit():
                continue
            # A word that is a noun phrase on its own is a noun.
            (nouns if i == end - 1 or _is_noun(tokens[i]) else adjectives).append(i)
    return nouns, adjectives


@functools.lru_cache(maxsize=1 << 16)
def _is_noun(word: str) -> bool:
    return bool(grammar.chunk([word]))


def _permute(tokens: list[str], positions: list[int], rng: np.random.Generator) -> list[str]:
    found = list(tokens)
    for to, source in zip(positions, rng.permutation(positions).tolist(), strict=True):
        found[to] = tokens[source]
    return found


def _nouns_and_adjectives(tokens: list[str], rng: np.random.Generator) -> list[str]:
    nouns, adjectives = _kinds(tokens)
    return _permute(_permute(tokens, nouns, rng), adjectives, rng)


def _all_but_nouns_and_adjectives(tokens: list[str], rng: np.random.Generator) -> list[str]:
    kept = set().union(*_kinds(tokens))
    return _permute(tokens, [i for i in range(len(tokens)) if i not in kept], rng)


def _within_trigrams(tokens: list[str], rng: np.random.Generator) -> list[str]:
    found = list(tokens)
    for start in range(0, len(tokens), 3):
        found = _permute(found, list(range(start, min(start + 3, len(tokens)))), rng)
    return found


def _trigrams(tokens: list[str], rng: np.random.Generator) -> list[str]:
    groups = [tokens[i : i + 3] for i in range(0, len(tokens), 3)]
    return [token for g in rng.permutation(len(groups)) for token in groups[g]]


_WAYS: tuple[Callable, ...] = (
    _nouns_and_adjectives,
    _all_but_nouns_and_adjectives,
    _within_trigrams,
    _trigrams,
)
