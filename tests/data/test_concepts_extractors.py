"""spaCy's and a language model's phrases, found by stand-ins for what has to be downloaded."""

import json

import pytest

from ccl_jax.data.concepts import extractors, instruct, open_extractor


@pytest.fixture
def toy_spacy(monkeypatch):
    """A real English pipeline whose parser knows the word classes of a few words."""
    spacy = pytest.importorskip("spacy")
    classes = {"a": "DET", "the": "DET", "red": "ADJ", "she": "PRON", "sees": "VERB", ",": "PUNCT"}

    @spacy.Language.component("toy_parser")
    def parse(doc):
        places = [classes.get(token.text, "NOUN") for token in doc]
        root = places.index("VERB") if "VERB" in places else 0
        for i, (token, place) in enumerate(zip(doc, places, strict=True)):
            nouns = [k for k in range(i, len(doc)) if places[k] == "NOUN"]
            modifies = place in ("DET", "ADJ") and nouns
            token.pos_ = place
            token.head = doc[nouns[0] if modifies else root]
            token.dep_ = "ROOT" if i == root else "det" if modifies else "dobj"
        return doc

    language = spacy.blank("en")
    language.add_pipe("toy_parser")
    monkeypatch.setattr(extractors, "_spacy_pipeline", lambda name: language)
    return language


def test_noun_chunks_of_spacy_pass_the_same_filters(toy_spacy):
    found = open_extractor("spacy")(["She sees a red Car, the background", "", "a dog"])
    assert found[0].kept == ("a red car",)
    assert found[0].dropped == (("she", "pronoun"), ("the background", "generic place"))
    assert found[1].kept == () and found[2].dropped == (("a dog", "whole caption"),)


def test_auto_is_spacy_where_it_has_a_pipeline(toy_spacy):
    assert open_extractor("auto").kind == "spacy"


def answering(*answers):
    """A stand-in for a model; keeps the prompts."""

    def generate(prompts):
        generate.prompts += prompts
        return answers

    generate.prompts = []
    return generate


def test_phrases_of_a_model_are_runs_of_the_caption_and_pass_the_same_filters():
    generate = answering(
        'Here: ["A red Car", "the background", "a bird", "tall wet grass", "a red car"]',
        '<think>Is "a cat" there?</think>- a man\n- 2. his dog\n- a man',
        "I see nothing.",
        '["a dog", "a dog", "a dog"]',
    )
    captions = [
        "A red car in tall, wet grass, trees in the background.",
        "A man with his dog",
        "Blue.",
        "a dog and a dog",
    ]
    found = open_extractor("llm", generate=generate)(captions)
    assert found[0].kept == ("a red car", "tall wet grass")
    assert found[0].dropped == (
        ("the background", "generic place"),
        ("a bird", "not in the caption"),
        ("a red car", "duplicate"),
    )
    assert found[1].kept == ("a man",)  # "2. his dog" is not in the caption word for word
    assert found[2].kept == ()
    assert found[3].kept == ("a dog",)
    assert [name for _, name in found[3].dropped] == ["duplicate", "duplicate"]
    assert [prompt[-1]["content"] for prompt in generate.prompts] == captions


@pytest.mark.parametrize(
    "answer, phrases",
    [
        ('["a dog", "a ball"]', ["a dog", "a ball"]),
        ('```json\n["a dog",\n "a ball"]\n```', ["a dog", "a ball"]),
        ('Sure! ["a dog", 3, null, "a ball"] Done.', ["a dog", "a ball"]),
        ('["a dog", "a red ball", "a b', ["a dog", "a red ball"]),
        ('["a dog", a ball, "a cat"]', ["a dog", "a cat"]),
        ("- a dog\n* a ball", ["a dog", "a ball"]),
        ("1. a dog\n2) a ball\n", ["a dog", "a ball"]),
        ("a dog, a ball.", ["a dog", "a ball"]),
        ("", []),
        ("<think>no end", []),
        ("[" * 100_000, []),
    ],
)
def test_answers_are_parsed_whatever_their_shape(answer, phrases):
    assert instruct.parse(answer) == phrases


def test_the_examples_of_the_prompt_hold_to_its_rules():
    messages = instruct.prompt("a cat")
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    for question, answer in zip(messages[::2], messages[1::2], strict=False):
        phrases = json.loads(answer["content"])
        caption = question["content"].rpartition("\n")[2]
        (found,) = open_extractor("llm", generate=answering(answer["content"]))([caption])
        assert len(found.kept) == len(phrases) and not found.dropped


def test_a_long_caption_is_cut_before_it_is_asked_about():
    assert len(instruct.prompt("word " * 10_000)[-1]["content"].split()) == 400


def test_a_model_is_needed():
    with pytest.raises(ValueError, match="needs a model"):
        open_extractor("llm")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A language model of random weights with a word-level tokenizer and a chat template."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install ccl_jax[llm]")
    import tokenizers
    import transformers

    words = ["<pad>", "<end>", "<unk>", "<user>", "<assistant>", "a", "dog", "red", "ball", ","]
    vocabulary = {word: i for i, word in enumerate(words)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.set_seed(3)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_batch_of_prompts_gives_the_answers_of_each_alone(tiny_model):
    prompts = [instruct.prompt(text) for text in ("a dog", "a red ball , a dog , a red dog", "a")]
    generate = instruct.transformers_generator(
        tiny_model, batch_size=2, max_new_tokens=8, device="cpu"
    )
    answers = generate(prompts)
    assert answers == [generate([prompt])[0] for prompt in prompts]
    assert all(0 < len(answer.split()) <= 8 for answer in answers)
    assert "<user>" not in "".join(answers)  # the prompt is not part of the answer
    found = open_extractor("llm", model=tiny_model, max_new_tokens=8)(["a dog and a ball"])
    assert len(found) == 1


def test_a_folder_without_a_model_is_refused(tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch: pip install ccl_jax[llm]")
    with pytest.raises(ValueError, match="cannot load the language model"):
        instruct.transformers_generator(str(tmp_path))


def test_without_pytorch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install ccl_jax\[llm\]"):
        instruct.transformers_generator("some/model")
