"""A connection's socket, lent to a worker thread: much goes out without passing through the event loop.

    RequestConnection.lend(n)  ->  Loan.send(parts), in the worker: sendmsg of n bytes, as one chunk
                               <-  the loop goes on writing behind them

The bytes are not copied in this process: headers of packets and views of mapped files go to the kernel as
they are, which reads the disk, where it has to, in the worker's time. The loop must not write meanwhile.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from gitsmart.errors import Disconnected, TimedOut

__all__ = ["Loan"]

_PARTS: Final = 64
"""Of one sendmsg: half a MiB to two. Measured (shared/design/packs.md B): more makes no difference."""
_LOOK_S: Final = 0.5


class Loan:
    """The right to send so many bytes on a connection."""

    def __init__(self, sock: socket.socket, head: bytes, tail: bytes) -> None:
        """Own a duplicate of `sock`, whose number stays ours whatever the loop does. Raises: OSError."""
        self._sock = sock.dup()
        self._head = head
        self._tail = tail

    def send(
        self, parts: Sequence[bytes | memoryview], *, timeout_s: float, check: Callable[[], None]
    ) -> None:
        """Send them all, in what frames them; blocking. Once only.

        Raises:
            TimedOut: the client read nothing for `timeout_s`.
            Disconnected: it has gone, or what `check` raises.
        """
        todo = [part for part in (self._head, *parts, self._tail) if part]
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        moved = time.monotonic()
        at = 0
        try:
            while at < len(todo):
                check()
                try:
                    sent = self._sock.sendmsg(todo[at : at + _PARTS])
                except BlockingIOError:
                    if not poll.poll(_LOOK_S * 1000) and time.monotonic() - moved > timeout_s:
                        raise TimedOut(f"nothing was read for {timeout_s:g} seconds") from None
                    continue
                moved = time.monotonic()
                while at < len(todo) and sent >= len(todo[at]):
                    sent -= len(todo[at])
                    at += 1
                if sent:
                    todo[at] = memoryview(todo[at])[sent:]
        except OSError:
            raise Disconnected("the client has gone") from None
        finally:
            self._sock.close()

    def cancel(self) -> None:
        """Make `send` end, in any thread: nothing more is sent on the connection."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
