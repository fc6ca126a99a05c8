"""The items that models get wrong, with their images and heat maps, in bounded number and size."""

from __future__ import annotations

import base64
import csv
import dataclasses
import heapq
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from ccl_jax.data.concepts import extract_phrases
from ccl_jax.data.images import decode_image, transform_image
from ccl_jax.data.records import BadRecord
from ccl_jax.evaluation.heatmaps import overlay, phrase_maps
from ccl_jax.evaluation.models import EvaluatedModel
from ccl_jax.evaluation.results import BenchmarkResult, Image, SuiteResult
from ccl_jax.evaluation.tables import scores_from_text

MAX_IMAGES = 4
"""Images of an item that are shown."""

_THUMB_PIXELS, _MAP_PIXELS = 256, 160
_QUALITY = 78
_MAP_PHRASES = 2


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One model on one item.

    Attributes:
      model: its name.
      right: whether it got the item right.
      margin: as in `results.Items`.
      scores: as in `results.Items`; None where they are not at hand.
    """

    model: str
    right: bool
    margin: float
    scores: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Failure:
    """An item that at least one model got wrong.

    Attributes:
      benchmark: its benchmark.
      key: of the item within the benchmark.
      image_names: for people.
      texts: the right one first where there is one.
      verdicts: of the models that saw the item.
      images: to read; empty where only their names are known.
    """

    benchmark: str
    key: str
    image_names: tuple[str, ...]
    texts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    images: tuple[Image, ...] = ()


@dataclasses.dataclass
class Pictures:
    """Pictures of failures as `data:` addresses.

    Attributes:
      thumbs: (failure's number, image's number) -> address.
      maps: failure's number -> [(what it shows, address)].
      omitted: images that found no room.
      unreadable: images that could not be decoded.
      unmapped: failures with images that have no heat maps.
    """

    thumbs: dict[tuple[int, int], str] = dataclasses.field(default_factory=dict)
    maps: dict[int, list[tuple[str, str]]] = dataclasses.field(default_factory=dict)
    omitted: int = 0
    unreadable: int = 0
    unmapped: int = 0


def hardest(result: SuiteResult, per_benchmark: int) -> list[Failure]:
    """The hardest failures of each benchmark, by turns of the models, one for each image.

    Args:
      result: with items.
      per_benchmark: at most so many of each.
    """
    found = []
    for benchmark, by_model in result.results.items():
        tables = {m: (one, one.items) for m, one in by_model.items() if one.items is not None}
        if not tables:
            continue
        place = {m: {k: i for i, k in enumerate(t.keys)} for m, (_, t) in tables.items()}
        orders = []
        for model, (one, table) in tables.items():
            outcome = table.outcomes[_deciding(one)]
            order = np.argsort(table.margin, kind="stable")
            orders.append([(model, int(i)) for i in order if outcome[i] == 0])
        seen: set[int] = set()
        for model, i in _by_turns(orders):
            table = tables[model][1]
            key = table.keys[i]
            # Clusters are numbered alike where the items are; else a repeated image does no harm.
            if len(seen) == per_benchmark or table.clusters[i] in seen:
                continue
            seen.add(table.clusters[i])
            verdicts = tuple(
                _verdict(m, one, place[m][key]) for m, (one, _) in tables.items() if key in place[m]
            )
            names = tuple(image.name for image in table.images[i])
            found.append(
                Failure(benchmark, key, names, tuple(table.texts[i]), verdicts, table.images[i])
            )
    return found


def _verdict(model: str, found: BenchmarkResult, row: int) -> Verdict:
    items = found.items
    right = bool(items.outcomes[_deciding(found)][row] > 0)
    return Verdict(model, right, float(items.margin[row]), np.asarray(items.scores[row]))


def _deciding(found: BenchmarkResult) -> str:
    return deciding_outcome(list(found.items.outcomes), found.headline)


def deciding_outcome(outcomes: Sequence[str], headline: str) -> str:
    """The outcome behind a benchmark's headline: the one that its name holds, else the first."""
    return next((name for name in outcomes if name in headline), outcomes[0])


def _by_turns(orders: Sequence[Sequence]) -> Iterator:
    for turn in range(max(map(len, orders), default=0)):
        yield from (order[turn] for order in orders if turn < len(order))


def read_failures(folder: Path, headlines: Mapping[str, str], per_benchmark: int) -> list[Failure]:
    """The hardest failures from `items/BENCHMARK.csv` of `tables.write_tables`; without images.

    Args:
      folder: that holds `items`.
      headlines: metric that stands for each benchmark.
      per_benchmark: at most so many of each.

    Raises:
      ValueError: a table of another form.
    """
    found = []
    for benchmark, headline in headlines.items():
        path = folder / "items" / f"{benchmark}.csv"
        if not path.exists():
            continue
        hardest_of: dict[str, list[tuple[float, int, Failure]]] = {}
        try:
            with open(path, newline="", encoding="utf-8") as file:
                for number, row in enumerate(csv.DictReader(file)):
                    failure = _failure(row, benchmark, headline)
                    for verdict in failure.verdicts:
                        if not verdict.right:
                            heap = hardest_of.setdefault(verdict.model, [])
                            _keep(heap, (-verdict.margin, -number, failure), 50 * per_benchmark)
        except (OSError, csv.Error, KeyError, ValueError, IndexError) as error:
            raise ValueError(f"{path} is not a table of items ({error}); evaluate again") from error
        orders = [[row for *_, row in sorted(heap)[::-1]] for heap in hardest_of.values()]
        by_image: dict[tuple[str, ...], Failure] = {}
        for row in _by_turns(orders):
            if len(by_image) < per_benchmark:
                by_image.setdefault(row.image_names, row)
        found += by_image.values()
    return found


