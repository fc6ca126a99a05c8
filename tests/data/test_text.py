import concurrent.futures

import numpy as np
import pytest

from ccl_jax.data.text import EOT_ID, PAD_ID, UNKNOWN_ID, Tokenizer, canonicalize

TEXTS = ["a red circle above a blue square", "a small red star", "there is a blue moon"]


@pytest.fixture(scope="module")
def tokenizer():
    # Few enough texts that every word becomes one token.
    return Tokenizer.train(TEXTS, 500)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Red, red  circle!", "a red red circle"),
        ("T-shirt_2\tis\nBIG.", "t shirt 2 is big"),
        ("  ...  ", ""),
        ("Café Ñandú 雪", "café ñandú 雪"),
    ],
)
def test_canonicalize(text, expected):
    assert canonicalize(text) == expected


def test_layout_of_a_row(tokenizer):
    (row,) = tokenizer(["a red star"], 6)
    assert row.dtype == np.int32
    assert list(row[3:]) == [EOT_ID, PAD_ID, PAD_ID]
    assert len({EOT_ID, PAD_ID, UNKNOWN_ID, *row[:3]}) == 6


def test_equal_texts_but_for_case_and_punctuation_get_equal_tokens(tokenizer):
    one, other, third = tokenizer(["A red star.", "a  Red star", "a star red"], 5)
    np.testing.assert_array_equal(one, other)
    assert list(one) != list(third)


def test_a_shorter_length_is_a_prefix(tokenizer):
    long, short = tokenizer(["a red star"], 12), tokenizer(["a red star"], 4)
    np.testing.assert_array_equal(long[:, :4], short)


def test_a_long_text_keeps_its_end_of_text(tokenizer):
    for length in (1, 2, 5):
        (row,) = tokenizer(TEXTS[:1], length)
        assert row[-1] == EOT_ID
        assert list(row).count(EOT_ID) == 1
    whole, cut = tokenizer(TEXTS[:1], 20)[0], tokenizer(TEXTS[:1], 5)[0]
    np.testing.assert_array_equal(whole[:4], cut[:4])


def test_an_empty_text_is_its_end(tokenizer):
    np.testing.assert_array_equal(tokenizer(["", "?!"], 3), [[EOT_ID, 0, 0]] * 2)
    assert tokenizer([], 3).shape == (0, 3)


def test_letters_never_seen_are_unknown(tokenizer):
    (row,) = tokenizer(["雪"], 3)
    assert list(row) == [UNKNOWN_ID, EOT_ID, PAD_ID]


def test_ids_fit_into_the_vocabulary():
    small = Tokenizer.train(TEXTS, 24)
    assert small.vocab_size <= 24
    assert small(TEXTS, 40).max() < small.vocab_size
    assert small.eot_id == EOT_ID


def test_special_tokens_cannot_be_written(tokenizer):
    (row,) = tokenizer(["<eot> <pad> red"], 16)
    assert list(row).count(EOT_ID) == 1
    assert PAD_ID not in row[: list(row).index(EOT_ID)]


def test_save_and_load(tokenizer, tmp_path):
    path = str(tmp_path / "tokenizer.json")
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(loaded(TEXTS, 10), tokenizer(TEXTS, 10))


def test_training_is_deterministic(tokenizer):
    again = Tokenizer.train(iter(TEXTS), 500)
    np.testing.assert_array_equal(again(TEXTS, 10), tokenizer(TEXTS, 10))


def test_threads_agree(tokenizer):
    fresh = Tokenizer.train(TEXTS, 500)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda _: fresh(TEXTS, 10), range(32)))
    for row in rows:
        np.testing.assert_array_equal(row, tokenizer(TEXTS, 10))


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="data source is empty"):
        Tokenizer.train([], 10)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.json"):
        Tokenizer.load(str(tmp_path / "absent.json"))
