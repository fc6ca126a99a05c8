"""Where records come from, one class each behind `records.Source`.

Adding a source is one class and one line in `registry.SOURCES`.
"""

from ccl_jax.data.sources.mixture import MixtureSource
from ccl_jax.data.sources.registry import SOURCES, open_source, parse_source, source_counts
from ccl_jax.data.sources.table import TableSource
from ccl_jax.data.sources.tfds import TfdsSource
from ccl_jax.data.sources.webdataset import WebDatasetSource

__all__ = [
    "SOURCES",
    "MixtureSource",
    "TableSource",
    "TfdsSource",
    "WebDatasetSource",
    "open_source",
    "parse_source",
    "source_counts",
]
