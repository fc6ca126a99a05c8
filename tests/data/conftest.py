"""Tokenizers in small, and texts that are hard on them."""

import io
import itertools

import pytest

from ccl_jax.data.sources import WebDatasetSource
from ccl_jax.data.text_formats import open_tokenizer

# Not among them: U+0345, a mark that OpenAI's regular expression takes for a letter because it
# ignores case.
HARD = [
    "",
    "  \n ",
    "!!",
    " ( a photo",
    "A Café, 3 t-shirts & 12.5 % off!",
    "it's we'll I'd they've y'all 'tis O'Neill's ''quoted''",
    "snake_case <b>bold</b> {curly} [square] \\ / | ~ ^ `",
    "e\u0301 combining, ﬁ ligature, ＦＵＬＬ width, ½ ² Ⅷ",
    "雪の上の犬 🐕 в снегу",
    "tabs\tand\u00a0no-break\u2003spaces\r\n",
    "supercalifragilisticexpialidocious " * 12,
    "▁a ▁ b▁c",
    "1990s 2x4 a1b2",
]


@pytest.fixture(scope="session")
def hard_texts():
    return HARD


@pytest.fixture(scope="session")
def captions():
    """Captions of words that share their parts, and of every letter and digit."""
    who = "a young boy|two girls|the red-headed woman|An old man's dog|children|3 surfers".split(
        "|"
    )
    does = "is jumping over|rides|climbed|are looking at|sits quietly beside|waved to".split("|")
    what = "the icy wave|a blue motorcycle|mountains|an overturned boat .|100 people!".split("|")
    alphabet = [" ".join(map(chr, range(97, 123))), "0 1 2 3 4 5 6 7 8 9"] * 20
    return [" ".join(words) for words in itertools.product(who, does, what)] + alphabet


@pytest.fixture(scope="session")
def flickr(shared):
    source = WebDatasetSource(shared / "data" / "flickr8k_112_dev-00000.tar")
    return [caption for index in range(120) for caption in source[index].captions]


@pytest.fixture(scope="session")
def merges_file(shared):
    return str(shared / "data" / "clip_text" / "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="session")
def clip(merges_file):
    return open_tokenizer(merges_file, cleaning="openai")


@pytest.fixture(scope="session")
def sentencepiece_model(captions):
    """SigLIP's layout of special tokens: pad 0, end 1, unknown 2, no start."""
    return train_sentencepiece(captions, vocab_size=400, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def train_sentencepiece(captions, **options):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(caption.lower() for caption in captions),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def siglip_folder(sentencepiece_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    (folder / "spiece.model").write_bytes(sentencepiece_model)
    return str(folder)


@pytest.fixture(scope="session")
def siglip(siglip_folder):
    return open_tokenizer(siglip_folder)


@pytest.fixture(scope="session")
def gemma_folder(captions, tmp_path_factory):
    """A Gemma tokenizer in small: pad 0, end 1, start 2, unknown 3, byte fallback."""
    folder = tmp_path_factory.mktemp("gemma")
    (folder / "tokenizer.model").write_bytes(
        train_sentencepiece(
            captions,
            vocab_size=700,
            model_type="bpe",
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
            **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
        )
    )
    return str(folder)
