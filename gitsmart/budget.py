"""Memory that requests make us hold, bounded for all of a process together.

    share = budget.share()
    with share:
        share.take(size, check)     waits while others hold too much
        ...
        share.give(size)            the rest is given back at the end

It is a bound, not a scheduler: what each request holds below its own first mebibyte is never counted, and a
request may always have what it wants while nobody else holds anything (its own limits say how much that can
be), so there is always one that gets on. Two that hold some and want more than is left wait for each other
until one has no patience left.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from gitsmart.errors import Unavailable

__all__ = ["Budget", "Share"]

POLL_S: Final = 0.1


class Budget:
    """So many bytes for all requests of this process. Thread-safe; a fork has a budget of its own."""

    def __init__(self, limit_bytes: int, *, patience_s: float = 30.0) -> None:
        """
        Args:
            limit_bytes: what all shares together may hold, mostly.
            patience_s: how long one waits for room.
        """
        self.limit_bytes = limit_bytes
        self.patience_s = patience_s
        self.held_bytes = 0
        """What all shares hold now."""
        self._room = threading.Condition(threading.Lock())

    def share(self) -> "Share":
        """Begin a request's share: nothing yet."""
        return Share(self)


class Share:
    """What one request holds. Used by one thread at a time; a context manager, which gives all back."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held_bytes = 0

    def __enter__(self) -> "Share":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.give(self.held_bytes)

    def take(self, n: int, check: Callable[[], None] | None = None) -> None:
        """Hold `n` bytes more; blocking. `check` is called now and then meanwhile: it raises to end the wait.

        Raises:
            Unavailable: no room came in time.
        """
        budget = self._budget
        give_up_at = None
        with budget._room:
            while not self._fits(n):
                now = time.monotonic()
                if give_up_at is None:
                    give_up_at = now + budget.patience_s
                if now >= give_up_at:
                    raise Unavailable(
                        "the server is busy: no memory for this request", setting="limits.memory_bytes"
                    )
                budget._room.wait(min(POLL_S, give_up_at - now))
                if check is not None and not self._fits(n):
                    budget._room.release()
                    try:
                        check()
                    finally:
                        budget._room.acquire()
            budget.held_bytes += n
            self.held_bytes += n

    def _fits(self, n: int) -> bool:
        budget = self._budget
        return budget.held_bytes + n <= budget.limit_bytes or budget.held_bytes == self.held_bytes

    def give(self, n: int) -> None:
        """Give `n` bytes back."""
        if not n:
            return
        assert n <= self.held_bytes
        with self._budget._room:
            self._budget.held_bytes -= n
            self.held_bytes -= n
            self._budget._room.notify_all()
