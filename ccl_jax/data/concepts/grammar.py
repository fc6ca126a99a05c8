"""Noun phrases by a lexicon and a grammar, without downloads.

Each word gets a class from TextBlob's packaged lexicon and the lists of `words`, a few
rules of context settle the words that are both noun and verb in captions ("a boy waves",
"the waves"), and a chunk grammar over the classes finds the phrases. The classes are
single letters, so that the grammar is a regular expression:

  D article, possessive, demonstrative     Q number, quantifier     R adverb
  J adjective, participle before a noun    N noun    M plural noun  S the 's of a genitive
  V verb    P pronoun    I preposition     C and, or     , comma    T to    . anything else

Before the context rules also: G -ing form, E participle or past form, B noun or verb.
"""

import functools
import importlib.util
import pathlib
import re
import threading
from collections.abc import Sequence

from ccl_jax.data.concepts import words

_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|['’]s\b|[^\w\s]")
# The bounds keep the search linear on text that is no caption at all.
_MODIFIERS = r"(?:R?J(?:(?:,?C|,)(?=R?J))?){0,8}"
_NOUNS = r"[NM]{1,6}"
_CHUNK = re.compile(rf"[DQ]{{0,3}}{_MODIFIERS}{_NOUNS}(?:S{_MODIFIERS}{_NOUNS})?")

# Lexicon tags (Penn treebank) to classes; a tag that is not here is ".".
_CLASS_OF_TAG = {
    **dict.fromkeys(("NN", "NNP"), "N"),
    **dict.fromkeys(("NNS", "NNPS"), "M"),
    **dict.fromkeys(("JJ", "JJR", "JJS"), "J"),
    **dict.fromkeys(("VB", "VBP", "VBZ", "MD"), "V"),
    **dict.fromkeys(("VBN", "VBD"), "E"),
    **dict.fromkeys(("RB", "RBR", "RBS", "RP"), "R"),
    **dict.fromkeys(("PRP", "WP", "WDT", "EX"), "P"),
    **{"VBG": "G", "DT": "D", "PRP$": "D", "CD": "Q", "IN": "I", "CC": "C", "TO": "T"},
}

# For words outside the lexicon; the first that fits.
_SUFFIX_TAGS = (
    (("able", "ful", "ible", "ient", "ish", "ive", "less", "tic", "ous", "al"), "JJ"),
    (("ate", "ify", "ise", "ize"), "VBP"),
    (("ed",), "VBN"),
    (("ly",), "RB"),
    (("is", "ss"), "NN"),
    (("s",), "NNS"),
)

_SINGULAR = ("a", "an", "another", "one")
_LOCK = threading.Lock()


def tokenize(text: str) -> list[str]:
    """Words in lower case, hyphens within them kept, the 's of a genitive, and punctuation."""
    return _TOKEN.findall(text.lower())


def join(tokens: Sequence[str]) -> str:
    """The words of some tokens as text, without punctuation."""
    text = " ".join(token for token in tokens if token[-1].isalnum())
    return text.replace(" 's", "'s").replace(" ’s", "'s")


def chunk(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) of every noun phrase among the tokens of a caption.

    Raises:
      ValueError: if TextBlob, whose lexicon is read, is not installed.
    """
    classes = "".join(_settle(tokens, [_word_class(token) for token in tokens]))
    spans = []
    for match in _CHUNK.finditer(classes):
        start, end = match.span()
        # "a brown dog pounces": after "a" no plural, so the last word is a verb.
        verb = tokens[start] in _SINGULAR and tokens[end - 1] not in words.CLOSED
        if verb and classes[end - 2 : end] == "NM" and tokens[end - 1].endswith("s"):
            end -= 1
        spans.append((start, end))
    return spans


@functools.lru_cache(maxsize=1 << 16)
def _word_class(token):
    """The class of a word on its own."""
    if token in words.CLOSED:
        return words.CLOSED[token]
    if not token[0].isalnum():
        return "S" if token in ("'s", "’s") else "," if token == "," else "."
    if token[0].isdigit():
        return "Q" if token.isdigit() else "J"
    if "-" in token:
        last = token.rpartition("-")[2]
        if last == "old" or last.endswith(("ed", "ing", "like", "style")):
            return "J"
        return _word_class(last)
    if token.endswith("ing") and len(token) > 4:
        return "N" if token in words.THINGS_IN_ING else "P" if token.endswith("thing") else "G"
    kind = _CLASS_OF_TAG.get(_lexicon_tag(token), ".")
    if kind in "NM" and (token in words.BASE_FORMS or token in words.S_FORMS):
        return "B"
    return kind


def _lexicon_tag(word):
    with _LOCK:  # so that threads do not each load it
        lexicon = _lexicon()
    tag = lexicon.get(word) or lexicon.get(word.capitalize())
    return tag or next((tag for endings, tag in _SUFFIX_TAGS if word.endswith(endings)), "NN")


@functools.cache
def _lexicon():
    """TextBlob's packaged {word: tag}.

    The file is read without importing TextBlob, which takes seconds, loads all of NLTK
    and fills its lexicon in a way that is not thread safe.
    """
    spec = importlib.util.find_spec("textblob")
    if spec is None:
        raise ValueError("the extractor 'embedded' needs TextBlob's lexicon: pip install textblob")
    path = pathlib.Path(spec.origin).parent / "en" / "en-lexicon.txt"
    if not path.exists():
        raise ValueError(f"this TextBlob has no {path}: pip install --upgrade textblob")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    entries = (line.split()[:2] for line in lines if not line.startswith(";;;"))
    return {entry[0]: entry[1] for entry in entries if len(entry) == 2}


def _settle(tokens, kinds):
    """Decides by context, left to right, what G, E, B and some V and J stand for."""
    padded = [*kinds, ".", "."]
    for i, token in enumerate(tokens):
        before = padded[i - 1] if i else "."
        after = padded[i + 1]
        kind = padded[i]
        if kind == "G":
            padded[i] = "J" if _gerund_modifies(tokens, padded, i, before, after) else "V"
        elif kind == "E":
            suffix = token in words.SUFFIX_PARTICIPLES and before in "NM"
            modifies = after in "JNMGEB" and (suffix or before in "DQJRIC.,")
            modifies = modifies or (after == "V" and before in "DI")  # "in fallen leaves"
            padded[i] = "J" if modifies else "V"
            if suffix and modifies:
                padded[i - 1] = "J"
        elif after == "G" and f"{token} {tokens[i + 1]}" in words.SPORTS:
            padded[i] = "N" if padded[i + 2] in "NMB" else "V"
        elif kind in "BV":
            padded[i] = _noun_or_verb(tokens, padded, i, before, after)
        elif kind == "J" and token in words.NOUNS_TOO and before in "DQJ":
            joined = after in "C," and padded[i + 2] == "J"
            padded[i] = "J" if after in "JNMEGB" or joined else "N"
        elif kind == "N" and before == "T" and after == "D":
            padded[i] = "V"
        elif kind == "N" and token in words.THINGS_IN_ING and i and tokens[i - 1] in words.BE:
            padded[i] = "V" if after in "DQR" else "N"  # "is building a snowman"
        elif token in words.MEASURING_PARTS and tokens[i + 1 : i + 2] in (["deep"], ["high"]):
            padded[i] = "R"
        elif kind == "N" and before in "DQI" and after == "J":
            # "a chocolate brown dog"
            shade = tokens[i + 1] in words.COLOURS and padded[i + 2] in "NMB"
            padded[i] = "J" if shade else "N"
    return padded[:-2]


def _gerund_modifies(tokens, kinds, i, before, after):
    """Whether an -ing form stands before its noun ("a running dog")."""
    if after not in "JNMGEB":
        return False
    previous = tokens[i - 1] if i else ""
    if tokens[i] in words.KINDS_IN_ING and before in "IV":
        # "wearing swimming trunks", but "is parking cars" and "while drinking beer".
        acts = previous.endswith("ing") and previous != "being"
        return acts if before == "V" else previous not in words.BEFORE_CLAUSES
    if before == "Q":
        return previous not in words.BARE_NUMBERS and after == "M"
    if before == "I":
        return previous in ("of", "with")
    if before == "J" and tokens[i] != "looking":
        start = i
        while start and kinds[start - 1] in "JCR":
            start -= 1
        return start > 0 and kinds[start - 1] in "DQ"
    return before in "DJS" or (i == 0 and after == "N")


def _noun_or_verb(tokens, kinds, i, before, after):
    """The class of a word that captions use as a noun and as a verb."""
    token = tokens[i]
    s_form = token in words.S_FORMS
    noun = "M" if token.endswith("s") and not token.endswith("ss") else "N"
    if token == "can":  # "a trash can", but "a dog can jump"
        return "V" if after in "VBRE" else "N"
    if words.CLOSED.get(token) == "V":
        return "V"
    if before in "DI" or (before == "E" and after in "I."):
        return noun
    if before == "J":
        # "a woman in red walks": the colour is the noun.
        dressed = i > 1 and (kinds[i - 2] == "I" or tokens[i - 2] == "wearing")
        return "V" if dressed and tokens[i - 1] in words.COLOURS else noun
    if before == "Q":
        return "V" if kinds[i] == "V" and tokens[i - 1] in words.BARE_NUMBERS else noun
    if before in "PV" and kinds[i] == "B":
        return "V" if before == "P" or tokens[i - 1] == "can" else noun
    if before == "T":
        return noun if i > 1 and tokens[i - 2] in words.NOT_VERBS_AFTER else "V"
    if before in "NM":
        if s_form or token in words.VERBS_AFTER_NOUNS:
            return "V"
        if kinds[i] == "V" and token not in words.BASE_FORMS:
            return "V"
        several = (
            before == "M" or tokens[i - 1] in words.COLLECTIVES or "C" in kinds[max(0, i - 4) : i]
        )
        return "V" if several else noun
    if before in "RC,":
        after_verb = i > 1 and kinds[i - 2] in "VRI"
        return "V" if kinds[i] == "V" or after == "D" or after_verb else noun
    return "V" if kinds[i] == "V" else noun
