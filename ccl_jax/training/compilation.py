"""Compiled programs kept on disk, so that a run which begins again need not compile."""

import hashlib
import os
import pathlib
import platform

import jax


def keep_compiled(folder: str) -> None:
    """Keeps compiled programs in `folder`, unless JAX_COMPILATION_CACHE_DIR names another.

    Programs for a CPU are kept apart by its instruction set: another machine may share the
    folder and not run them.

    Args:
      folder: made if missing, `~` expanded; empty to keep none.
    """
    if not folder or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    place = os.path.join(os.path.expanduser(folder), f"{jax.default_backend()}-{_machine()}")
    jax.config.update("jax_compilation_cache_dir", place)


def _machine() -> str:
    description = platform.machine() + platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        description += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(description.encode()).hexdigest()[:12]
