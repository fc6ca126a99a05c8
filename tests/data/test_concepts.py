import concurrent.futures
import doctest
import importlib.util
import pathlib
import socket
import sys
import time

import pytest

from ccl_jax.data.concepts import extract_phrases, extractors, grammar, open_extractor
from ccl_jax.data.sources import WebDatasetSource

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"

# Noun phrases as a reader would underline them.
READ_BY_HAND = {
    "A young boy waves his hand at the duck in the water surrounded by a green park .": (
        "a young boy | his hand | the duck | the water | a green park"
    ),
    "A woman in a red dress holds a blue umbrella .": "a woman | a red dress | a blue umbrella",
    "a red cube to the left of a small blue sphere": "a red cube | a small blue sphere",
    "A black and white dog runs through tall, wet grass.": (
        "a black and white dog | tall wet grass"
    ),
    "Two brightly colored birds sit on a snow covered branch .": (
        "two brightly colored birds | a snow covered branch"
    ),
    "A man 's dog and the girl's hat": "a man's dog | the girl's hat",
    "The smiling child is riding a wooden horse": "the smiling child | a wooden horse",
    "A boy in a white T-shirt plays on the swings .": "a boy | a white t-shirt | the swings",
    "Children play in fallen leaves near railroad tracks .": (
        "children | fallen leaves | railroad tracks"
    ),
    "a woman wearing swimming trunks while washing dishes": "a woman | swimming trunks | dishes",
    "An orange on a plate next to an orange cat": "an orange | a plate | an orange cat",
    "A man in red walks past a navy blue car .": "a man | a navy blue car",
}


@pytest.mark.parametrize("caption", READ_BY_HAND)
def test_phrases_are_those_a_reader_finds(caption):
    assert " | ".join(extract_phrases(caption)) == READ_BY_HAND[caption]


@pytest.mark.parametrize(
    "caption, phrases",
    [
        ("A boy waves .", ("a boy",)),
        ("The waves hit a boy .", ("the waves", "a boy")),
        ("A man watches two dogs race .", ("a man", "two dogs")),
        ("Two dogs in a race", ("two dogs", "a race")),
        ("A man walks his dog .", ("a man", "his dog")),
        ("A man on a walk", ("a man", "a walk")),
        ("A woman cutting pizza", ("a woman", "pizza")),
        ("A cutting board on a table", ("a cutting board", "a table")),
        ("A brown dog pounces on a toy", ("a brown dog", "a toy")),
        ("A dog rock climbing with a man", ("a dog", "a man")),
        ("A child is building a wall near a building", ("a child", "a wall", "a building")),
        ("A dog knee deep in mud", ("a dog", "mud")),
        ("A can near a trash can ; a dog can jump", ("a can", "a trash can", "a dog")),
    ],
)
def test_context_tells_nouns_from_verbs(caption, phrases):
    assert extract_phrases(caption) == phrases


@pytest.mark.parametrize(
    "caption, phrases",
    [
        ("A photo of a cat with a hat .", ("a cat", "a hat")),
        ("a black and white photo of two children and a dog", ("two children", "a dog")),
        ("A dog in the background , a cat on the left side .", ("a dog", "a cat")),
        ("A group of people in front of a house", ("people", "a house")),
        ("A boy smiles at the camera .", ("a boy",)),
        ("She gives him something on her back .", ("her back",)),
        ("A man without a hat holds a cup , there are no dogs .", ("a man", "a cup")),
        ("a dog , a dog and the dog", ("a dog", "the dog")),
        ("Stock photo of a red car by a lake , royalty free vector", ("a red car", "a lake")),
        ("Vector illustration of a cat isolated on a white background", ("a cat",)),
        ("image may contain : two people , people smiling", ("two people", "people")),
        ("close up of a red flower", ("a red flower",)),
        ("Photo by John Smith of a horse / Getty Images", ("a horse",)),
        ("a street with a plain background in an area of town", ("a street", "town")),
    ],
)
def test_what_is_no_concept_is_dropped(caption, phrases):
    assert extract_phrases(caption) == phrases


