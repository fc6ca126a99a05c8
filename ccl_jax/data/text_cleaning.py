"""What is done to a text before it is cut into tokens, by the name that tokenizers record."""

import functools
import html
import importlib.util
import re
import string
import unicodedata
from collections.abc import Callable

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# What ftfy makes of typographic quotes.
_STRAIGHT_QUOTES = str.maketrans(
    dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)


def canonicalize(text: str) -> str:
    """Lower case, without punctuation, single spaces: what a tokenizer of our own is fed."""
    return " ".join(re.sub(r"[^\w\s]|_", " ", text.lower()).split())


def clean_openai(text: str) -> str:
    """OpenAI's cleaning for CLIP without ftfy: HTML entities, white space, lower case.

    Of what ftfy does (OpenAI and open_clip run it first), this straightens quotes and
    composes characters (NFC). Left undone: repair of mojibake ("cafÃ©"), ligatures ("ﬁ"),
    full-width letters, and control characters. The 71,413 texts of Flickr8k, SugarCrepe,
    SugarCrepe++, VALSE and OpenAI's prompts get the same tokens either way.
    """
    text = html.unescape(html.unescape(text))
    return _squeeze(unicodedata.normalize("NFC", text.translate(_STRAIGHT_QUOTES))).lower()


def clean_openai_ftfy(text: str) -> str:
    """OpenAI's cleaning for CLIP, step by step (CLIP's `simple_tokenizer.py`).

    Raises:
      ValueError: if ftfy is not installed.
    """
    return _squeeze(html.unescape(html.unescape(_ftfy().fix_text(text)))).lower()


def clean_siglip(text: str) -> str:
    """SigLIP's: lower case, ASCII punctuation deleted, white space squeezed.

    As `SiglipTokenizer.canonicalize_text` of transformers. Unlike `canonicalize`, nothing takes
    the place of punctuation ("t-shirt" is "tshirt") and that outside ASCII stays.
    """
    return clean_siglip_cased(text.lower())


def clean_big_vision(text: str) -> str:
    """SigLIP's as big_vision and open_clip have it: an underscore is a space, else the same."""
    return clean_siglip(text.replace("_", " "))


def clean_siglip_cased(text: str) -> str:
    """SigLIP's of a checkpoint that says `do_lower_case: false`."""
    return _squeeze(text.translate(_NO_PUNCTUATION))


CLEANINGS: dict[str, Callable[[str], str]] = {
    "canonical": canonicalize,
    "openai": clean_openai,
    "openai_ftfy": clean_openai_ftfy,
    "siglip": clean_siglip,
    "siglip_cased": clean_siglip_cased,
    "big_vision": clean_big_vision,
    "lower": str.lower,
    "none": str,
}


def find_cleaning(name: str) -> Callable[[str], str]:
    """The cleaning of that name.

    Raises:
      ValueError: for an unknown name, or one whose package is not installed.
    """
    if name not in CLEANINGS:
        raise ValueError(f"unknown text cleaning {name!r}; known: {', '.join(CLEANINGS)}")
    if name == "openai_ftfy" and not has_ftfy():
        raise ValueError(
            "the tokenizer cleans texts with ftfy, which is not installed: pip install ftfy, or "
            "open the tokenizer with cleaning='openai', which is the same on ASCII"
        )
    return CLEANINGS[name]


def has_ftfy() -> bool:
    """Whether `clean_openai_ftfy` can be used."""
    return importlib.util.find_spec("ftfy") is not None


@functools.cache
def _ftfy():
    find_cleaning("openai_ftfy")
    import ftfy

    return ftfy


def _squeeze(text):
    return re.sub(r"\s+", " ", text).strip()
