"""The table of extractors: ways to find noun phrases, with the same filters after each.

An extractor finds runs of the caption's own words. To add one: a function that takes its
options and gives a `Chunker`, and a line in `EXTRACTORS`.
"""

import dataclasses
import difflib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ccl_jax.data.concepts import grammar, instruct
from ccl_jax.data.concepts.filters import Candidate, dropped_by

DUPLICATE = "duplicate"
INVENTED = "not in the caption"

# Captions to what was found in each: (start, end) among its tokens, or, where a model found
# what is not there, the text.
Chunk = tuple[int, int] | str
Chunker = Callable[[Sequence[str], Sequence[list[str]]], Iterable[Iterable[Chunk]]]

_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The phrases of a caption.

    Attributes:
      kept: in order, lower case, without punctuation; () if there are none.
      dropped: (phrase, name of the filter) of all others; the names are those of
        `filters.FILTERS`, "duplicate" and "not in the caption".
    """

    kept: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Finds the phrases of captions; safe to call from several threads.

    Attributes:
      kind: its name in `EXTRACTORS`.
      chunker: finds candidates.
    """

    kind: str
    chunker: Chunker

    def __call__(self, captions: Sequence[str]) -> list[Extraction]:
        """Extracts the phrases of each caption.

        Raises:
          ValueError: if what the extractor needs is not installed.
        """
        tokens = [grammar.tokenize(caption) for caption in captions]
        found = self.chunker(captions, tokens)
        return [_filter(*pair) for pair in zip(tokens, found, strict=True)]


def _filter(tokens: list[str], chunks: Iterable[Chunk]) -> Extraction:
    word_count = sum(token[-1].isalnum() for token in tokens)
    kept: dict[str, None] = {}  # as an ordered set
    dropped = []
    for chunk in chunks:
        if isinstance(chunk, str):
            dropped.append((chunk, INVENTED))
            continue
        candidate = Candidate(tokens, *chunk, word_count)
        phrase = candidate.phrase
        name = dropped_by(candidate)
        if name is None and phrase in kept:
            name = DUPLICATE
        if name is None:
            kept[phrase] = None
        else:
            dropped.append((phrase, name))
    return Extraction(tuple(kept), tuple(dropped))


def _embedded() -> Chunker:
    """The lexicon and grammar of this package."""
    return lambda captions, tokens: map(grammar.chunk, tokens)


def _spacy(*, pipeline: str | None = None) -> Chunker:
    """Noun chunks of a spaCy pipeline; None for the first English one that is installed."""
    language = _spacy_pipeline(pipeline)

    def chunk(captions, tokens):
        from spacy.tokens import Doc

        with _LOCK:  # the pipeline writes to its vocabulary
            documents = language.pipe(Doc(language.vocab, words=words) for words in tokens)
            return [[(c.start, c.end) for c in document.noun_chunks] for document in documents]

    return chunk


def _llm(
    *, model: str | None = None, generate: instruct.Generate | None = None, **options: Any
) -> Chunker:
    """Answers of an instruct model of Hugging Face, or of any other function `generate`."""
    if generate is None:
        if not model:
            raise ValueError(
                "the extractor 'llm' needs a model: give the name of an instruct model on the "
                "Hugging Face hub, or its folder, as model=..."
            )
        generate = instruct.transformers_generator(model, **options)

    def chunk(captions, tokens):
        answers = generate([instruct.prompt(caption) for caption in captions])
        return [
            instruct.locate(words, instruct.parse(answer))
            for words, answer in zip(tokens, answers, strict=True)
        ]

    return chunk


EXTRACTORS: dict[str, Callable[..., Chunker]] = {
    "embedded": _embedded,
    "spacy": _spacy,
    "llm": _llm,
}


def open_extractor(kind: str = "embedded", **options: Any) -> Extractor:
    """Opens an extractor by its name in `EXTRACTORS`.

    Args:
      kind: "embedded" (lexicon and grammar of this package, no downloads), "spacy" (noun
        chunks of an installed English pipeline), "llm" (a Hugging Face instruct model), or
        "auto": spaCy where a pipeline is installed, else embedded.
      **options: of that extractor. spacy: `pipeline`. llm: `model`, `batch_size`,
        `max_new_tokens`, `device`.

    Raises:
      ValueError: for an unknown `kind` or option, or if a package or pipeline is missing.
    """
    if kind == "auto":
        kind = installed_extractor()
    if kind not in EXTRACTORS:
        nearest = difflib.get_close_matches(str(kind), EXTRACTORS, n=1, cutoff=0)[0]
        known = ", ".join(EXTRACTORS)
        raise ValueError(f"unknown extractor {kind!r}: did you mean {nearest!r}? Known: {known}")
    try:
        inspect.signature(EXTRACTORS[kind]).bind(**options)
        return Extractor(kind, EXTRACTORS[kind](**options))
    except TypeError as error:
        raise ValueError(f"extractor {kind!r}: {error}") from error


def installed_extractor() -> str:
    """The extractor that "auto" stands for on this machine."""
    try:
        _spacy_pipeline(None)
    except ValueError:
        return "embedded"
    return "spacy"


@functools.cache
def _spacy_pipeline(name: str | None):
    try:
        import spacy
    except ImportError as error:
        raise ValueError("the extractor 'spacy' needs its package: pip install spacy") from error
    installed = sorted(spacy.util.get_installed_models())
    english = [model for model in installed if model.startswith("en_")]
    if name not in (*installed, None) or not (name or english):
        wanted = name or "en_core_web_sm"
        raise ValueError(
            f"the extractor 'spacy' needs the pipeline {wanted}, installed are "
            f"{', '.join(installed) or 'none'}: python -m spacy download {wanted}"
        )
    return spacy.load(name or english[0])
