"""Dumb HTTP: what a client gets that only reads files.

    HEAD                          "ref: " target LF  /  oid LF  /  nothing, when HEAD is unborn
    info/refs                     *( oid TAB name LF [ oid TAB name "^{}" LF ] )    made anew for each request
    objects/info/packs            *( "P " pack-name LF ) LF                         likewise
    objects/...                   files, see repo/plainfile.py

gitprotocol-http, "Dumb Clients"; git: http-backend.c get_head(), get_info_refs(), get_info_packs(). As with
git, files show more than refs do: any object in the repository, to whoever knows a name, and every pack
whole. `http.getanyfile = false` switches all of it off.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gitsmart.repo.repository import Repository

__all__ = ["Page", "head", "info_packs", "info_refs"]

_BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A text made for one request; `size` is what all pieces have together."""

    content_type: str
    size: int
    pieces: Iterator[bytes]
    refs: int = 0


def head(repo: Repository) -> Page:
    """Say what HEAD is. Raises what `Repository.refs` raises."""
    snapshot = repo.shown_refs("uploadpack", peel=False)
    text = b""
    if snapshot.head is not None:
        if snapshot.head_target is not None:
            text = b"ref: %b\n" % snapshot.head_target
        else:
            text = b"%b\n" % snapshot.head.oid
    return Page(content_type="text/plain", size=len(text), pieces=iter([text]))


def info_refs(repo: Repository) -> Page:
    """List the refs, hidden ones left out, and what tags point at. Raises what `Repository.refs` raises."""
    refs = repo.shown_refs("uploadpack").refs
    oid_len = repo.format.hex_len

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(refs), _BATCH):
            lines = []
            for ref in refs[start : start + _BATCH]:
                lines.append(b"%b\t%b\n" % (ref.oid, ref.name))
                if ref.peeled is not None:
                    lines.append(b"%b\t%b^{}\n" % (ref.peeled, ref.name))
            yield b"".join(lines)

    size = sum(oid_len + 2 + len(ref.name) for ref in refs)
    size += sum(oid_len + 5 + len(ref.name) for ref in refs if ref.peeled is not None)
    return Page(content_type="text/plain", size=size, pieces=pieces(), refs=len(refs))


def info_packs(repo: Repository) -> Page:
    """List the repository's own packs."""
    text = "".join(f"P {name}\n" for name in repo.pack_names()).encode("ascii") + b"\n"
    return Page(content_type="text/plain; charset=utf-8", size=len(text), pieces=iter([text]))
