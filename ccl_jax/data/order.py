"""The order of records: a permutation for every epoch that is computed, not stored.

A generalised Feistel network permutes a grid of just over `size` cells, and places that land
outside are sent through again until they land inside (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002). Any stretch of the order of any epoch costs the same,
over a thousand records or a billion; a stored permutation would take 8 GB and some minutes for a
billion, at every start, on every host. `tests/data/test_order.py` holds it against chance.
"""

import functools
import math

import numpy as np

# Of the network. With 8 the orders of six records are visibly uneven, with 12 they are as even as
# chance; half a microsecond a record with 16.
_ROUNDS = 16
# Places that are computed at once and kept: workers ask for neighbours.
_BLOCK = 4096
_BLOCKS_KEPT = 64
_MASK = (1 << 64) - 1


def record_at(seed: int, position: int, size: int) -> tuple[int, int]:
    """The record at a position of the epochs laid end to end.

    Args:
      seed: of the order; not negative.
      position: count of records since the start of training.
      size: records of an epoch, at least 1.

    Returns:
      The record's index in [0, size), and the epoch. Every index once an epoch.
    """
    epoch, place = divmod(position, size)
    block, offset = divmod(place, _BLOCK)
    return int(_block(seed, epoch, size, block)[offset]), epoch


def stand_in(seed: int, position: int, size: int, attempt: int) -> int:
    """The record that takes a position whose own record cannot be used.

    Attempts go round the epoch in steps of about 0.62 of it, so that the stand-in's own place
    is far from here (not in the same batch), and different positions have different stand-ins:
    a record stands in at most once an epoch, unless the stand-in of a stand-in is needed.

    Args:
      seed: of the order.
      position: as in `record_at`.
      size: records of an epoch.
      attempt: 1, 2, ...; `size - 1` of them reach every other record.

    Returns:
      An index in [0, size).
    """
    epoch, place = divmod(position, size)
    place = (place + attempt * _stride(size)) % size
    return int(_permute(np.array([place]), size, _keys(seed, epoch))[0])


def mix(*values: int) -> int:
    """A number in [0, 2**64) that depends on all of `values` and looks random.

    The finaliser of splitmix64, chained. A `numpy` generator for one draw costs ten times this.
    """
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


@functools.lru_cache(maxsize=_BLOCKS_KEPT)
def _block(seed: int, epoch: int, size: int, block: int) -> np.ndarray:
    places = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, size))
    return _permute(places, size, _keys(seed, epoch))


def _keys(seed: int, epoch: int) -> np.ndarray:
    return np.random.SeedSequence((seed, 0, epoch)).generate_state(_ROUNDS, np.uint64)


def _permute(places: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """The images of `places` in [0, size) under a permutation of [0, size)."""
    columns = np.uint64(math.isqrt(size - 1) + 1 if size > 1 else 1)
    rows = np.uint64(-(-size // int(columns)))  # rows x columns is `size` or little more
    moved = places.astype(np.uint64)
    outside = np.ones(len(moved), bool)
    while outside.any():
        # From a place inside, the walk comes back inside: at the latest to where it began.
        row, column = np.divmod(moved[outside], columns)
        for number, key in enumerate(keys):
            if number % 2:
                column = (column + _scramble(row + key) % columns) % columns
            else:
                row = (row + _scramble(column + key) % rows) % rows
        moved[outside] = row * columns + column
        outside = moved >= size
    return moved.astype(np.int64)


def _scramble(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 over an array of uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _stride(size: int) -> int:
    """The number nearest below 0.618 `size` that has no divisor in common with it."""
    return next((step for step in range(int(0.618 * size), 0, -1) if math.gcd(step, size) == 1), 1)
