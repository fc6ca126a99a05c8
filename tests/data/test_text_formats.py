"""Published tokenizers, against independent encodings of the same vocabularies."""

import functools
import gzip
import importlib.machinery
import json
import os
import shutil
import sys
import types

import numpy as np
import pytest
import regex
import tokenizers

from ccl_jax.data import text_cleaning
from ccl_jax.data.text_formats import open_tokenizer


@functools.cache
def clip_tables(path):
    """Byte letters, ranks of the merges and ids, written from OpenAI's description."""
    visible = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
    hidden = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        pairs = [tuple(line.split()) for line in file.read().split("\n")[1:48895]]
    tokens = list(letters.values())
    tokens += [letter + "</w>" for letter in tokens] + [left + right for left, right in pairs]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return letters, dict(zip(pairs, range(len(pairs)), strict=True)), tokens


def clip_by_hand(path, text):
    """Merges the pair of the lowest rank, word by word."""
    letters, ranks, tokens = clip_tables(path)
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    found = []
    for word in regex.findall(pattern, text, regex.IGNORECASE):
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while True:
            known = [pair for pair in zip(parts, parts[1:], strict=False) if pair in ranks]
            if not known:
                break
            best, merged = min(known, key=ranks.get), []
            while parts:
                whole = tuple(parts[:2]) == best
                merged.append("".join(parts[: 1 + whole]))
                parts = parts[1 + whole :]
            parts = merged
        found += [ids[part] for part in parts]
    return found


def text_part(tokenizer, texts, length=200):
    """The ids between start and end."""
    rows = tokenizer(texts, length)
    first = 0 if tokenizer.start_id is None else 1
    return [list(row[first : list(row[first:]).index(tokenizer.eot_id) + first]) for row in rows]


def test_clip_gives_the_published_ids(clip):
    rows = clip(["a photo of a cat", "hello world!", "a photo of a dog", "a diagram"], 77)
    assert rows.shape == (4, 77) and rows.dtype == np.int32
    assert list(rows[0, :8]) == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert list(rows[1, :6]) == [49406, 3306, 1002, 256, 49407, 0]
    assert list(rows[2, 1:6]) == [320, 1125, 539, 320, 1929]
    assert list(rows[3, 1:4]) == [320, 22697, 49407]
    assert (clip.family, clip.vocab_size, clip.length) == ("clip", 49408, 77)
    assert (clip.start_id, clip.eot_id, clip.pad_id) == (49406, 49407, 0)


def test_clip_agrees_with_merging_by_hand(clip, merges_file, flickr, hard_texts):
    texts = flickr[::5] + hard_texts
    expected = [clip_by_hand(merges_file, text_cleaning.clean_openai(text)) for text in texts]
    assert text_part(clip, texts) == expected


@pytest.mark.parametrize("files", ["vocabulary", "json", "both"])
def test_clip_folders_agree_with_transformers(tmp_path, merges_file, flickr, files, hard_texts):
    from transformers import CLIPTokenizer

    _, ranks, tokens = clip_tables(merges_file)
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    reference = CLIPTokenizer(vocab=vocabulary, merges=list(ranks))
    if files != "vocabulary":
        reference.save_pretrained(tmp_path)
    if files != "json":
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        lines = ["#version: 0.2", *map(" ".join, ranks), ""]
        (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = open_tokenizer(str(tmp_path))
    assert (tokenizer.family, tokenizer.cleaning) == ("clip", "none")
    texts = flickr + hard_texts
    expected = reference(texts, padding="max_length", truncation=True, max_length=77).input_ids
    np.testing.assert_array_equal(tokenizer(texts, 77), expected)


def test_clip_pads_as_its_folder_says(tmp_path, clip):
    clip.encoder.write(tmp_path)
    assert open_tokenizer(str(tmp_path)).pad_id == 49407
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "!"}}')
    assert open_tokenizer(str(tmp_path)).pad_id == 0
    assert open_tokenizer(str(tmp_path), pad_id=49407).pad_id == 49407
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<none>"}')
    with pytest.raises(ValueError, match="no token '<none>' to pad with"):
        open_tokenizer(str(tmp_path))


def test_truncation_and_padding_in_a_file_are_ignored(tmp_path, clip):
    encoder = tokenizers.Tokenizer.from_str(clip.encoder.encoder.to_str())
    encoder.enable_truncation(4)
    encoder.enable_padding(length=12, pad_id=49407)
    encoder.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(str(tmp_path), pad_id=0)
    text = "a photo of a small dog"
    np.testing.assert_array_equal(tokenizer([text], 20), clip([text], 20))


def test_what_openais_cleaning_does_and_transformers_does_not(clip, merges_file):
    other = open_tokenizer(merges_file, cleaning="none")
    for raw, clean in [("cats &amp;amp; dogs", "cats & dogs"), ("a “red” dog’s", 'a "red" dog\'s')]:
        np.testing.assert_array_equal(clip([raw], 20), clip([clean], 20))
        assert text_part(other, [raw]) != text_part(clip, [raw])
    np.testing.assert_array_equal(other(["  A\n DOG "], 9), clip(["a dog"], 9))


