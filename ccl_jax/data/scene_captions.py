"""What is said of a scene: captions in several styles, their phrases, and false captions.

The false captions follow SugarCrepe's categories (Hsieh et al. 2023): swap, replace and add,
each a change of a true caption that makes it false of this scene.
"""

import dataclasses
import itertools
import random
from collections.abc import Sequence

from ccl_jax.data.scene_drawing import COLOR_NAMES, SHAPES, SIZE_NAMES, TEXTURES, SceneObject

STYLES = ("short", "long", "relation")
PAIR_CATEGORIES = (
    "swap_attribute",
    "replace_attribute",
    "replace_object",
    "swap_relation",
    "add_attribute",
)
_OPENINGS = ("", "", "a photo of ", "there is ", "the image shows ")


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption and the noun phrases in it, in order of mention."""

    text: str
    style: str
    phrases: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A true caption of a scene and a false one that differs by `category`."""

    category: str
    caption: str
    negative: str


def object_phrase(obj: SceneObject, *, detailed: bool = False) -> str:
    """Noun phrase of an object; `detailed` adds its size and its texture, if it has one."""
    words = [obj.color, obj.shape]
    if detailed:
        words = [obj.size] + ([obj.texture] if obj.texture != "plain" else []) + words
    return _with_article(" ".join(words))


def scene_captions(rng: random.Random, objects: Sequence[SceneObject]) -> tuple[Caption, ...]:
    """One caption of each style, in the order of `STYLES`.

    short: all objects, colour and shape; long: up to three, with size and texture; relation:
    two of them and how they lie. A scene of one object is described the same
    way in all three.
    """
    if len(objects) == 1:
        texts = [object_phrase(objects[0], detailed=style == "long") for style in STYLES]
        return tuple(
            Caption(_opening(rng) + t, s, (t,)) for s, t in zip(STYLES, texts, strict=True)
        )
    short = tuple(object_phrase(obj) for obj in rng.sample(objects, len(objects)))
    listed = rng.sample(objects, min(len(objects), 3))
    long = tuple(object_phrase(obj, detailed=True) for obj in listed)
    one, other = rng.sample(objects, 2)
    related = (object_phrase(one), object_phrase(other))
    return (
        Caption(_opening(rng) + _join(short), "short", short),
        Caption(_opening(rng) + _join(long), "long", long),
        Caption(f"{related[0]} {_relation(one, other)} {related[1]}", "relation", related),
    )


def scene_pairs(rng: random.Random, objects: Sequence[SceneObject]) -> tuple[Pair, ...]:
    """One pair of each category that the scene allows; none for a scene of one object."""
    if len(objects) == 1:
        return ()
    makers = (_swap_attribute, _replace_attribute, _replace_object, _swap_relation, _add_attribute)
    pairs = []
    for category, make in zip(PAIR_CATEGORIES, makers, strict=True):
        made = make(rng, objects)
        if made is not None:
            pairs.append(Pair(category, *made))
    return tuple(pairs)


def _swap_attribute(rng, objects):
    kinds = {(o.color, o.shape) for o in objects}
    for a, b in itertools.permutations(rng.sample(objects, len(objects)), 2):
        swapped = {(b.color, a.shape), (a.color, b.shape)}
        if a.color != b.color and a.shape != b.shape and not swapped & kinds:
            one, other = _recolored(a, b.color), _recolored(b, a.color)
            opening = _opening(rng)
            return (
                opening + _join((object_phrase(a), object_phrase(b))),
                opening + _join((object_phrase(one), object_phrase(other))),
            )
    return None


def _replace_attribute(rng, objects):
    a, b = rng.sample(objects, 2)
    taken = {o.color for o in objects if o.shape == a.shape}
    color = rng.choice([c for c in COLOR_NAMES if c not in taken])
    return _both(rng, object_phrase(a), object_phrase(_recolored(a, color)), object_phrase(b))


def _replace_object(rng, objects):
    a, b = rng.sample(objects, 2)
    taken = {o.shape for o in objects if o.color == a.color}
    shape = rng.choice([s for s in SHAPES if s not in taken])
    changed = dataclasses.replace(a, shape=shape)
    return _both(rng, object_phrase(a), object_phrase(changed), object_phrase(b))


def _swap_relation(rng, objects):
    a, b = rng.sample(objects, 2)
    relation = _relation(a, b)
    one, other = object_phrase(a), object_phrase(b)
    return f"{one} {relation} {other}", f"{other} {relation} {one}"


def _add_attribute(rng, objects):
    a, b = rng.sample(objects, 2)
    word = rng.choice([t for t in SIZE_NAMES + TEXTURES[1:] if t not in (a.size, a.texture)])
    added = _with_article(" ".join((word, a.color, a.shape)))
    return _both(rng, object_phrase(a), added, object_phrase(b))


def _both(rng, true: str, false: str, other: str) -> tuple[str, str]:
    opening = _opening(rng)
    return opening + _join((true, other)), opening + _join((false, other))


def _recolored(obj: SceneObject, color: str) -> SceneObject:
    return dataclasses.replace(obj, color=color)


def _opening(rng: random.Random) -> str:
    return rng.choice(_OPENINGS)


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _join(phrases: Sequence[str]) -> str:
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _relation(a: SceneObject, b: SceneObject) -> str:
    """How `a` lies to `b` along the axis on which they are further apart."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
