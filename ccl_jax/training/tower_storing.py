"""Makes the store of a run: computes what is missing of it, and opens it as training batches."""

import collections
import concurrent.futures
import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ccl_jax.data.images import transform_image
from ccl_jax.data.packing import phrases_of
from ccl_jax.data.parallel import Progress
from ccl_jax.data.pipeline import PipelineOptions
from ccl_jax.data.records import BadRecord, Source
from ccl_jax.data.skipping import SkippedRecords
from ccl_jax.data.text import Tokenizer
from ccl_jax.models.two_towers import TwoTowers
from ccl_jax.training import config as configs
from ccl_jax.training import lora, parameters, tower_outputs
from ccl_jax.training.optimizer import trainable_paths
from ccl_jax.training.sharding import create_mesh, replicated, sharded
from ccl_jax.training.tower_shards import STORE_FILE, Description, Shard, write_shard
from ccl_jax.training.tower_store import StoredBatches, TowerStore

_SAMPLE = 64  # records that tell one source from another


def stored_batches(
    config: ConfigDict,
    model: TwoTowers,
    params: parameters.Params,
    source: Source,
    tokenizer: Tokenizer,
    options: PipelineOptions,
    **more: Any,
) -> StoredBatches:
    """Training batches from `config.tower_store.folder`, whose missing shards are made first.

    Args:
      config: of a single run.
      model: the towers.
      params: of the model; those of frozen towers count.
      source: of the records.
      tokenizer: of captions and phrases.
      options: of the pipeline.
      **more: for `StoredBatches`.

    Raises:
      ValueError: if the folder holds the outputs of other towers or data, naming what differs;
        if a shard is damaged, or too many records are unusable.
    """
    store, folder = config.tower_store, config.tower_store.folder
    # Hosts work on shards of their own, so each needs all parameters.
    whole = jax.device_put(lora.effective(config.lora, params), replicated(create_mesh()))
    host_params = jax.tree.map(np.asarray, whole)
    outputs = tower_outputs.stored_outputs(config, trainable_paths(config.optimizer, params))
    made_of = _made_of(config, model, host_params, source, tokenizer, options, outputs)
    os.makedirs(folder, exist_ok=True)
    description = _claim(folder, Description(made_of, len(source), store.images_per_shard))
    missing = [
        shard
        for shard in range(description.shards)
        if not os.path.exists(description.path(folder, shard))
    ]
    if missing:
        maker = _Maker(config, model, host_params, source, tokenizer, options, outputs)
        maker.make(description, missing[jax.process_index() :: jax.process_count()])
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tower store")
    opened = TowerStore(folder, source.name, verify=store.verify)
    return StoredBatches(opened, tokenizer, options, **more)


def _claim(folder: str, wanted: Description) -> Description:
    """The description of the folder's store, which is that of `wanted` or written here."""
    if not os.path.exists(os.path.join(folder, STORE_FILE)):
        wanted.save(folder)
        return wanted
    found = Description.load(folder)
    changed = configs.differences(found.made_of, wanted.made_of, "store")
    if found.records != wanted.records:
        changed.append(f"store.records: {found.records:,} -> {wanted.records:,}")
    if changed:
        raise ValueError(
            f"{folder} holds outputs of other towers or data ({'; '.join(changed)}): set "
            "config.tower_store.folder to another folder, or delete this one"
        )
    return found  # with its own size of shards


