"""What a service may do and for how long, and what it tells of a request afterwards."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gitsmart._version import __version__
from gitsmart.pack.indexer import IngestLimits
from gitsmart.pack.packcache import PackCache

__all__ = ["ServiceOptions", "ServiceReport"]


def new_session_id() -> bytes:
    """Make an id for this process, in the form that git's own have: time, hash of the host's name, process.

    git: trace2/tr2_sid.c tr2_sid_append_my_sid_component().
    """
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    host = hashlib.sha1(os.fsencode(os.uname().nodename), usedforsecurity=False)
    return f"{now}-H{host.hexdigest()[:8]}-P{os.getpid() & 0xFFFFFFFF:08x}".encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """Bounds and choices of the services; the same for every request, built from the Config.

    Numbers without a source are pulled out of the air: far above what git sends, far below what hurts.
    """

    agent: bytes = b"gitsmart/" + __version__.encode("ascii")
    """Our `agent` capability: printable ASCII without spaces."""
    session_id: bytes = field(default_factory=new_session_id)
    """Our `session-id` capability, where transfer.advertiseSID is set; one for the life of the process."""
    keepalive_s: float = 5.0
    """Silence after which a keepalive packet goes out, 0: never (git: uploadpack.keepAlive)."""
    progress_interval_s: float = 0.5
    """Least time between two updates of one progress line."""
    pack_cache: PackCache | None = None
    """Where packs are shared and kept; None: each fetch makes its own."""
    fetch_lines: int = 1_000_000
    """Most lines in one fetch request: wants, haves, shallows together."""
    fetch_bytes: int = 64 << 20
    """Most bytes in those lines."""
    push_lines: int = 1_000_000
    """Most ref update commands and push options in one push."""
    push_bytes: int = 64 << 20
    """Most bytes in those lines."""
    ingest: IngestLimits = field(default_factory=IngestLimits)
    """What a pushed pack may hold; a repository's receive.maxInputSize can only lower it."""
    detect_collisions: bool = True
    """Refuse objects made to collide in SHA-1."""
    hook_timeout_s: float = 600.0
    """The longest that one hook may run. git has no limit."""
    hook_environ: Mapping[str, str] = field(default_factory=dict)
    """What all hooks find in their environment besides git's variables: HOME, LANG, PATH and the like."""


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
    agent: str = ""
    """The program that the client says it is. Not to be trusted, as the next two."""
    session_id: str = ""
    """The client's own id of its session."""
    server_options: tuple[str, ...] = ()
    """What the user gave by `--server-option`: nothing here understands any of it."""
