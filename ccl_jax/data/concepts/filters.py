"""Which noun phrases are no concepts, by name, so that they can be counted.

A filter looks at a phrase where it stands in its caption. The first that fits drops it.
"""

from collections.abc import Callable, Sequence

from ccl_jax.data.concepts.grammar import join
from ccl_jax.data.concepts.words import CLOSED, COLOURS

_PRONOUNS = frozenset(
    "he her hers herself him himself his i it its itself me mine myself other others she their "
    "theirs them themselves they us we you yours yourself".split()
) | frozenset(word for word, kind in CLOSED.items() if kind == "P")
_DETERMINERS = frozenset(word for word, kind in CLOSED.items() if kind in "DQ")
_OWNERS = frozenset("her his its their".split())
# Counts, not concepts, when "of" follows: "a group of people" gives "people".
_MEASURES = frozenset(
    "array assortment bit bunch couple dozens group groups handful kind line lot lots number pair "
    "pairs part row rows series set sort type variety".split()
)
_SIDES = frozenset("back bottom far front left near opposite other right same top upper".split())
# Places in the picture and relations in space.
_PLACES = frozenset(
    "air back background bottom center centre direction distance edge end foreground front left "
    "middle midst rear right side sides thing things time top way".split()
)
_PLAIN = COLOURS | frozenset("blank blurred blurry dark isolated light plain transparent".split())
# Places that say nothing unless an adjective does: "an area", but "a grassy area".
_ANYWHERE = frozenset("area areas environment location place places setting spot spots".split())

_PICTURES = frozenset(
    "clipart close-up closeup footage illustration image photo photograph picture portrait render "
    "rendering scene screenshot shot snapshot view".split()
)
_CAMERA = frozenset(
    "aerial angle detailed full high low low-angle overhead panoramic wide wide-angle".split()
)
_VIEWS = _SIDES | _CAMERA
_AGENCIES = frozenset(
    "123rf adobestock alamy depositphotos dreamstime fotolia getty istock istockphoto pinterest "
    "shutterstock unsplash".split()
)
_STOCK = _AGENCIES | frozenset(
    "4k clipart copyright copyrights hd high-resolution resolution royalty royalty-free stock "
    "thumbnail vector vectors watermark".split()
)
# With one of those: "stock photo", "vector art", "free vector illustration", "getty images".
_SOLD = _PICTURES | frozenset(
    "art background backgrounds clip design footage graphic graphics illustrations image images "
    "photography photos pictures video wallpaper".split()
)


class Candidate:
    """A phrase in its caption.

    Attributes:
      phrase: its words as text.
      words: its words.
      content: those that are no articles, possessives or numbers.
      is_whole: whether the caption has no other words.
      before: the two tokens in front of it, "" where there are none.
      of_follows: whether the next token is "of".
    """

    __slots__ = ("before", "content", "is_whole", "of_follows", "phrase", "words")

    def __init__(self, tokens: Sequence[str], start: int, end: int, word_count: int):
        """`tokens` are those of the caption, `word_count` of them words."""
        self.words = [token for token in tokens[start:end] if token[-1].isalnum()]
        self.phrase = join(self.words)
        self.content = [word for word in self.words if word not in _DETERMINERS]
        self.is_whole = len(self.words) == word_count
        self.before = (tokens[start - 2] if start > 1 else "", tokens[start - 1] if start else "")
        self.of_follows = end < len(tokens) and tokens[end] == "of"


def _is_pronoun(phrase: Candidate) -> bool:
    return bool(phrase.words) and phrase.words[-1] in _PRONOUNS


def _is_empty(phrase: Candidate) -> bool:
    return not phrase.content or len(phrase.content[-1]) < 2


def _is_whole_caption(phrase: Candidate) -> bool:
    return phrase.is_whole


def _is_absent(phrase: Candidate) -> bool:
    return phrase.words[0] in ("no", "any") or phrase.before[1] == "without"


def _is_count(phrase: Candidate) -> bool:
    return phrase.of_follows and phrase.content[-1] in _MEASURES


def _is_boilerplate(phrase: Candidate) -> bool:
    *others, head = phrase.content
    if head in _PICTURES:
        if phrase.of_follows or (head != "portrait" and _VIEWS.issuperset(others)):
            return True
    if head in _STOCK or (head in _SOLD and not _STOCK.isdisjoint(others)):
        return True
    first, second = phrase.before
    if second == "by" and first in _SOLD or second == "of" and first == "courtesy":
        return True
    return phrase.phrase == "the camera"


def _is_generic_place(phrase: Candidate) -> bool:
    *others, head = phrase.content
    if head in _ANYWHERE:
        return not others
    if head not in _PLACES or phrase.words[0] in _OWNERS:  # "her back" is part of her
        return False
    return _SIDES.issuperset(others) or (head == "background" and _PLAIN.issuperset(others))


FILTERS: dict[str, Callable[[Candidate], bool]] = {
    "pronoun": _is_pronoun,
    "no noun": _is_empty,
    "whole caption": _is_whole_caption,
    "absent": _is_absent,
    "count": _is_count,
    "boilerplate": _is_boilerplate,
    "generic place": _is_generic_place,
}


def dropped_by(phrase: Candidate) -> str | None:
    """The name of the first filter that drops a phrase, or None."""
    for name, drops in FILTERS.items():
        if drops(phrase):
            return name
    return None
