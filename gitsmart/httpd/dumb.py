"""Dumb HTTP: HEAD, info/refs without a service, and the object files, as git-http-backend serves them.

    200, 206 (one range), 304 (If-Modified-Since), 404, 416; 403 where http.getanyfile is false

Objects, packs and indexes never change under their names, so they may be cached for a year; all else is made
anew. There are no Etags: Last-Modified is what git-http-backend gives. Several ranges at once are answered
with the whole file (RFC 9110 section 14.2 allows it). Everything is read, and every status decided, in a
worker.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final

from tornado.httputil import format_timestamp

from gitsmart.access.identity import Actor
from gitsmart.access.rules import GETANYFILE
from gitsmart.httpd import smart
from gitsmart.httpd.errors import RangeNotSatisfiable
from gitsmart.httpd.smart import Service, SmartHandler
from gitsmart.repo.plainfile import FileKind, PlainFile
from gitsmart.repo.repository import Repository
from gitsmart.service import dumb
from gitsmart.service.channel import Channel
from gitsmart.service.dumb import Page
from gitsmart.service.options import ServiceReport

__all__ = ["AlternatesFile", "Head", "InfoPacks", "InfoRefs", "LooseObject", "PackFile"]

FOREVER_S: Final = 31_536_000
_RANGE: Final = re.compile(r"bytes[ \t]*=[ \t]*(\d{0,18})[ \t]*-[ \t]*(\d{0,18})[ \t]*")


class DumbHandler(SmartHandler):
    """A request for a file. Its headers are set by the worker, before the first byte crosses to the loop."""

    allowed = "GET, HEAD"

    def select_service(self) -> None:
        self.service = GETANYFILE
        self.fields["service"] = GETANYFILE

    async def get(self, name: str, **_: str) -> None:
        await self._body_complete()

    async def head(self, name: str, **_: str) -> None:
        await self._body_complete()

    def send_page(self, page: Page, channel: Channel) -> ServiceReport:
        """Send a text, whole; in the worker."""
        self.set_header("Content-Length", str(page.size))
        self.replace_header("Content-Type", page.content_type)
        self.send_pieces(page.pieces, channel)
        return ServiceReport(refs=page.refs)

    def send_file(
        self, file: PlainFile, content_type: str, channel: Channel, *, forever: bool
    ) -> ServiceReport:
        """Send a file, or the part of it that was asked for, or say that it hasn't changed; in the worker.

        Raises:
            RangeNotSatisfiable
        """
        if forever:
            self.cache_forever()
        if self.is_unmodified(file.mtime):
            self.set_status(304)
            self.set_header("Last-Modified", format_timestamp(file.mtime))
            return ServiceReport(note="not modified")
        start, end = self.range_of(file)
        if end - start < file.size:
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{end - 1}/{file.size}")
        self.set_header("Content-Length", str(end - start))
        self.replace_header("Content-Type", content_type)
        self.set_header("Last-Modified", format_timestamp(file.mtime))
        self.send_pieces(file.pieces(start, end), channel)
        return ServiceReport()

    def send_pieces(self, pieces: Iterator[bytes], channel: Channel) -> None:
        """Write them, unless only the head was asked for."""
        if self.request.method == "HEAD":
            return
        for piece in pieces:
            channel.write(piece)

    def replace_header(self, name: str, value: str) -> None:
        """Set a header behind those that are set already, in git-http-backend's order."""
        self.clear_header(name)
        self.set_header(name, value)

    def cache_forever(self) -> None:
        """See git: http-backend.c hdr_cache_forever()."""
        self.clear_header("Pragma")
        self.set_header("Expires", format_timestamp(time.time() + FOREVER_S))
        self.set_header("Cache-Control", f"public, max-age={FOREVER_S}")

    def is_unmodified(self, mtime: int) -> bool:
        """Whether the client's copy is good (RFC 9110 section 13.2.2). It has no Etag of ours."""
        given = self.request.headers.get("If-None-Match")
        if given is not None:
            return given.strip() == "*"
        since = http_date(self.request.headers.get("If-Modified-Since", ""))
        return since is not None and mtime <= since

    def range_of(self, file: PlainFile) -> tuple[int, int]:
        """Return the first byte to send and the one behind the last (RFC 9110 section 14).

        Raises:
            RangeNotSatisfiable: it begins behind the file's end.
        """
        whole = (0, file.size)
        values = self.request.headers.get_list("Range")
        if len(values) != 1 or self.request.method != "GET":
            return whole
        match = _RANGE.fullmatch(values[0])
        if match is None or (not match[1] and not match[2]):
            return whole
        condition = self.request.headers.get("If-Range")
        if condition is not None and http_date(condition) != file.mtime:
            return whole
        if not match[1]:
            start, end = max(0, file.size - int(match[2])), file.size
        else:
            start = int(match[1])
            end = min(int(match[2]) + 1, file.size) if match[2] else file.size
            if match[2] and int(match[2]) < start:
                return whole  # no range at all: to be ignored
        if start >= file.size:
            raise RangeNotSatisfiable(f"bytes */{file.size}")
        return start, end


