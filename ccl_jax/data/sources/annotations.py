"""Captions and phrases as sources store them, checked and made alike."""

import json
from collections.abc import Sequence
from typing import Any

from ccl_jax.data.records import BadRecord

# Longer texts are scraped pages rather than captions; their phrases would fill a batch.
MAX_CAPTION_CHARS = 10_000

Annotations = tuple[tuple[str, ...], tuple[tuple[str, ...], ...] | None]


def decode_text(data: bytes, key: str) -> str:
    """UTF-8 bytes as text, without a byte order mark.

    Raises:
      BadRecord: "invalid UTF-8".
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord(key, "invalid UTF-8", str(error)) from error


def parse_object(data: bytes, key: str) -> dict[str, Any]:
    """The fields of a JSON object.

    Raises:
      BadRecord: "invalid json", "invalid UTF-8".
    """
    text = decode_text(data, key)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord(key, "invalid json", str(error)) from error
    if not isinstance(fields, dict):
        raise BadRecord(key, "invalid json", f"expected an object, got {type(fields).__name__}")
    return fields


def as_captions(value: Any, field: str, key: str) -> list[str]:
    """A string or a list of strings, as a list.

    Raises:
      BadRecord: "invalid caption".
    """
    captions = [value] if isinstance(value, str) else value
    if not _is_list_of_str(captions):
        detail = f"field {field!r} is neither a string nor a list of strings"
        raise BadRecord(key, "invalid caption", detail)
    return captions


def as_phrases(value: Any, field: str, count: int, key: str) -> list[list[str]] | None:
    """The phrases of each of `count` captions: a list of strings goes to every caption.

    Raises:
      BadRecord: "invalid phrases".
    """
    if value is None:
        return None
    phrases = [value] * count if _is_list_of_str(value) else value
    if not (isinstance(phrases, list) and all(map(_is_list_of_str, phrases))):
        detail = f"field {field!r} is neither a list of strings nor one list a caption"
        raise BadRecord(key, "invalid phrases", detail)
    if len(phrases) != count:
        detail = f"{len(phrases)} lists of phrases for {count} captions"
        raise BadRecord(key, "invalid phrases", detail)
    return phrases


def clean_annotations(
    captions: Sequence[str], phrases: Sequence[Sequence[str]] | None, key: str
) -> Annotations:
    """Strips captions and phrases, and drops the empty and overlong ones.

    Args:
      captions: of one image.
      phrases: one list a caption, or None.
      key: the record's name, for errors.

    Raises:
      BadRecord: "empty caption" or "caption too long" where no caption remains, "invalid
        UTF-8" for half of a surrogate pair, which JSON can spell.
    """
    stripped = [caption.strip() for caption in captions]
    kept = [i for i, caption in enumerate(stripped) if 0 < len(caption) <= MAX_CAPTION_CHARS]
    if not kept:
        longest = max(map(len, stripped), default=0)
        if longest:
            detail = f"{longest} characters, over {MAX_CAPTION_CHARS}"
            raise BadRecord(key, "caption too long", detail)
        raise BadRecord(key, "empty caption")
    captions = tuple(stripped[i] for i in kept)
    _check_encodable(captions, key)
    if phrases is None:
        return captions, None
    return captions, tuple(_clean_phrases(phrases[i], key) for i in kept)


def _clean_phrases(phrases, key):
    stripped = (phrase.strip() for phrase in phrases)
    kept = tuple(phrase for phrase in stripped if 0 < len(phrase) <= MAX_CAPTION_CHARS)
    _check_encodable(kept, key)
    return kept


def _check_encodable(texts, key):
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRecord(key, "invalid UTF-8", str(error)) from error


def _is_list_of_str(value):
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
