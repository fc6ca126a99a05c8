"""Tokenizers saved and read again, and files that are no tokenizer."""

import gzip
import json
import os
import pickle
import sys

import numpy as np
import pytest
import tokenizers

from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_formats import open_tokenizer

MERGES = "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture
def tokenizer(request, clip, siglip, gemma_folder):
    if request.param == "trained":
        return Tokenizer.train(["a red dog, a blue cat"], 60)
    if request.param == "siglip2":
        return open_tokenizer(gemma_folder)
    return {"clip": clip, "siglip": siglip}[request.param]


@pytest.mark.parametrize("tokenizer", ["trained", "clip", "siglip", "siglip2"], indirect=True)
def test_a_saved_tokenizer_needs_nothing_else(tokenizer, tmp_path, hard_texts):
    workdir = tmp_path / "run"
    tokenizer.save(str(workdir / "tokenizer"))
    (workdir / "config.json").write_text("{}")
    texts = hard_texts + ["a red dog"]
    expected = tokenizer(texts, 40)
    copies = [
        pickle.loads(pickle.dumps(tokenizer)),
        Tokenizer.load(str(workdir / "tokenizer")),
        open_tokenizer(str(workdir)),
    ]
    for copy in copies:
        np.testing.assert_array_equal(copy(texts, 40), expected)
        for name in ("family", "cleaning", "start_id", "eot_id", "pad_id", "vocab_size", "length"):
            assert getattr(copy, name) == getattr(tokenizer, name)


@pytest.mark.parametrize("tokenizer", ["trained", "clip", "siglip"], indirect=True)
def test_transformers_reads_what_is_saved(tokenizer, captions, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(str(tmp_path))
    reference = AutoTokenizer.from_pretrained(tmp_path)
    # CLIPTokenizer cannot be told to pad with 0 and still read "!" as a word.
    expected = Tokenizer(
        tokenizer.encoder,
        family=tokenizer.family,
        cleaning=tokenizer.cleaning,
        start_id=tokenizer.start_id,
        eot_id=tokenizer.eot_id,
        pad_id=reference.pad_token_id,
    )
    rows = reference(captions, padding="max_length", truncation=True, max_length=64).input_ids
    np.testing.assert_array_equal(expected(captions, 64), rows)
    if tokenizer.family != "clip":
        assert reference.pad_token_id == tokenizer.pad_id


def test_a_gemma_model_is_saved_without_a_config_that_misleads(gemma_folder, tmp_path):
    open_tokenizer(gemma_folder).save(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["ccl_tokenizer.json", "tokenizer.model"]


def test_one_file_is_for_trained_tokenizers(clip, tmp_path):
    path = str(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="clip tokenizer is saved to a folder"):
        clip.save(path)
    Tokenizer.train(["a dog"], 20).save(path)
    assert open_tokenizer(str(tmp_path)).family == "trained"  # an older workdir
    assert open_tokenizer(path).cleaning == "canonical"
    clip.encoder.write(tmp_path)
    with pytest.raises(ValueError, match="not of a tokenizer trained here"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tokenizer.json", b'{"version": "1.0", "mod', "not a tokenizer.json, or cut"),
        ("spiece.model", b"\x0a\x0e\x0a", "not a sentencepiece model, or cut"),
        ("spiece.model", b"", "not a sentencepiece model, or cut"),
        (MERGES, b"\x1f\x8b\x08", "cannot be unpacked"),
        (MERGES, gzip.compress(b"#version\na b\n", mtime=0), "does not hold CLIP's 48894 merges"),
        ("ccl_tokenizer.json", b'{"family": "clip"}', "does not describe a tokenizer"),
        ("ccl_tokenizer.json", b'{"family": "cl', "not JSON, or cut"),
        ("ccl_tokenizer.json", b'{"file": "absent.json"}', "is not a tokenizer.json|absent"),
        ("weights.bin", b"", "it holds weights.bin; wanted is tokenizer.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_tokenizer(str(tmp_path))


def test_a_cut_spiece_model_is_named(sentencepiece_model, tmp_path):
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model[:-40])
    with pytest.raises(ValueError, match="spiece.model is not a sentencepiece model, or cut"):
        open_tokenizer(str(tmp_path))


def test_vocabulary_and_merges_must_fit(tmp_path):
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(ValueError, match="it is not CLIP's"):
        open_tokenizer(str(tmp_path))
    vocabulary = {"a": 0, "b": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="merges.txt does not fit"):
        open_tokenizer(str(tmp_path))


def test_other_families_and_absent_files(tmp_path):
    encoder = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[CLS]": 0}, unk_token="[CLS]"))
    encoder.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="of no known family"):
        open_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="hf download google/siglip-base-patch16-224"):
        open_tokenizer("google/siglip-base-patch16-224")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no tokenizer's file by its name"):
        open_tokenizer(str(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match="unknown text cleaning 'openia'"):
        Tokenizer(None, cleaning="openia")
    with pytest.raises(ValueError, match="unknown tokenizer family 'bert'"):
        Tokenizer(None, family="bert")


def test_a_missing_package_is_named(siglip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # makes its import fail
    with pytest.raises(ValueError, match="pip install sentencepiece"):
        open_tokenizer(siglip_folder)
