"""Tokenizers from the files that they are published as: which family is it, how is it framed?"""

import gzip
import os

import tokenizers

from ccl_jax.data.text import HF_FILE, PAD_ID, SETTINGS_FILE, UNKNOWN_ID, Tokenizer, read_json
from ccl_jax.data.text_cleaning import has_ftfy
from ccl_jax.data.text_encoders import Encoder, JsonEncoder, SentencePieceEncoder

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
_CLIP_VOCAB_SIZE = 49_408
# OpenAI's pattern, without the special tokens: a text cannot write them.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_FILES = (
    "tokenizer.json, vocab.json with merges.txt, spiece.model, tokenizer.model or "
    "bpe_simple_vocab_16e6.txt.gz"
)


def open_tokenizer(
    path: str, *, cleaning: str | None = None, pad_id: int | None = None
) -> Tokenizer:
    """Opens a tokenizer, of whatever family the files hold.

    Args:
      path: a folder: the workdir of a run, what `Tokenizer.save` wrote, or a Hugging Face
        checkpoint. Or a file: `tokenizer.json`, a sentencepiece `.model`, or OpenAI's merges
        (`bpe_simple_vocab_16e6.txt.gz`).
      cleaning: a name in `text_cleaning.CLEANINGS` in place of the family's. For CLIP that is
        "openai_ftfy" (or "openai" where ftfy is not installed) with OpenAI's merges, as OpenAI
        and open_clip clean; and "none" with a Hugging Face folder, as `CLIPTokenizer` of
        transformers cleans (NFC, white space and lower case; HTML entities stay).
      pad_id: in place of the files'. For CLIP that is 0 with OpenAI's merges and `pad_token`
        (the end of text, by default) with a Hugging Face folder.

    Returns:
      A tokenizer; `save` writes it to another folder, which then opens without the first.

    Raises:
      ValueError: if there is no tokenizer there, none of a known family, a damaged file, or a
        package is missing.
    """
    if os.path.isdir(path):
        tokenizer = _from_folder(path)
    elif os.path.isfile(path):
        tokenizer = _from_file(path)
    else:
        raise ValueError(
            f"no tokenizer at {path}: there is no such file or folder. Of a model on the Hugging "
            f"Face Hub, download the files first: hf download {path} --local-dir FOLDER"
        )
    if cleaning is None and pad_id is None:
        return tokenizer
    return Tokenizer(
        tokenizer.encoder,
        family=tokenizer.family,
        cleaning=tokenizer.cleaning if cleaning is None else cleaning,
        start_id=tokenizer.start_id,
        eot_id=tokenizer.eot_id,
        pad_id=tokenizer.pad_id if pad_id is None else pad_id,
    )


def clip_from_merges(path: str) -> Tokenizer:
    """CLIP's tokenizer from OpenAI's list of merges, with OpenAI's ids, cleaning and padding.

    The ids are those of the bytes, the bytes at the end of a word, the merges in order, and
    the two special tokens (CLIP's `simple_tokenizer.py`).

    Args:
      path: `bpe_simple_vocab_16e6.txt.gz`, or the same unpacked.

    Raises:
      ValueError: if the file is damaged or something else.
    """
    opener = gzip.open if path.endswith(".gz") else open
    letters = _byte_letters()
    wanted = _CLIP_VOCAB_SIZE - 2 * len(letters) - 2
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); copy it again") from error
    merges = [tuple(line.split()) for line in lines[1 : 1 + wanted]]
    if len(merges) < wanted or any(len(merge) != 2 for merge in merges):
        raise ValueError(
            f"{path} does not hold CLIP's {wanted} merges, one pair a line after a first line; "
            "copy it again"
        )
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, CLIP_START, CLIP_END])}
    encoder = _clip_encoder(vocabulary, merges)
    cleaning = "openai_ftfy" if has_ftfy() else "openai"
    return _clip(JsonEncoder(encoder), pad_id=0, cleaning=cleaning)


def _from_file(path):
    if path.endswith(".json"):
        return _by_tokens(JsonEncoder.read(path), os.path.dirname(path), path)
    if path.endswith(".model"):
        return _by_tokens(SentencePieceEncoder.read(path), os.path.dirname(path), path)
    if path.endswith((".txt", ".txt.gz")):
        return clip_from_merges(path)
    raise ValueError(f"{path} is no tokenizer's file by its name; give {_FILES}")


