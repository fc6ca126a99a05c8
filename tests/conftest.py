"""Eight fake CPU devices, quick compiles, no network; set before anything imports jax."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Tests compile far more than they compute: half of the time, for the same programs.
    + " --xla_backend_optimization_level=0"
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder of golden values and data that lies beside the checkout, where there is one."""
    folder = pathlib.Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the golden values and data of {folder}")
    return folder
