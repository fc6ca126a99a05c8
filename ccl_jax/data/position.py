"""Where a run stands in its data: a few integers, saved beside its checkpoints.

Batches are a function of seed and step (`order.py`), so the step alone says where to go on, on
any number of hosts and workers. What is saved besides lets a resumed run notice that the order
would be another one: another seed, or a source that grew, shrank or was put together anew.
"""

import dataclasses
import json
import os
import zlib
from typing import Any

from ccl_jax.data.records import BadRecord, Source

# Of `order.record_at` and of how batches draw from it: raised when either changes.
ORDER_VERSION = 2
_KEYS_READ = 16


@dataclasses.dataclass(frozen=True)
class Position:
    """What the next batch is.

    Attributes:
      step: batches taken so far.
      epoch: of the next record.
      place: of the next record in its epoch.
      batch_size: images of a global batch.
      seed: of the order.
      source: the source's name.
      records: the source's length.
      fingerprint: of the keys of a few records, see `fingerprint`.
      order: `ORDER_VERSION` of the code that wrote it.
    """

    step: int
    epoch: int
    place: int
    batch_size: int
    seed: int
    source: str
    records: int
    fingerprint: int
    order: int = ORDER_VERSION

    def save(self, path: str) -> None:
        """Writes a JSON file that is there whole or not at all."""
        partial = path + ".partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(self), file, indent=2)
        os.replace(partial, path)


def check_position(path: str, now: Position) -> None:
    """Checks that a run which saved its position goes on with the same order of records.

    Args:
      path: what `Position.save` wrote; a file that is not there is no objection.
      now: of the resumed run, at the step of its checkpoint.

    Raises:
      ValueError: naming what changed, or if the file is damaged.
    """
    if not os.path.exists(path):
        return
    try:
        with open(path, encoding="utf-8") as file:
            saved = Position(**json.load(file))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold a position in the data ({error}); remove it to go on in the "
            "order that the config gives"
        ) from error
    changed = _differences(saved, now)
    if changed:
        raise ValueError(
            f"the data of this run changed since its checkpoint ({'; '.join(changed)}), so its "
            "records would come in another order and some twice or never: restore the data, start "
            f"in a new workdir, or remove {path} to go on all the same"
        )


def fingerprint(source: Source) -> int:
    """A checksum over the keys of up to 16 records, spread evenly over a source."""
    count = min(len(source), _KEYS_READ)
    keys = []
    for number in range(count):
        try:
            keys.append(source[number * len(source) // count].key)
        except BadRecord as error:
            keys.append(error.key)
    return zlib.crc32("\0".join(keys).encode("utf-8", "surrogatepass"))


def _differences(saved: Position, now: Position) -> list[str]:
    def both(name: str, words: str) -> str:
        return f"{words} {_shown(getattr(saved, name))}, now {_shown(getattr(now, name))}"

    changed = []
    if saved.order != now.order:
        changed.append(both("order", "this version of the code orders records anew: version"))
    if saved.seed != now.seed:
        changed.append(both("seed", "config.seed was"))
    if saved.batch_size != now.batch_size:
        changed.append(both("batch_size", "config.data.batch_size was"))
    if saved.records != now.records:
        changed.append(both("records", f"{saved.source} had records:"))
    elif saved.fingerprint != now.fingerprint:
        changed.append(f"{saved.source} holds other records, or the same in another order")
    return changed


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
