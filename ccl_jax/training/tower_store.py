"""A store of tower outputs as a source, and training batches read from it."""

import collections
import functools
import os
import threading

import numpy as np

from ccl_jax.data.pipeline import Batch, PipelineOptions, TrainingBatches
from ccl_jax.data.records import BadRecord, Record
from ccl_jax.data.text import Tokenizer
from ccl_jax.training.tower_outputs import IMAGE_OUTPUTS, PREFIX
from ccl_jax.training.tower_shards import LAYOUT, Description, File, Shard

_OPEN_FILES = 256  # well below the usual limit of a process


class TowerStore:
    """A whole store. Safe to read from several threads.

    As a source (`ccl_jax.data.records.Source`) it stands for the one that it was made from:
    record i is record i there, but has numbers for image, captions and phrases, with which
    `read` finds what is stored of them.

    Attributes:
      name: of the source that it was made from.
      description: what `store.json` says.
    """

    def __init__(self, folder: str, name: str, *, verify: bool = False):
        """Opens a store.

        Args:
          folder: of the store.
          name: of the source that it was made from.
          verify: whether to read all of it and compare the checksums.

        Raises:
          ValueError: naming a shard that is missing, cut, damaged or of another store.
        """
        self.name = name
        self.description = description = Description.load(folder)
        digest, paths = description.digest, []
        for shard in range(description.shards):
            paths.append(description.path(folder, shard))
            if not os.path.exists(paths[-1]):
                raise ValueError(
                    f"{paths[-1]} is missing: start the run again, which computes it; several "
                    "hosts must share the folder"
                )
        self._shards = [Shard(path, digest) for path in paths]
        if verify:
            damaged = [shard.path for shard in self._shards if not shard.verify()]
            if damaged:
                raise ValueError(
                    f"damaged: {', '.join(damaged)}; delete them and start the run again"
                )
        # Numbers of captions and phrases run through all shards.
        self._first = {
            "caption": _starts([len(shard.phrase_start) - 1 for shard in self._shards]),
            "phrase": _starts([shard.tensors["phrase_ids"].shape[0] for shard in self._shards]),
        }
        self._files: collections.OrderedDict[int, File] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.description.records

    def __getitem__(self, index: int) -> Record:
        """The record whose image, captions and phrases are numbers for `read`.

        Raises:
          BadRecord: with the reason for which the source's record could not be used.
        """
        number, place = divmod(index, self.description.records_per_shard)
        shard = self._shards[number]
        row = int(shard.row[place])
        if row < 0:
            raise BadRecord(*shard.skipped[index])
        first_caption, first_phrase = (int(self._first[k][number]) for k in ("caption", "phrase"))
        captions = range(*shard.caption_start[row : row + 2].tolist())
        phrases = []
        for caption in captions:
            rows = shard.phrase_row[slice(*shard.phrase_start[caption : caption + 2].tolist())]
            phrases.append(tuple(str(first_phrase + phrase) for phrase in rows.tolist()))
        return Record(
            sample_id=int(shard.sample_id[row]),
            key=f"{self.name}/{index}",
            image=str(index).encode(),
            captions=tuple(str(first_caption + caption) for caption in captions),
            phrases=tuple(phrases),
        )

    @functools.cached_property
    def tensors(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Type and shape of a row of everything that `read` finds."""
        tensors = self._shards[0].tensors.items()
        return {name: (t.dtype, t.shape[1:]) for name, t in tensors if name not in LAYOUT}

    def read(self, name: str, number: int, out: np.ndarray) -> None:
        """Reads a row of a tensor.

        Args:
          name: of the tensor.
          number: that a record has for its image, caption or phrase.
          out: contiguous, of the row's type and shape.

        Raises:
          ValueError: if the file was cut meanwhile.
        """
        if name in IMAGE_OUTPUTS:
            shard, place = divmod(number, self.description.records_per_shard)
            row = int(self._shards[shard].row[place])
        else:
            first = self._first["caption" if name.startswith("text") else "phrase"]
            shard = int(np.searchsorted(first, number, side="right")) - 1
            row = number - int(first[shard])
        tensor = self._shards[shard].tensors[name]
        start = tensor.start + row * tensor.row_bytes
        self._file(shard).read(start, out.reshape(-1).view(np.uint8))

    def _file(self, shard: int) -> File:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = File(self._shards[shard].path)
                if len(self._files) > _OPEN_FILES:
                    # Closed when no other thread reads from it any more.
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return self._files[shard]


class StoredBatches(TrainingBatches):
    """The batches of `TrainingBatches` with stored outputs in place of pixels.

    Order, draw of captions and phrases, skipped records and random numbers are those of the
    pipeline, whose code draws them.
    """

    def __init__(self, store: TowerStore, tokenizer: Tokenizer, options: PipelineOptions, **more):
        """Reads nothing yet.

        Args:
          store: where outputs and tokens come from.
          tokenizer: of the texts, for their padding.
          options: of the pipeline; what it says of images is settled by the store.
          **more: as for `TrainingBatches`.

        Raises:
          ValueError: as `TrainingBatches` does.
        """
        super().__init__(store, tokenizer, options, **more)
        self._outputs = [name for name in store.tensors if not name.endswith("_ids")]

    def _empty_batch(self) -> Batch:
        batch = super()._empty_batch()
        del batch["image"]
        for name in self._outputs:
            dtype, shape = self.source.tensors[name]
            rows = len(batch["phrase_text" if name == "phrase" else "text"])
            batch[PREFIX + name] = np.zeros((rows, *shape), dtype)
        return batch

    def _image(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(int(record.image))

    def _fill(self, work: tuple[Batch, int, int]) -> tuple[Batch, int]:
        batch, slot, index = work
        options = self.options
        samples = self._samples(index)
        of_images = [name for name in self._outputs if name in IMAGE_OUTPUTS]
        for row, sample in enumerate(samples, slot * options.phrase_group):
            batch["sample_id"][row] = sample.record.sample_id
            for name in of_images:
                self.source.read(name, int(sample.image), batch[PREFIX + name][row])
            self._read_text("text", int(sample.caption), batch, row)
        if options.group_phrases:
            first_image = index % options.groups * options.phrase_group
            owned = [(i, p) for i, s in enumerate(samples, first_image) for p in s.phrases]
            for row, (image, phrase) in enumerate(owned, slot * options.group_phrases):
                batch["phrase_image"][row] = image
                self._read_text("phrase", int(phrase), batch, row)
        return batch, sum(len(sample.dropped) for sample in samples)

    def _read_text(self, kind: str, number: int, batch: Batch, row: int) -> None:
        tokens = batch["text" if kind == "text" else "phrase_text"]
        self.source.read(f"{kind}_ids", number, tokens[row])
        if kind in self._outputs:
            self.source.read(kind, number, batch[PREFIX + kind][row])


def _starts(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])[:-1].astype(np.int64)
