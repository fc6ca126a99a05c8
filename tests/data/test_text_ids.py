"""Exchanged ids: the same cuts, other numbers."""

import numpy as np
import pytest

from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_ids import swap_ids

TEXTS = ["a red cube", "a blue ball left of it", "", "unseen: zebra <eot>"]


def test_texts_are_cut_as_before(tmp_path):
    tokenizer = Tokenizer.train(TEXTS[:2], 40)
    last = tokenizer.vocab_size - 1
    found = swap_ids(tokenizer, 2, last)
    assert (found.eot_id, found.pad_id, found.vocab_size) == (last, 0, last + 1)
    expected = tokenizer(TEXTS, 24)
    table = np.arange(last + 1)
    table[[2, last]] = table[[last, 2]]
    np.testing.assert_array_equal(found(TEXTS, 24), table[expected])
    found.save(str(tmp_path))
    np.testing.assert_array_equal(Tokenizer.load(str(tmp_path))(TEXTS, 24), table[expected])
    # The file alone frames texts by the new id, for other readers.
    assert found.encoder.encoder.encode("a red cube").ids[-1] == last
    np.testing.assert_array_equal(swap_ids(found, last, 2)(TEXTS, 24), expected)


def test_unknown_ids_and_published_tokenizers_are_refused():
    tokenizer = Tokenizer.train(TEXTS, 40)
    with pytest.raises(ValueError, match="no token with the id 1000"):
        swap_ids(tokenizer, 2, 1000)
    published = Tokenizer(tokenizer.encoder, family="clip")
    with pytest.raises(ValueError, match="only those of a tokenizer trained here"):
        swap_ids(published, 2, 3)