def test_ftfy_is_used_where_it_is_and_asked_for_where_it_was(tmp_path, merges_file, monkeypatch):
    ftfy = types.ModuleType("ftfy")
    ftfy.__spec__ = importlib.machinery.ModuleSpec("ftfy", None)
    ftfy.fix_text = lambda text: text.replace("cafÃ©", "café")
    monkeypatch.setitem(sys.modules, "ftfy", ftfy)
    text_cleaning._ftfy.cache_clear()
    tokenizer = open_tokenizer(merges_file)
    np.testing.assert_array_equal(tokenizer(["a cafÃ©"], 9), tokenizer(["A Café"], 9))
    tokenizer.save(str(tmp_path))
    text_cleaning._ftfy.cache_clear()
    monkeypatch.setattr(text_cleaning, "has_ftfy", lambda: False)
    with pytest.raises(ValueError, match="pip install ftfy, or open .* cleaning='openai'"):
        open_tokenizer(str(tmp_path))


@pytest.mark.parametrize("length", [2, 5, 77])
def test_a_long_text_keeps_its_end(clip, siglip, length):
    text = "a photo of a cat " * 40
    for tokenizer in (clip, siglip):
        whole, cut = tokenizer([text], 300)[0], tokenizer([text], length)[0]
        np.testing.assert_array_equal(cut[:-1], whole[: length - 1])
        assert cut[-1] == tokenizer.eot_id


def test_a_length_without_room_is_refused(clip):
    with pytest.raises(ValueError, match="use at least 2"):
        clip(["a"], 1)


def test_no_text_writes_a_special_token(tmp_path, clip, siglip, gemma_folder):
    clip.encoder.write(tmp_path)
    tokenizers_ = [clip, open_tokenizer(str(tmp_path)), siglip, open_tokenizer(gemma_folder)]
    text = "<|startoftext|> a <|endoftext|> <eos> <bos> <pad> </s> b"
    for tokenizer in tokenizers_:
        row = list(tokenizer([text], 77)[0])
        end = row.index(tokenizer.eot_id)
        assert end > 12
        assert set(row[end + 1 :]) <= {tokenizer.pad_id}
        assert row.count(tokenizer.start_id) == (tokenizer.start_id is not None)


def test_siglip_agrees_with_transformers(siglip, siglip_folder, captions, hard_texts):
    from transformers import SiglipTokenizer

    reference = SiglipTokenizer(os.path.join(siglip_folder, "spiece.model"))
    texts = captions + hard_texts
    expected = reference(texts, padding="max_length", truncation=True, max_length=64).input_ids
    np.testing.assert_array_equal(siglip(texts, 64), expected)
    assert (siglip.family, siglip.eot_id, siglip.pad_id, siglip.length) == ("siglip", 1, 1, 64)
    assert siglip.vocab_size == reference.vocab_size


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("siglip", "A T-shirt, snake_case!\n  “Hi”", "a tshirt snakecase “hi”"),
        ("big_vision", "A T-shirt, snake_case!", "a tshirt snake case"),
        ("siglip_cased", " A T-shirt. ", "A Tshirt"),
        ("openai", " A T-shirt,\n caf&eacute;. ", "a t-shirt, café."),
        ("lower", "A  T-shirt.", "a  t-shirt."),
        ("none", "A  T-shirt.", "A  T-shirt."),
    ],
)
def test_cleanings(name, text, expected):
    assert text_cleaning.find_cleaning(name)(text) == expected


def test_siglip_of_another_case(siglip_folder, tmp_path):
    shutil.copy(os.path.join(siglip_folder, "spiece.model"), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer = open_tokenizer(str(tmp_path))
    assert tokenizer.cleaning == "siglip_cased"
    assert text_part(tokenizer, ["A DOG"]) != text_part(tokenizer, ["a dog"])


def test_siglip_as_a_json_gives_the_same_ids(siglip, captions, tmp_path):
    processor = siglip.encoder._processor
    size = processor.get_piece_size()
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(size)]
    encoder = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    encoder.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(str(tmp_path))
    assert (tokenizer.family, tokenizer.cleaning) == ("siglip", "siglip")
    np.testing.assert_array_equal(tokenizer(captions, 64), siglip(captions, 64))


def test_siglip2_agrees_with_transformers(gemma_folder, captions, tmp_path, hard_texts):
    from transformers import Siglip2Tokenizer
    from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

    model = os.path.join(gemma_folder, "tokenizer.model")
    vocabulary, _, merges = SentencePieceExtractor(model).extract(True)
    reference = Siglip2Tokenizer(
        vocab=vocabulary, merges=merges, add_eos_token=True, padding_side="right"
    )
    reference.save_pretrained(tmp_path)
    texts = captions + hard_texts
    expected = reference(texts, padding="max_length", truncation=True, max_length=64).input_ids
    for folder in (str(tmp_path), gemma_folder):
        tokenizer = open_tokenizer(folder)
        np.testing.assert_array_equal(tokenizer(texts, 64), expected)
        assert (tokenizer.family, tokenizer.eot_id, tokenizer.pad_id) == ("siglip2", 1, 0)
        assert tokenizer.length == 64