def _from_folder(folder):
    def inside(name):
        path = os.path.join(folder, name)
        return path if os.path.exists(path) else None

    if inside(SETTINGS_FILE):
        return Tokenizer.load(folder)
    if inside(os.path.join("tokenizer", SETTINGS_FILE)):  # a workdir
        return Tokenizer.load(os.path.join(folder, "tokenizer"))
    # SigLIP's tokenizer.json, where there is one, is a conversion of spiece.model.
    for name in ("spiece.model", "tokenizer.json"):
        if inside(name):
            return _from_file(inside(name))
    if inside("vocab.json") and inside("merges.txt"):
        return _clip_from_vocabulary(folder)
    for name in ("tokenizer.model", "bpe_simple_vocab_16e6.txt.gz"):
        if inside(name):
            return _from_file(inside(name))
    found = ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"
    raise ValueError(f"no tokenizer in {folder}: it holds {found}; wanted is {_FILES}")


def _by_tokens(encoder: Encoder, folder: str, path: str) -> Tokenizer:
    """Tells the family by its special tokens."""
    if encoder.id_of(CLIP_END) is not None and encoder.id_of(CLIP_START) is not None:
        return _clip(encoder, pad_id=_pad_id(encoder, folder, CLIP_END), cleaning="none")
    if (encoder.id_of("<pad>"), encoder.id_of("<unk>")) == (PAD_ID, UNKNOWN_ID):
        if (end := encoder.id_of("<eot>")) is not None:
            return Tokenizer(encoder, eot_id=end)
    if encoder.id_of("<eos>") is not None and encoder.id_of("<bos>") is not None:
        return Tokenizer(
            encoder,
            family="siglip2",
            cleaning="lower",
            eot_id=encoder.id_of("<eos>"),
            pad_id=_pad_id(encoder, folder, "<pad>"),
        )
    if encoder.id_of("</s>") is not None:
        cased = _hf_settings(folder).get("do_lower_case") is False
        return Tokenizer(
            encoder,
            family="siglip",
            cleaning="siglip_cased" if cased else "siglip",
            eot_id=encoder.id_of("</s>"),
            pad_id=_pad_id(encoder, folder, "</s>"),
        )
    raise ValueError(
        f"{path} is of no known family: it has neither CLIP's {CLIP_END}, nor SigLIP's </s>, nor "
        "Gemma's <eos>, nor the <eot> of a tokenizer trained here; give the tokenizer of a CLIP "
        "or SigLIP checkpoint"
    )


def _clip(encoder, *, pad_id, cleaning):
    return Tokenizer(
        encoder,
        family="clip",
        cleaning=cleaning,
        start_id=encoder.id_of(CLIP_START),
        eot_id=encoder.id_of(CLIP_END),
        pad_id=pad_id,
    )


def _clip_from_vocabulary(folder):
    vocabulary = read_json(os.path.join(folder, "vocab.json"))
    path = os.path.join(folder, "merges.txt")
    with open(path, encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if CLIP_START not in vocabulary or CLIP_END not in vocabulary:
        raise ValueError(f"{folder}/vocab.json lacks {CLIP_START} or {CLIP_END}: it is not CLIP's")
    try:
        encoder = JsonEncoder(_clip_encoder(vocabulary, merges))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(
            f"{path} does not fit {folder}/vocab.json ({error}); copy both again"
        ) from error
    return _clip(encoder, pad_id=_pad_id(encoder, folder, CLIP_END), cleaning="none")


def _clip_encoder(vocabulary, merges):
    """CLIP's byte-level BPE; the normaliser is that of transformers' CLIPTokenizer."""
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=CLIP_END,
        )
    )
    encoder.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.decoder = tokenizers.decoders.ByteLevel()
    encoder.add_special_tokens([CLIP_START, CLIP_END])
    encoder.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}",
        special_tokens=[(token, vocabulary[token]) for token in (CLIP_START, CLIP_END)],
    )
    return encoder


def _byte_letters():
    """A visible character for every byte, in the order of GPT-2's and CLIP's vocabularies."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [*map(chr, visible), *(chr(256 + i) for i in range(len(hidden)))]


def _pad_id(encoder, folder, default):
    token = _hf_settings(folder).get("pad_token") or default
    token = token["content"] if isinstance(token, dict) else token
    found = encoder.id_of(token)
    if found is None:
        raise ValueError(f"the tokenizer in {folder} has no token {token!r} to pad with")
    return found


def _hf_settings(folder):
    settings = {}
    for name in ("special_tokens_map.json", HF_FILE):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            settings |= read_json(path)
    return settings
