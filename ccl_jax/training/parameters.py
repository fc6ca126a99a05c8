"""Parameters by path: ordered (regex, value) lists over them, and parts of their tree.

A path joins the names in the tree with slashes: `image_tower/block_3/attention/query/kernel`.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from ccl_jax.models.two_towers import TwoTowers

Params = Mapping[str, Any]
LORA = "lora"  # where in the tree low-rank updates lie


def initial(model: TwoTowers, seed: int) -> dict[str, Any]:
    """Freshly initialised parameters of the towers, a function of `seed`."""
    size = model.image["image_size"]
    return model.init(
        jax.random.key(seed),
        jnp.zeros((1, size, size, 3)),
        jnp.zeros((1, model.text["length"]), jnp.int32),
        image_tokens=True,
        patch_emb=model.patch_embedder,
    )["params"]


def flatten(params: Params) -> dict[str, Any]:
    """{path: parameter}.

    >>> flatten({"text_tower": {"norm_post": {"bias": 0.0}}, "bias": 1.0})
    {'text_tower/norm_post/bias': 0.0, 'bias': 1.0}
    """
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of {path: value}, the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(values), sep="/")


def split(params: Params, paths: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of the tree with these paths and the rest; neither holds the other's leaves."""
    inside, outside = {}, {}
    for path, value in flatten(params).items():
        (inside if path in paths else outside)[path] = value
    return unflatten(inside), unflatten(outside)


def merge(*parts: Params) -> dict[str, Any]:
    """One tree of several; where two have a path, the later one's value counts."""
    values: dict[str, Any] = {}
    for part in parts:
        values |= flatten(part)
    return unflatten(values)


def assign(rules: Iterable[Sequence[Any]], paths: Iterable[str], field: str) -> dict[str, Any]:
    r"""The value of each path: that of the first rule whose regex matches the *whole* path.

    Args:
      rules: (regex, value) pairs. The match is `re.fullmatch`: write `.*` for "anything here".
      paths: of the parameters; all of them must be matched by some rule.
      field: name of the list in the config, for messages.

    Returns:
      {path: value}.

    Raises:
      ValueError: naming a rule that is no pair or no regex or matches no path, or the paths
        that no rule matches.

    >>> assign([(r".*/bias", 0.0), (r".*", 0.1)], ["a/bias", "a/kernel"], "config.x")
    {'a/bias': 0.0, 'a/kernel': 0.1}
    """
    paths, values = list(paths), {}
    for rule in rules:
        pair = isinstance(rule, list | tuple) and len(rule) == 2
        if not pair or not isinstance(rule[0], str):
            raise ValueError(f"{field} holds {rule!r}; write (regex, value) pairs")
        pattern, value = rule
        matched = matching(pattern, paths, field)
        values |= {path: value for path in matched if path not in values}
    if missing := [path for path in paths if path not in values]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(
            f"{field} says nothing about {', '.join(missing[:5])}{more}; it must cover every "
            "parameter: end it with ('.*', value) for the rest"
        )
    return {path: values[path] for path in paths}


def matching(pattern: str, paths: Sequence[str], field: str) -> list[str]:
    """The paths that a regex matches as a whole.

    Raises:
      ValueError: if it is no regex or matches none; names the path nearest to it.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{field} holds {pattern!r}, which is no regex: {error}") from error
    if matched := [path for path in paths if compiled.fullmatch(path)]:
        return matched
    near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)
    raise ValueError(
        f"{field} holds {pattern!r}, which matches no parameter; it must match a whole path, "
        f"as in {near[0] if near else 'an empty model'!r}"
    )
