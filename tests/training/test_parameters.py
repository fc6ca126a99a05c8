"""Lists over paths: the first match counts, every path needs one, and every rule a path."""

import numpy as np
import pytest

from ccl_jax.training import parameters

PATHS = ["image_tower/block_0/mlp/up/kernel", "image_tower/block_0/mlp/up/bias", "bias"]


def assign(*rules):
    return parameters.assign(rules, PATHS, "config.x")


def test_the_first_rule_that_matches_the_whole_path_counts():
    found = assign((".*/kernel", 1.0), ("image_tower/.*", 2.0), ("bias", 3.0), (".*", 4.0))
    # "bias" is the end of the second path, but not all of it.
    assert list(found.items()) == list(zip(PATHS, (1.0, 2.0, 3.0), strict=True))


def test_rules_read_back_from_json_are_lists_and_the_same():
    assert assign([".*", 1.0]) == assign((".*", 1.0))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([(".*/kernel", 1)], r"nothing about image_tower/block_0/mlp/up/bias, bias; .*cover"),
        ([(".*", 1), ("kernel", 1)], "'kernel', which matches no parameter; .*whole path"),
        ([("imag_tower/block_0/mlp/up/bias", 1)], "'image_tower/block_0/mlp/up/bias'"),
        ([("(", 1)], r"'\(', which is no regex"),
        ([".*"], "write .regex, value. pairs"),
        ([(".*", 1, 2)], "write .regex, value. pairs"),
        ([(1, ".*")], "write .regex, value. pairs"),
        ([5], "write .regex, value. pairs"),
        ([], "it must cover every parameter"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_its_name(rules, message):
    with pytest.raises(ValueError, match=message) as error:
        assign(*rules)
    assert "config.x" in str(error.value)


def test_many_uncovered_parameters_are_counted():
    with pytest.raises(ValueError, match="p4 and 3 more; "):
        parameters.assign([("q", 1)], ["q", *(f"p{i}" for i in range(8))], "config.x")


def test_parts_of_a_tree_hold_their_own_leaves_and_merge_to_the_whole():
    tree = {"a": {"b": {"c": np.zeros(1), "d": np.ones(2)}}, "e": np.ones(3)}
    inside, outside = parameters.split(tree, {"a/b/d"})
    assert list(parameters.flatten(inside)) == ["a/b/d"]
    assert list(parameters.flatten(outside)) == ["a/b/c", "e"]
    whole = parameters.flatten(parameters.merge(outside, inside))
    assert all(whole[path] is value for path, value in parameters.flatten(tree).items())
    nothing, everything = parameters.split(tree, set())
    assert nothing == {} and parameters.flatten(everything).keys() == whole.keys()


def test_the_later_part_counts_where_two_have_a_path():
    assert parameters.merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