@pytest.mark.parametrize(
    "caption",
    ["", " . ", "she is looking at him", "A dog", "a red car.", "一只猫", "x", "12 34", "'s", "🐶"],
)
def test_nothing_to_find_gives_an_empty_tuple(caption):
    assert extract_phrases(caption) == ()


def test_attributes_stay_and_punctuation_goes():
    phrases = extract_phrases('Some "shiny" CARS; a MUDDY, long-haired dog!')
    assert phrases == ("cars", "a muddy long-haired dog")


def test_no_network_is_touched(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    grammar._word_class.cache_clear()
    grammar._lexicon.cache_clear()
    assert extract_phrases("A zorgle sits near the frumious lake .")[1:] == ("the frumious lake",)


def test_threads_agree_from_the_first_call_on():
    captions = list(READ_BY_HAND) * 20
    expected = [extract_phrases(caption) for caption in captions]
    grammar._lexicon.cache_clear()
    grammar._word_class.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(extract_phrases, captions)) == expected


@pytest.mark.parametrize("unit", ["red ", "dog ", "half red and ", "a, ", "the ", "man's "])
def test_time_is_linear_in_the_length(unit):
    extract_phrases(unit)

    start = time.perf_counter()
    extract_phrases(unit * 20_000)
    # About 0.1 s; a search that backtracks takes minutes.
    assert time.perf_counter() - start < 5


def test_unknown_extractors_and_options_are_refused():
    with pytest.raises(ValueError, match="did you mean 'spacy'"):
        extract_phrases("A dog in a hat", extractor="spaCy")
    with pytest.raises(ValueError, match="extractor 'embedded'.*'pipeline'"):
        open_extractor("embedded", pipeline="en_core_web_sm")


@pytest.mark.parametrize("extractor, package", [("embedded", "textblob"), ("spacy", "spacy")])
def test_a_missing_package_says_what_to_install(monkeypatch, extractor, package):
    grammar._word_class.cache_clear()
    grammar._lexicon.cache_clear()
    extractors._spacy_pipeline.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)  # makes its import fail
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        open_extractor(extractor)(["A dog in a hat"])


def test_a_missing_spacy_pipeline_says_what_to_download(monkeypatch):
    class Util:
        get_installed_models = staticmethod(lambda: ["de_core_news_sm"])

    class Spacy:
        util = Util

    monkeypatch.setitem(sys.modules, "spacy", Spacy)
    extractors._spacy_pipeline.cache_clear()
    with pytest.raises(ValueError, match="installed are de_core_news_sm.*download en_core_web_sm"):
        open_extractor("spacy")
    auto = open_extractor("auto")
    assert auto.kind == "embedded"
    assert extract_phrases("A dog in a hat", extractor=auto) == ("a dog", "a hat")


@pytest.mark.parametrize("name", ["", ".instruct"])
def test_examples_in_docstrings(name):
    found = doctest.testmod(importlib.import_module(f"ccl_jax.data.concepts{name}"))
    assert found.attempted and not found.failed


def test_every_phrase_of_flickr8k_is_in_its_caption():
    if not SHARED.is_dir():
        pytest.skip(f"needs the Flickr8k tars in {SHARED}")
    source = WebDatasetSource(SHARED / "flickr8k_112_dev-00000.tar")
    captions = [caption for record in source for caption in record.captions]
    found = [extract_phrases(caption) for caption in captions]
    for caption, phrases in zip(captions, found, strict=True):
        # Punctuation aside, a phrase is a run of the caption's words.
        letters = "".join(filter(str.isalnum, caption.lower()))
        for phrase in phrases:
            assert "".join(filter(str.isalnum, phrase)) in letters, (caption, phrase)
            assert phrase == phrase.lower().strip()
        assert len(set(phrases)) == len(phrases)
    # Nearly every caption names a thing, most of them two to four.
    assert sum(not phrases for phrases in found) < 0.01 * len(found)
    assert 2 < sum(map(len, found)) / len(found) < 4
