"""Two ways to cut text into token ids behind one face: tokenizers' JSON and sentencepiece."""

import os
from collections.abc import Sequence
from typing import Protocol

import tokenizers


class Encoder(Protocol):
    """Cuts text into ids, adding none of its own and reading no special token in the text."""

    vocab_size: int  # the greatest id + 1

    def ids(self, text: str) -> Sequence[int]:
        """Token ids of a text."""

    def id_of(self, token: str) -> int | None:
        """Id of a token, None if there is no such token."""

    def token_of(self, token_id: int) -> str:
        """The token of an id."""

    def write(self, folder: str) -> str:
        """Writes the encoder's file into a folder; returns the file's name."""


class JsonEncoder:
    """An encoder of the tokenizers library (BPE, Unigram, ...), kept as `tokenizer.json`."""

    def __init__(self, encoder: tokenizers.Tokenizer):
        """Takes the encoder over: its padding and truncation are switched off."""
        encoder.no_padding()
        encoder.no_truncation()
        # A caption that spells "<|endoftext|>" must not end there. Not kept in the file.
        encoder.encode_special_tokens = True
        self.encoder = encoder
        self.vocab_size = 1 + max(encoder.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def read(cls, path: str) -> "JsonEncoder":
        """Reads a `tokenizer.json`.

        Raises:
          ValueError: if the file is damaged or something else.
        """
        try:
            encoder = tokenizers.Tokenizer.from_file(path)
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(
                f"{path} is not a tokenizer.json, or cut ({error}); copy it again from the "
                "checkpoint, or the workdir, it belongs to"
            ) from error
        return cls(encoder)

    def ids(self, text: str) -> list[int]:
        """See `Encoder`."""
        return self.encoder.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        """See `Encoder`."""
        return self.encoder.token_to_id(token)

    def token_of(self, token_id: int) -> str:
        """See `Encoder`."""
        return self.encoder.id_to_token(token_id)

    def write(self, folder: str) -> str:
        """Writes `tokenizer.json`."""
        self.encoder.save(os.path.join(folder, "tokenizer.json"))
        return "tokenizer.json"

    def __reduce__(self):
        return _unpickle_json, (self.encoder.to_str(),)


class SentencePieceEncoder:
    """An encoder of the sentencepiece library, kept as its model file."""

    def __init__(self, model: bytes, name: str = "spiece.model"):
        """Wraps a model.

        Args:
          model: the file's content.
          name: the file's name, under which `write` puts it back.

        Raises:
          ValueError: if the model is damaged or something else, or sentencepiece is missing.
        """
        try:
            import sentencepiece
        except ImportError as error:
            raise ValueError(f"{name} needs sentencepiece: pip install sentencepiece") from error
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            if not model:
                raise RuntimeError("0 bytes")
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(
                f"{name} is not a sentencepiece model, or cut ({error}); copy it again from the "
                "checkpoint it belongs to"
            ) from error
        self._model = model
        self._name = name
        self.vocab_size = self._processor.get_piece_size()

    @classmethod
    def read(cls, path: str) -> "SentencePieceEncoder":
        """Reads a sentencepiece model. Raises as the constructor does."""
        with open(path, "rb") as file:
            return cls(file.read(), os.path.basename(path))

    def ids(self, text: str) -> list[int]:
        """See `Encoder`."""
        return self._processor.encode(text)

    def id_of(self, token: str) -> int | None:
        """See `Encoder`."""
        found = self._processor.piece_to_id(token)  # the unknown token's, if there is none
        return found if self._processor.id_to_piece(found) == token else None

    def token_of(self, token_id: int) -> str:
        """See `Encoder`."""
        return self._processor.id_to_piece(token_id)

    def write(self, folder: str) -> str:
        """Writes the model file under the name that it had."""
        with open(os.path.join(folder, self._name), "wb") as file:
            file.write(self._model)
        return self._name

    def __reduce__(self):
        return SentencePieceEncoder, (self._model, self._name)


def _unpickle_json(text):
    return JsonEncoder(tokenizers.Tokenizer.from_str(text))