def http_date(text: str) -> int | None:
    """Return an HTTP-date as seconds since 1970, None for anything else."""
    try:
        date = parsedate_to_datetime(text)
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class Head(DumbHandler):
    """GET /<repo>/HEAD"""

    def bind(self, actor: Actor, repo: Repository) -> Service:
        for name in ("Expires", "Pragma", "Cache-Control"):
            self.clear_header(name)  # git: http-backend.c get_head() says nothing on caching
        return partial(self._serve, repo)

    def _serve(self, repo: Repository, channel: Channel) -> ServiceReport:
        return self.send_page(dumb.head(repo), channel)


class InfoPacks(DumbHandler):
    """GET /<repo>/objects/info/packs"""

    def bind(self, actor: Actor, repo: Repository) -> Service:
        return partial(self._serve, repo)

    def _serve(self, repo: Repository, channel: Channel) -> ServiceReport:
        return self.send_page(dumb.info_packs(repo), channel)


class FileHandler(DumbHandler):
    """A file as it is."""

    content_type = "text/plain"
    is_immutable = True

    def file_name(self) -> tuple[FileKind, str]:
        """Say which file, in plainfile.py's terms."""
        raise NotImplementedError

    def bind(self, actor: Actor, repo: Repository) -> Service:
        return partial(self._serve, repo)

    def _serve(self, repo: Repository, channel: Channel) -> ServiceReport:
        with repo.open_file(*self.file_name()) as file:
            return self.send_file(file, self.content_type, channel, forever=self.is_immutable)


class AlternatesFile(FileHandler):
    """GET /<repo>/objects/info/alternates, http-alternates"""

    is_immutable = False

    def file_name(self) -> tuple[FileKind, str]:
        return ("http-alternates" if self.path_kwargs["alternates"].startswith("http") else "alternates"), ""


class LooseObject(FileHandler):
    """GET /<repo>/objects/xx/..."""

    content_type = "application/x-git-loose-object"

    def file_name(self) -> tuple[FileKind, str]:
        return "loose", self.path_kwargs["loose"].replace("/", "")


class PackFile(FileHandler):
    """GET /<repo>/objects/pack/pack-....pack, .idx"""

    def file_name(self) -> tuple[FileKind, str]:
        name, _, suffix = self.path_kwargs["pack"].removeprefix("pack-").partition(".")
        if suffix == "pack":
            self.content_type = "application/x-git-packed-objects"
            return "pack", name
        self.content_type = "application/x-git-packed-objects-toc"
        return "idx", name


class InfoRefs(smart.InfoRefs, DumbHandler):
    """GET /<repo>/info/refs, with a service or without."""

    def select_service(self) -> None:
        if "service" in self.request.query_arguments:
            super().select_service()
        else:
            DumbHandler.select_service(self)

    def bind(self, actor: Actor, repo: Repository) -> Service:
        if self.service != GETANYFILE:
            return super().bind(actor, repo)
        self.fields["phase"] = "advertise"
        return partial(self._serve, repo)

    def _serve(self, repo: Repository, channel: Channel) -> ServiceReport:
        return self.send_page(dumb.info_refs(repo), channel)

    async def get(self, name: str, **_: str) -> None:
        await self._body_complete()

    async def head(self, name: str, **_: str) -> None:
        await self._body_complete()
