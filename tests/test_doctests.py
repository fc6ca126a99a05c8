"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import ccl_jax.losses
import ccl_jax.models

MODULES = [
    module.name
    for package in (ccl_jax.losses, ccl_jax.models)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    # doctest prints what differs, and pytest shows it.
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_are_found():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(importlib.import_module("ccl_jax.losses.ccl"))
    assert {"npc_loss", "xac_loss"} <= {t.name.split(".")[-1] for t in found if t.examples}
