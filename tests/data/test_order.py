"""The computed permutation: each index once, even as numpy's own shuffle, and at no cost."""

import collections
import itertools
import math
import time

import numpy as np
import pytest

from ccl_jax.data import order


def epoch_of(seed, epoch, size):
    found = [order.record_at(seed, epoch * size + place, size) for place in range(size)]
    assert {number for _, number in found} == {epoch}
    return [index for index, _ in found]


@pytest.mark.parametrize("size", [*range(1, 40), 100, 4095, 4096, 4097, 9999])
def test_every_index_once_an_epoch(size):
    for epoch in (0, 3):
        assert sorted(epoch_of(7, epoch, size)) == list(range(size))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        (seed, epoch): tuple(epoch_of(seed, epoch, 50)) for seed in range(3) for epoch in range(3)
    }
    assert len(set(orders.values())) == len(orders)


def z_score(counts, expected):
    """Chi squared of equally likely counts as a normal deviate (Wilson and Hilferty)."""
    counts = np.asarray(counts, float).ravel()
    free = counts.size - 1
    chi = ((counts - expected) ** 2 / expected).sum()
    return ((chi / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_small_sets_come_in_all_their_orders_equally_often(size):
    epochs = 30 * math.factorial(size)
    places = np.arange(size)
    seen = collections.Counter(
        tuple(order._permute(places, size, order._keys(0, epoch))) for epoch in range(epochs)
    )
    counts = [seen[one] for one in itertools.permutations(range(size))]
    assert abs(z_score(counts, 30)) < 4


@pytest.mark.parametrize("size", [24, 101])
def test_index_and_neighbour_are_independent_of_the_place(size):
    epochs = 2_000
    orders = np.array(
        [order._permute(np.arange(size), size, order._keys(1, epoch)) for epoch in range(epochs)]
    )
    where = np.zeros((size, size))
    np.add.at(where, (np.broadcast_to(np.arange(size), orders.shape), orders), 1)
    # Rows and columns are fixed sums: less freedom than cells, so less spread, never more.
    assert z_score(where, epochs / size) < 4
    steps = (orders[:, 1:] - orders[:, :-1]) % size
    assert abs(z_score(np.bincount(steps.ravel(), minlength=size)[1:], steps.size / (size - 1))) < 4


def test_a_long_epoch_is_mixed():
    size = 100_000
    indices = order._permute(np.arange(size), size, order._keys(0, 0))
    # Correlations of n pairs of independent values spread by 1 / sqrt(n).
    for shift in (1, 2, 7, 316, 317):  # the grid is 317 wide
        assert abs(np.corrcoef(indices[:-shift], indices[shift:])[0, 1]) < 4 / math.sqrt(size)
    assert abs(np.corrcoef(np.arange(size), indices)[0, 1]) < 4 / math.sqrt(size)
    # Records of one shard, 1 in 100, are spread like chance over hundredths of the epoch.
    spread = np.bincount(np.flatnonzero(indices < size // 100) * 100 // size, minlength=100)
    assert abs(z_score(spread, 10)) < 4


def test_a_billion_records_cost_nothing():
    start = time.process_time()
    found = {order.record_at(5, 7 * 10**9 + place, 10**9) for place in range(10_000)}
    assert time.process_time() - start < 1  # a shuffle of a billion takes 8 GB and half a minute
    indices = np.array([index for index, epoch in found if epoch == 7])
    assert len(indices) == 10_000
    assert 0 <= indices.min() and indices.max() < 10**9
    assert abs(z_score(np.bincount(indices * 50 // 10**9, minlength=50), 200)) < 4


@pytest.mark.parametrize("size", [1, 2, 3, 10, 24, 97])
def test_stand_ins_reach_every_other_record(size):
    for position in (0, size - 1, 5 * size + size // 2):
        own, _ = order.record_at(3, position, size)
        others = [order.stand_in(3, position, size, attempt) for attempt in range(1, size)]
        assert sorted([own, *others]) == list(range(size))


def test_no_two_places_of_an_epoch_share_their_first_stand_in_and_it_is_far_away():
    size = 1_000
    where = {index: place for place, index in enumerate(epoch_of(3, 2, size))}
    first = [order.stand_in(3, 2 * size + place, size, 1) for place in range(size)]
    assert len(set(first)) == size
    distances = {(where[index] - place) % size for place, index in enumerate(first)}
    assert all(300 < distance < 700 for distance in distances)


def test_mix_depends_on_every_value():
    found = {order.mix(*values) for values in itertools.product(range(12), repeat=3)}
    assert len(found) == 12**3
    assert abs(z_score(np.bincount([number >> 60 for number in found], minlength=16), 108)) < 4
