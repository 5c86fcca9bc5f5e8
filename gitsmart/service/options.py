"""What a service may do and for how long, and what it tells of a request afterwards."""

from dataclasses import dataclass

from gitsmart._version import __version__

__all__ = ["ServiceOptions", "ServiceReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """Bounds and choices of the services; the same for every request, built from the Config.

    Numbers without a source are pulled out of the air: far above what git sends, far below what hurts.
    """

    agent: bytes = b"gitsmart/" + __version__.encode("ascii")
    """Our `agent` capability: printable ASCII without spaces."""
    keepalive_s: float = 5.0
    """Silence after which a keepalive packet goes out, 0: never (git: uploadpack.keepAlive)."""
    progress_interval_s: float = 0.5
    """Least time between two updates of one progress line."""
    fetch_lines: int = 1_000_000
    """Most lines in one fetch request: wants, haves, shallows together."""
    fetch_bytes: int = 128 << 20
    """Most bytes in those lines."""
    push_lines: int = 1_000_000
    """Most ref update commands and push options in one push."""
    push_bytes: int = 128 << 20
    """Most bytes in those lines."""


@dataclass(slots=True)
class ServiceReport:
    """What the log line wants to know of a request."""

    objects: int = 0
    """Objects sent, or received."""
    refs: int = 0
    """Refs advertised, wanted or updated."""
    note: str = ""
    """Anything else worth a word, such as `up to date` or the error that was sent to the client."""
    failed: bool = False
    """The client was told of an error (`ERR`, band 3, `ng`)."""