def _keep(heap: list, entry: tuple[float, int, Failure], size: int) -> None:
    """Adds an entry, and drops the easiest one beyond `size`: tables may not fit into memory."""
    if len(heap) < size:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _failure(row: Mapping[str, str], benchmark: str, headline: str) -> Failure:
    models = [name.removesuffix(": margin") for name in row if name.endswith(": margin")]
    verdicts = []
    for model in models:
        prefix = f"{model}: "
        outcomes = [n.removeprefix(prefix) for n in row if n.startswith(prefix)]
        value = float(row[prefix + deciding_outcome(outcomes, headline)])
        margin, scores = float(row[prefix + "margin"]), scores_from_text(row[prefix + "scores"])
        verdicts.append(Verdict(model, value != 0, margin, scores))
    texts = tuple(row[name] for name in row if name.startswith("text_") and row[name])
    return Failure(benchmark, row["key"], (row["images"],), texts, tuple(verdicts))


def spread(failures: Sequence[Failure], count: int) -> list[int]:
    """Numbers of at most `count` failures, taken from the benchmarks by turns."""
    by_benchmark: dict[str, list[int]] = {}
    for number, failure in enumerate(failures):
        by_benchmark.setdefault(failure.benchmark, []).append(number)
    return list(_by_turns(list(by_benchmark.values())))[:count]


def draw(
    failures: Sequence[Failure],
    models: Sequence[EvaluatedModel],
    *,
    max_bytes: int,
    max_mapped: int,
) -> Pictures:
    """Thumbnails of the failures' images, and heat maps of some.

    Args:
      failures: with images.
      models: that draw heat maps of phrases of the right text; none for no maps.
      max_bytes: of all addresses together; thumbnails come first.
      max_mapped: failures with heat maps, from the benchmarks by turns.
    """
    pictures = Pictures()
    pixels: dict[int, tuple[Image, np.ndarray]] = {}
    room = max_bytes
    for number in spread(failures, len(failures)):
        for position, image in enumerate(failures[number].images[:MAX_IMAGES]):
            if room <= 0:
                pictures.omitted += 1
                continue
            try:
                small = decode_image(image.read(), image.name)
            except BadRecord:
                pictures.unreadable += 1
                continue
            small.thumbnail((_THUMB_PIXELS, _THUMB_PIXELS))
            address = _address(small)
            room -= len(address)
            if room <= 0:
                pictures.omitted += 1
                continue
            pictures.thumbs[number, position] = address
            pixels.setdefault(number, (image, np.asarray(small)))
    mapped = [n for n in spread(failures, len(failures)) if n in pixels and failures[n].texts]
    pictures.unmapped = max(0, len(mapped) - max_mapped)
    if models and room > 0 and mapped[:max_mapped]:
        _draw_maps(pictures, failures, models, pixels, mapped[:max_mapped], room)
    return pictures


def _draw_maps(pictures, failures, models, pixels, chosen: list[int], room: int) -> None:
    phrases = {}
    for number in chosen:
        text = failures[number].texts[0]
        phrases[number] = list(dict.fromkeys(extract_phrases(text) or (text,)))[:_MAP_PHRASES]
    for model in models:
        options = model.predictor.image_options | {"transform": "squash"}  # all of the image
        stack = np.stack(
            [transform_image(pixels[n][0].read(), pixels[n][0].name, **options) for n in chosen]
        )
        tokens = model.predictor.image_tokens(stack)
        for number, one in zip(chosen, tokens, strict=True):
            maps = phrase_maps(model.predictor, one, phrases[number])
            for phrase, values in zip(phrases[number], maps, strict=True):
                drawn = PIL.Image.fromarray(
                    np.uint8(255 * overlay(pixels[number][1], values) + 0.5)
                )
                drawn.thumbnail((_MAP_PIXELS, _MAP_PIXELS))
                address = _address(drawn)
                room -= len(address)
                if room <= 0:
                    return
                name = phrase if len(models) == 1 else f"{phrase} [{model.name}]"
                pictures.maps.setdefault(number, []).append((name, address))


def _address(image: PIL.Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def margin_words(failure: Failure, verdict: Verdict) -> str:
    """How far the right answer is behind, in words."""
    if not math.isfinite(verdict.margin):
        return ""
    if failure.benchmark.endswith("_retrieval"):
        return f", {-verdict.margin:,.0f} captions ahead of the image's own"
    return f", margin {verdict.margin:+.3f}"
