"""Files of a Hugging Face hub repository, or a quick refusal."""

import re
import threading
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from absl import logging
from huggingface_hub import constants

NAME = re.compile(r"(hf-hub:)?[\w.-]+/[\w.-]+")

# The hub's client retries for a minute or more without a network.
_PATIENCE_SECONDS = 5.0


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """Downloads the files of a model repository that match, or finds them in the hub's cache.

    Args:
      name: `organisation/model`; OpenCLIP's prefix `hf-hub:` is allowed.
      patterns: of file names, as in `config.json` or `*.safetensors`.

    Returns:
      The folder with the files.

    Raises:
      ValueError: within seconds if the hub cannot be reached and the cache lacks the files, or
        if the repository does not exist or is not open to us.
    """
    name = name.removeprefix("hf-hub:")
    online = _reachable()
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=list(patterns), local_files_only=not online
        )
    except OSError as error:  # every error of the hub's client is one
        if online:
            raise ValueError(
                f"{name!r} is no folder here, and the hub gives no model of that name "
                f"({type(error).__name__}); check the spelling, log in with `hf auth login` if "
                "it is gated or private, or give a local folder"
            ) from error
        raise ValueError(
            f"{name!r} is no folder here, and without a network the hub's cache "
            f"({constants.HF_HUB_CACHE}) does not hold it; download it where there is a network "
            f"(hf download {name}), copy the folder, and give its path. If there is a network, "
            "see that HF_HUB_OFFLINE is not set"
        ) from error
    if not online:
        logging.info("The hub cannot be reached; %s comes from its cache", name)
    return Path(folder)


def _reachable() -> bool:
    """Whether the hub answers at all, found out within seconds."""
    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask():
        try:
            huggingface_hub.utils.get_session().head(constants.ENDPOINT, timeout=3)
            answers.append(True)
        except Exception as error:  # which HTTP library it is depends on the hub's version
            logging.info("No answer from %s: %s", constants.ENDPOINT, error)

    # In a thread, since no timeout of the library covers a name server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    return bool(answers)
