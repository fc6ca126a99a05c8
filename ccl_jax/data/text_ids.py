"""Other ids for the tokens of a tokenizer: the same cuts under exchanged numbers."""

import json

import tokenizers

from ccl_jax.data.text import Tokenizer
from ccl_jax.data.text_encoders import JsonEncoder


def swap_ids(tokenizer: Tokenizer, first: int, second: int) -> Tokenizer:
    """A tokenizer in which two tokens have exchanged their ids.

    Byte-pair merges go by the tokens themselves, so that every text is cut as before. A model
    goes with it whose token embeddings have exchanged the same two rows.

    Args:
      tokenizer: trained here (family "trained").
      first: an id.
      second: another.

    Returns:
      A new tokenizer; `tokenizer` stays as it is.

    Raises:
      ValueError: for another family, or an id that the tokenizer does not have.
    """
    if tokenizer.family != "trained" or not isinstance(tokenizer.encoder, JsonEncoder):
        raise ValueError(
            f"ids of a {tokenizer.family!r} tokenizer are those of its publisher and stay; only "
            "those of a tokenizer trained here can be exchanged"
        )
    values = json.loads(tokenizer.encoder.encoder.to_str())
    vocabulary = values["model"]["vocab"]
    if missing := {first, second} - set(vocabulary.values()):
        raise ValueError(f"the tokenizer has no token with the id {min(missing)}")
    exchanged = {first: second, second: first}

    def new_id(token_id: int) -> int:
        return exchanged.get(token_id, token_id)

    values["model"]["vocab"] = {token: new_id(i) for token, i in vocabulary.items()}
    for token in values["added_tokens"]:
        token["id"] = new_id(token["id"])
    values["added_tokens"].sort(key=lambda token: token["id"])
    frame = values["post_processor"] or {}
    for token in frame.get("special_tokens", {}).values():
        token["ids"] = [new_id(i) for i in token["ids"]]
    return Tokenizer(
        JsonEncoder(tokenizers.Tokenizer.from_str(json.dumps(values))),
        family=tokenizer.family,
        cleaning=tokenizer.cleaning,
        start_id=None if tokenizer.start_id is None else new_id(tokenizer.start_id),
        eot_id=new_id(tokenizer.eot_id),
        pad_id=new_id(tokenizer.pad_id),
    )