def _made_of(config, model, params, source, tokenizer, options, outputs) -> dict[str, Any]:
    """Everything that the stored outputs depend on.

    Source and tokenizer count by what they give for a sample of records: a data set may move.
    """
    count = min(len(source), _SAMPLE)
    records, tokens = hashlib.sha256(), hashlib.sha256()
    for number in range(count):
        try:
            record = source[number * len(source) // count]
        except BadRecord as error:
            records.update(error.key.encode())
            continue
        texts: list[Any] = [record.key, record.captions]
        if options.group_phrases:
            texts += [phrases_of(record, n, options.concepts) for n in range(len(record.captions))]
        for part in (record.image, json.dumps(texts).encode()):
            records.update(hashlib.sha256(part).digest())
        tokens.update(tokenizer(record.captions, options.text_length).tobytes())
    data = config.data
    made_of = {
        "outputs": list(outputs),
        "dtype": config.tower_store.dtype,
        "source": {"sample_sha256": records.hexdigest()},
        "text": {"length": options.text_length, "sample_sha256": tokens.hexdigest()},
        "phrases": {"length": options.phrase_length} if options.group_phrases else None,
        "pixels": {
            "size": options.image_size,
            "transform": options.transform,
            "resample": options.resample,
            "crop_share": options.crop_share,
            "mean": tuple(data.mean),
            "std": tuple(data.std),
        },
        "model": {"dtype": config.model.dtype, "image": _tower("image", model, params)},
    }
    if set(outputs) & set(tower_outputs.TEXT_OUTPUTS):
        made_of["model"]["text"] = _tower("text", model, params)
    return json.loads(json.dumps(made_of))


def _tower(part: str, model: TwoTowers, params) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path, value in sorted(parameters.flatten(params[f"{part}_tower"]).items()):
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    return {"fields": dict(getattr(model, part)), "weights_sha256": digest.hexdigest()}


class _Prepared(NamedTuple):
    """A record, ready for the towers."""

    sample_id: int
    image: np.ndarray
    captions: tuple[str, ...]
    phrases: list[tuple[str, ...]]  # of each caption; empty if the objective reads none


class _Maker:
    """Computes shards: threads decode, devices compute, one shard after the other is written."""

    def __init__(self, config, model, params, source, tokenizer, options, outputs):
        self._folder, self._outputs = config.tower_store.folder, outputs
        self._source, self._tokenizer, self._options = source, tokenizer, options
        mesh = create_mesh(jax.local_devices())
        self._placement = sharded(mesh)
        self._rows = -(-config.tower_store.batch_size // mesh.size) * mesh.size
        self._params = jax.device_put(params, replicated(mesh))
        placed = {
            "in_shardings": (replicated(mesh), self._placement),
            "out_shardings": self._placement,
        }
        image = tower_outputs.image_outputs(config, model, outputs)
        self._image_outputs = jax.jit(image, **placed)
        self._text_output = jax.jit(tower_outputs.text_output(model), **placed)

    def make(self, description: Description, shards: list[int]) -> None:
        """Writes these shards.

        Raises:
          ValueError: if too many records are unusable.
        """
        print(f"Storing outputs of the frozen towers in {self._folder}", file=sys.stderr)
        ranges = [description.range(shard) for shard in shards]
        progress = Progress(sum(map(len, ranges)), "images stored")
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            progress.show(done)

        skipped = self._skipped(description)
        pool = concurrent.futures.ThreadPoolExecutor(self._options.threads)

        def begin(records: range):
            return collections.deque(pool.submit(self._prepare, index) for index in records)

        try:
            decoding = collections.deque(map(begin, ranges[:1]))
            for number, shard in enumerate(shards):
                # Threads go on with the next shard while devices compute this one.
                decoding.extend(map(begin, ranges[number + 1 : number + 2]))
                tensors, bad = self._compute(ranges[number], decoding.popleft(), skipped, tell)
                path = description.path(self._folder, shard)
                write_shard(path, description.digest, tensors, bad)
        finally:
            pool.shutdown(cancel_futures=True)

    def _skipped(self, description: Description) -> SkippedRecords:
        """The count of unusable records, with those of shards that are there already."""
        path = os.path.join(self._folder, f"skipped-{jax.process_index()}.jsonl")
        if os.path.exists(path):
            os.remove(path)
        options = self._options
        skipped = SkippedRecords(self._source.name, len(self._source), options.max_bad_share, path)
        for number in range(description.shards):
            if os.path.exists(file := description.path(self._folder, number)):
                shard = Shard(file, description.digest)
                for _ in range(len(shard.sample_id)):
                    skipped.add_usable()
                for index, (key, reason) in shard.skipped.items():
                    skipped.add(BadRecord(key, reason), int(index))
        return skipped

    def _prepare(self, index: int) -> _Prepared:
        options = self._options
        record = self._source[index]
        image = transform_image(
            record.image,
            record.key,
            size=options.image_size,
            transform=options.transform,
            resample=options.resample,
            crop_share=options.crop_share,
            max_pixels=options.max_pixels,
        )
        phrases = []
        if options.group_phrases:
            captions = range(len(record.captions))
            phrases = [phrases_of(record, n, options.concepts) for n in captions]
        return _Prepared(record.sample_id, image, record.captions, phrases)

    def _compute(
        self,
        records: range,
        decoding: collections.deque[concurrent.futures.Future],
        skipped: SkippedRecords,
        tell: Callable[[int], None],
    ) -> tuple[dict[str, np.ndarray], list[tuple[int, str, str]]]:
        """Tensors of a shard, and (index, key, reason) of its unusable records."""
        images = self._batches(self._image_outputs, tell)
        layout, bad = _Layout(), []
        for index in records:
            try:
                prepared = decoding.popleft().result()
            except BadRecord as error:
                skipped.add(error, index)
                layout.add_unusable()
                bad.append((index, error.key, error.reason))
                tell(1)
            else:
                skipped.add_usable()
                layout.add(prepared)
                images.add(prepared.image)
        side = self._options.image_size
        tensors = images.finish(np.zeros((side, side, 3), np.uint8)) | layout.tensors()
        tensors |= self._texts("text", layout.captions, self._options.text_length)
        tensors |= self._texts("phrase", list(layout.phrases), self._options.phrase_length)
        return tensors, bad

    def _texts(self, kind: str, texts: list[str], length: int) -> dict[str, np.ndarray]:
        """Tokens of texts, and their embeddings if those are stored."""
        ids = self._tokenizer(texts, length)
        if kind not in self._outputs:
            return {f"{kind}_ids": ids}
        batches = self._batches(self._text_output, lambda count: None)
        for text in ids:
            batches.add(text)
        return {f"{kind}_ids": ids, kind: batches.finish(np.zeros(length, np.int32))}

    def _batches(self, function, tell: Callable[[int], None]) -> "_Batches":
        return _Batches(
            lambda rows: function(self._params, jax.device_put(rows, self._placement)),
            self._rows,
            tell,
        )


class _Layout:
    """Which captions and phrases belong to which record of a shard.

    Attributes:
      captions: of all records.
      phrases: {phrase: its row}; one that many captions share is stored once a shard.
    """

    def __init__(self):
        self.captions: list[str] = []
        self.phrases: dict[str, int] = {}
        self._row, self._sample_id, self._phrase_row = [], [], []
        self._caption_start, self._phrase_start = [0], [0]

    def add_unusable(self) -> None:
        """Takes a record that has no row."""
        self._row.append(-1)

    def add(self, prepared: _Prepared) -> None:
        """Takes a record."""
        self._row.append(len(self._sample_id))
        self._sample_id.append(prepared.sample_id)
        self.captions.extend(prepared.captions)
        self._caption_start.append(len(self.captions))
        for found in prepared.phrases or [()] * len(prepared.captions):
            for phrase in found:
                self._phrase_row.append(self.phrases.setdefault(phrase, len(self.phrases)))
            self._phrase_start.append(len(self._phrase_row))

    def tensors(self) -> dict[str, np.ndarray]:
        """As `tower_shards` names them."""
        return {
            "row": np.array(self._row, np.int32),
            "sample_id": np.array(self._sample_id, np.int64),
            "caption_start": np.array(self._caption_start, np.int32),
            "phrase_start": np.array(self._phrase_start, np.int32),
            "phrase_row": np.array(self._phrase_row, np.int32),
        }


class _Batches:
    """Feeds rows to a function in batches of one size and collects what it gives for each."""

    def __init__(
        self, function: Callable[[np.ndarray], Any], rows: int, tell: Callable[[int], None]
    ):
        """`tell` is told how many rows more are done."""
        self._function, self._rows, self._tell = function, rows, tell
        self._waiting, self._running, self._done = [], None, []

    def add(self, row: np.ndarray) -> None:
        """Takes a row; a full batch is sent off."""
        self._waiting.append(row)
        if len(self._waiting) == self._rows:
            self._send()

    def finish(self, example: np.ndarray) -> Any:
        """Outputs of all rows; `example` is a row, for the shapes if there was none."""
        if self._waiting or not self._done and self._running is None:
            self._send(example)
        self._collect()
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self._done)

    def _send(self, filler: np.ndarray | None = None) -> None:
        count = len(self._waiting)
        rows = self._waiting + [filler] * (self._rows - count)
        self._waiting = []
        outputs = self._function(np.stack(rows))
        self._collect()  # of the batch before, while this one is computed
        self._running = (count, outputs)

    def _collect(self) -> None:
        if self._running is not None:
            count, outputs = self._running
            self._done.append(jax.tree.map(lambda x: np.asarray(x)[:count], outputs))
            self._running = None
            self._tell(count)
