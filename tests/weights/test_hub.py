"""Hub names: what is asked for, and how fast it fails; nothing here reaches a network."""

import threading
import time
import types

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from tiny_checkpoints import assert_identical

from ccl_jax import weights
from ccl_jax.weights import hub

NAME = "someone/siglip-tiny"


@pytest.fixture
def repository(checkpoint, monkeypatch):
    """A hub that answers, whose one model is the tiny checkpoint; what was asked for."""
    asked = []

    def download(name, *, allow_patterns, local_files_only):
        asked.append((name, tuple(allow_patterns), local_files_only))
        return str(checkpoint.folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "_reachable", lambda: True)
    return asked


@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_a_hub_name_is_downloaded_configs_first(repository, checkpoint, prefix):
    assert_identical(weights.load(prefix + NAME).params, checkpoint.params)
    (name, configs, offline), (_, files, _) = repository
    assert (name, offline) == (NAME, False)
    assert configs == ("config.json", "open_clip_config.json")
    # Never everything: a repository may hold the same weights five times.
    assert files[0] == "model.safetensors" and "*" not in files and "*.safetensors" not in files


def test_sizes_alone_download_no_weights(repository):
    assert weights.model_config(NAME)["image"]["width"] == 8
    assert len(repository) == 1


def test_without_a_network_the_cache_serves(repository, checkpoint, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    assert_identical(weights.load(NAME).params, checkpoint.params)
    assert all(offline for _, _, offline in repository)


def test_without_network_and_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"hf download {NAME}.*HF_HUB_OFFLINE"):
        weights.load(NAME)
    assert time.monotonic() - start < 3


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path):
    hangs = threading.Event()
    session = types.SimpleNamespace(head=lambda url, timeout: hangs.wait(60))
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_PATIENCE_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(ValueError, match="without a network the hub's cache"):
        weights.load(NAME)
    assert time.monotonic() - start < 3
    hangs.set()


def test_a_name_that_the_hub_does_not_know(monkeypatch):
    def download(name, **options):
        response = types.SimpleNamespace(headers={}, request=None, status_code=404)
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "_reachable", lambda: True)
    with pytest.raises(ValueError, match=f"'{NAME}' is no folder here.*check the spelling"):
        weights.load(NAME)
