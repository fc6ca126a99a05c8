"""Packaging: the base install is what `ccl_jax.losses` needs, extras add the rest."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def _version() -> str:
    """Read rather than imported: a build environment has none of the dependencies."""
    text = (ROOT / "ccl_jax" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


TRAIN = [
    "Pillow",
    "absl-py",
    "array_record",  # tfds reads it at random, but does not require it everywhere
    "clu",
    "cykooz-resizer>=4",  # resampling of training crops
    "flax>=0.12",
    "google-crc32c",  # checksums of TFRecords
    "huggingface_hub",
    "jinja2",  # report.html
    "importlib_resources",  # needed by tensorflow-datasets, which does not declare it
    "matplotlib",
    "ml_collections",
    "ml_dtypes",
    "optax",
    "orbax-checkpoint",
    "protobuf",
    "pyarrow",  # Parquet tables
    "safetensors",
    "scipy",  # L-BFGS of the linear probe
    "sentencepiece",
    "simplejpeg",  # decoding of training images
    "tensorboard",  # needed by clu, which does not declare it
    "tensorflow",
    "tensorflow-datasets",
    "textblob",
    "tokenizers",
    "transformers>=5",
]

setup(
    name="ccl_jax",
    version=_version(),
    description="Contrastive vision-language training in JAX: CLIP, SigLIP, CCL and PACL",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ccl_jax*"]),
    package_data={
        "ccl_jax.evaluation.benchmarks": ["*.json"],
        "ccl_jax.evaluation.html_report": ["*.html", "*.css", "*.js"],
    },
    install_requires=["jax>=0.10", "jaxtyping", "numpy"],
    extras_require={
        "train": TRAIN,
        "test": [*TRAIN, "aiohttp", "pytest>=8", "pytest-xdist", "regex", "ruff"],
        "torch": ["torch"],  # tests that compare exported models with those of transformers
        "ftfy": ["ftfy"],  # OpenAI's cleaning of captions for CLIP, mojibake included
        # CUDA 12 runs on older drivers too; `pip install jax[cuda13]` beside it for 13.
        "cuda": ["jax[cuda12]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "spacy": ["spacy"],
        "llm": ["torch"],  # phrases by an instruct model: tools.concepts --extractor llm
        "download": ["aiohttp"],  # tools.prepare --download
        "beam": ["apache-beam>=2.77"],  # tools.prepare and tools.concepts on a cluster
        "wandb": ["wandb"],
        "demo": ["gradio>=6.29"],  # earlier ones pull huggingface_hub back to version 1
    },
)
