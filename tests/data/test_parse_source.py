"""A source told in one word on a command line."""

import doctest

import pytest

from ccl_jax.data.sources import parse_source, registry


@pytest.mark.parametrize(
    "text, expected",
    [
        ("data/x-{00..03}.tar", {"kind": "webdataset", "path": "data/x-{00..03}.tar"}),
        ("x.tar.gz", {"kind": "webdataset", "path": "x.tar.gz"}),
        ("x.tsv", {"kind": "table", "path": "x.tsv"}),
        ("kind=tfds,name=a/b,split=train", {"kind": "tfds", "name": "a/b", "split": "train"}),
        ("kind=scenes,seed=3", {"kind": "scenes", "seed": 3}),
        ("kind=table,path={a,b}.csv", {"kind": "table", "path": "{a,b}.csv"}),
        ('{"kind": "mixture", "sources": []}', {"kind": "mixture", "sources": []}),
    ],
)
def test_a_source_is_told_in_one_word(text, expected):
    assert parse_source(text) == expected


def test_a_folder_of_prepared_records_is_known_by_its_description(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    assert parse_source(str(tmp_path)) == {"kind": "prepared", "path": str(tmp_path)}


@pytest.mark.parametrize(
    "text, message",
    [
        ("folder", "write kind=webdataset,path=folder"),
        ('{"kind": ', "not a JSON object"),
        ('{"path": "x.tar"}', "names no kind"),
    ],
)
def test_what_is_no_source_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_source(text)


def test_examples_in_docstrings():
    found = doctest.testmod(registry)
    assert found.attempted and not found.failed
