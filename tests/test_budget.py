"""Memory is shared out; who finds no room waits, and is told so at last."""

import threading

import pytest

from gitsmart.budget import Budget
from gitsmart.errors import Disconnected, Unavailable


def test_what_fits_is_taken_and_given_back() -> None:
    budget = Budget(100, patience_s=0)
    with budget.share() as one, budget.share() as two:
        one.take(60)
        two.take(40)
        with pytest.raises(Unavailable, match="no memory") as caught:
            two.take(1)
        assert caught.value.setting == "limits.memory_bytes"
        one.give(10)
        two.take(10)
        assert budget.held_bytes == 100
    assert budget.held_bytes == 0


def test_who_is_alone_may_have_more() -> None:
    budget = Budget(100, patience_s=0)
    with budget.share() as one:
        one.take(50)
        one.take(5000)
        with pytest.raises(Unavailable), budget.share() as two:
            two.take(1)
    assert budget.held_bytes == 0


def test_room_that_comes_wakes_who_waits() -> None:
    budget = Budget(100, patience_s=20)
    first, second = budget.share(), budget.share()
    first.take(100)
    waits = threading.Event()
    took = threading.Thread(target=lambda: second.take(50, waits.set))
    took.start()
    assert waits.wait(20)
    assert budget.held_bytes == 100
    first.give(60)
    took.join(20)
    assert (first.held_bytes, second.held_bytes, budget.held_bytes) == (40, 50, 90)


def test_who_leaves_waits_no_longer() -> None:
    budget = Budget(100, patience_s=20)
    budget.share().take(100)

    def check() -> None:
        raise Disconnected("gone")

    with pytest.raises(Disconnected), budget.share() as share:
        share.take(1, check)
    assert budget.held_bytes == 100
