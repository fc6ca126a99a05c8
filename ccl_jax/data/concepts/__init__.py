"""Noun phrases of English captions: the concepts that a concept-centric loss binds."""

import functools

from ccl_jax.data.concepts.extractors import (
    EXTRACTORS,
    Extraction,
    Extractor,
    installed_extractor,
    open_extractor,
)

__all__ = [
    "EXTRACTORS",
    "Extraction",
    "Extractor",
    "extract_phrases",
    "installed_extractor",
    "open_extractor",
]


def extract_phrases(caption: str, *, extractor: str | Extractor = "embedded") -> tuple[str, ...]:
    """Finds the noun phrases of an English caption, with their attributes.

    Dropped are pronouns, repeats, places in the picture ("the background", "the left
    side"), talk about the picture ("a photo", "stock vector"), counts ("a group" of people),
    what the caption says is missing ("without a hat") and a phrase that is the whole caption.

    >>> extract_phrases("A girl in a red dress holds her umbrella .")
    ('a girl', 'a red dress', 'her umbrella')

    Args:
      caption: one caption, of one sentence or several.
      extractor: a name in `EXTRACTORS`, or what `open_extractor` gave.

    Returns:
      The phrases in order: lower case, without punctuation; () if there are none.

    Raises:
      ValueError: for an unknown `extractor`, or one whose packages are not installed.
    """
    if isinstance(extractor, str):
        extractor = _opened(extractor)
    return extractor([caption])[0].kept


_opened = functools.lru_cache(maxsize=4)(open_extractor)
