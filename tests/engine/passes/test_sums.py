"""Sums in a fixed order, which are the same bits wherever the parts come from."""

import numpy as np
import pytest

from keras_influence.engine.passes.sums import added, in_eights, summed


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 65, 200])
def test_sums_are_exact_and_take_eight_at_a_time(count):
    parts = np.arange(1.0, count + 1)[:, None] * [1.0, -2.0]
    assert summed(iter(parts), count).tolist() == [count * (count + 1) / 2, -count * (count + 1)]
    groups = list(in_eights(range(count), list))
    assert [i for group in groups for i in group] == list(range(count))
    assert all(len(group) == 8 for group in groups[:-1]) and len(groups[-1]) <= 8


def test_the_order_is_that_of_eights(rng):
    parts = rng.normal(size=(20, 3)) * 10.0 ** rng.integers(-8, 8, (20, 1))

    def in_turn(some):
        total = some[0]
        for part in some[1:]:
            total = total + part
        return total

    expected = in_turn([in_turn(parts[:8]), in_turn(parts[8:16]), in_turn(parts[16:])])
    assert np.array_equal(summed(iter(parts), 20), expected)


def test_what_is_added_up_is_not_changed_and_may_be_nested():
    parts = [[np.full(2, i), [np.full((1, 3), 10 * i)]] for i in (1.0, 2.0, 4.0)]
    total = added(parts)
    assert total[0].tolist() == [7, 7] and total[1][0].tolist() == [[70, 70, 70]]
    assert parts[0][0].tolist() == [1, 1] and parts[1][1][0].tolist() == [[20, 20, 20]]
    (alone,) = (added(iter(parts[:1])),)
    assert alone is parts[0]


def test_one_part_of_many_heights_is_held_at_a_time():
    held = []

    class Part:
        def __init__(self, value):
            self.value = value
            held.append(self)

        def __array__(self, dtype=None, copy=None):
            held.remove(self)
            return np.array([self.value])

        def __add__(self, other):
            return np.asarray(self) + np.asarray(other)

    most = 0

    def parts():
        nonlocal most
        for i in range(64):
            most = max(most, len(held))
            yield Part(float(i))

    assert summed(parts(), 64).tolist() == [64 * 63 / 2]
    assert most <= 2
