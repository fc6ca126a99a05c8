"""Embeddings found again, and what an interrupted or damaged cache keeps."""

import numpy as np
import pytest

from ccl_jax.evaluation import cache as caches
from ccl_jax.evaluation.cache import EmbeddingCache, collection_fingerprint, digest


@pytest.fixture
def keys():
    return [digest(f"image {i}") for i in range(7)]


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def test_rows_come_back_in_another_process(tmp_path, keys, rows):
    first = EmbeddingCache(tmp_path, "model")
    assert first.missing("image", keys) == list(range(7))
    first.put("image", keys[:4], rows[:4])
    first.flush()
    again = EmbeddingCache(tmp_path, "model")
    assert again.missing("image", keys) == [4, 5, 6]
    found = again.get("image", keys)
    np.testing.assert_array_equal(np.stack(found[:4]), rows[:4])
    assert found[4:] == [None] * 3
    # Of another model or kind there is nothing.
    assert EmbeddingCache(tmp_path, "other").missing("image", keys[:1]) == [0]
    assert again.missing("text", keys[:1]) == [0]


def test_full_shards_are_on_disk_before_the_end(tmp_path, keys, rows, monkeypatch):
    monkeypatch.setattr(caches, "SHARD_ROWS", 3)
    EmbeddingCache(tmp_path, "model").put("image", keys, rows)  # and is never flushed
    again = EmbeddingCache(tmp_path, "model")
    assert again.missing("image", keys) == [6]
    np.testing.assert_array_equal(np.stack(again.get("image", keys[:6])), rows[:6])
    assert len(list((tmp_path / "model" / "image").iterdir())) == 2


def test_rows_of_a_minute_are_on_disk(tmp_path, keys, rows, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(caches.time, "monotonic", lambda: now[0])
    cache = EmbeddingCache(tmp_path, "model")
    for index, seconds in enumerate((10, 59, 61, 80, 120, 122)):
        now[0] = seconds
        cache.put("image", keys[index : index + 1], rows[index : index + 1])
    # It is never flushed: rows are written after 61 and 122 seconds.
    assert EmbeddingCache(tmp_path, "model").missing("image", keys) == [6]
    assert len(list((tmp_path / "model" / "image").iterdir())) == 2


def test_two_writers_share_a_folder(tmp_path, keys, rows):
    one, two = EmbeddingCache(tmp_path, "model"), EmbeddingCache(tmp_path, "model")
    one.put("image", keys[:5], rows[:5])
    two.put("image", keys[3:], rows[3:])
    one.flush()
    two.flush()
    again = EmbeddingCache(tmp_path, "model")
    np.testing.assert_array_equal(np.stack(again.get("image", keys)), rows)


def test_a_damaged_shard_is_computed_again(tmp_path, keys, rows):
    cache = EmbeddingCache(tmp_path, "model")
    cache.put("image", keys, rows)
    cache.flush()
    (shard,) = (tmp_path / "model" / "image").glob("*.npz")
    shard.write_bytes(shard.read_bytes()[:-200])
    (tmp_path / "model" / "image" / "left.partial").write_bytes(b"cut")
    assert EmbeddingCache(tmp_path, "model").missing("image", keys) == list(range(7))


def test_equal_digests_are_missing_once(keys):
    assert EmbeddingCache().missing("text", [keys[0], keys[1], keys[0]]) == [0, 1]


def test_digests_know_where_a_string_ends():
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("\ud83d") == digest("\ud83d")  # half of a surrogate pair is a text, too
    a, b = digest("a"), digest("b")
    assert collection_fingerprint([a, b]) != collection_fingerprint([b, a])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--cache_dir"):
        EmbeddingCache(tmp_path / "file", "model")
    with pytest.raises(ValueError, match="fingerprint"):
        EmbeddingCache(tmp_path)
