"""`git archive --remote`: a tree as tar, tar.gz or zip, made on the way and byte for byte git's.

    arguments -> ref [":" path] -> tree -> walk (pathspecs, export-ignore)
              -> content (export-subst, ident, line ends) -> tar or zip -> gzip -> band 1

What may be asked for is a ref that the client may see, and a path in it; with uploadArchive.allowUnreachable
also an object id, and ~n, ^n, ^{type} behind either. The archive's time is the commit's, or now for a tree
without one.

git-upload-archive(1), "SECURITY"; git: builtin/upload-archive.c, archive.c. Differences: docs/protocol.md.
Memory: one file's content (see BLOB_LIMIT_BYTES), the trees on the way down, and for zip the directory.
"""

import email.utils
import logging
import re
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gitsmart.errors import GitsmartError, LimitExceeded, ObjectMissing, PackError, ProtocolError
from gitsmart.pack.objects import BLOB, COMMIT, TAG, TREE, TYPE_NAMES, iter_tree, parse_tag, to_hex, to_raw
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.store import ObjectStore
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.refs import RefSnapshot
from gitsmart.repo.repository import Repository
from gitsmart.service.channel import Channel
from gitsmart.service.checkout_text import CHECKOUT_ATTRIBUTES, LineEnds, check_out
from gitsmart.service.export_subst import CommitText, substitute
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.service.packets import PktLineReader
from gitsmart.wildmatch import LIMIT_BYTES, compile_pattern, is_literal
from gitsmart.wire.archive_request import (
    FORMATS,
    ArchiveRefused,
    ArchiveRequest,
    parse_arguments,
    read_arguments,
)
from gitsmart.wire.gitattributes import (
    BINARY_MACRO,
    MAX_FILE_BYTES,
    AttributeFile,
    Value,
    attributes_of,
    parse,
)
from gitsmart.wire.pktline import FLUSH_PKT, pkt
from gitsmart.wire.sideband import KEEPALIVE_PKT, SIDE_BAND_64K_LIMIT, SideBandWriter
from gitsmart.wire.tar import TarWriter
from gitsmart.wire.zip import ZipWriter

__all__ = ["upload_archive"]

_logger = logging.getLogger(__name__)

BLOB_LIMIT_BYTES: Final = 512 << 20
"""The largest file that is taken into memory (git: core.bigFileThreshold's default); loose ones are
streamed."""

TREE_LIMIT_BYTES: Final = 256 << 20
DEPTH_LIMIT: Final = 2048  # git: core.maxTreeDepth
ZIP_ENTRIES_LIMIT: Final = 2_000_000  # their directory is held in memory; pulled out of the air

_DIED: Final = "git upload-archive: archiver died with error"
_WANTED: Final = CHECKOUT_ATTRIBUTES | {b"export-ignore", b"export-subst", b"diff"}
_GITLINK: Final = 0o160000
# git: refs.c ref_rev_parse_rules[]
_REF_RULES: Final = (
    b"%b", b"refs/%b", b"refs/tags/%b", b"refs/heads/%b", b"refs/remotes/%b", b"refs/remotes/%b/HEAD"
)  # fmt: skip


def upload_archive(repo: Repository, channel: Channel, *, options: ServiceOptions) -> ServiceReport:
    """Serve one `git archive --remote`. Blocking.

    What is wrong with the request is told on bands 2 and 3, as by git.

    Raises:
        Disconnected: the client has gone.
    """
    report = ServiceReport()
    packets = PktLineReader(channel.read)
    band = SideBandWriter(channel.write, SIDE_BAND_64K_LIMIT)
    try:
        lines = packets.iter_section(limit_lines=66, limit_bytes=66 * SIDE_BAND_64K_LIMIT)
        request: ArchiveRequest | ProtocolError = parse_arguments(read_arguments(lines))
    except ProtocolError as error:
        request = error
    channel.write(pkt(b"ACK\n") + FLUSH_PKT)
    if options.keepalive_s:
        channel.keepalive(KEEPALIVE_PKT, options.keepalive_s)
    try:
        if isinstance(request, ProtocolError):
            raise request
        archiver = _Archiver(repo, channel, band)
        archiver.run(request)
        report.objects = archiver.entries
        report.note = "archive"
    except (ProtocolError, PackError, ObjectMissing, OSError) as error:
        known = isinstance(error, GitsmartError)
        reason = f"missing object {error}" if isinstance(error, ObjectMissing) else str(error)
        if not known:
            _logger.exception("archive of %s broke off", repo.name)
            reason = "the archive can't be read from the disk"
        channel.keepalive(b"", 0)
        band.flush()
        band.progress(f"fatal: {reason}\n".encode())
        band.error(_DIED)
        report.failed = True
        report.note = reason
        channel.flush()
        return report
    channel.keepalive(b"", 0)
    band.finish()
    channel.flush()
    return report


@dataclass(frozen=True, slots=True)
class _Entry:
    path: bytes  # in the tree; with a slash at its end for folders and gitlinks
    mode: int
    raw_oid: bytes
    attributes: dict[bytes, Value]


class _Folder:
    """A tree on the way down."""

    __slots__ = ("entries", "files", "parent", "path", "raw_oid", "written")

    def __init__(
        self,
        path: bytes,
        raw_oid: bytes,
        entries: Iterator[tuple[int, bytes, bytes]],
        files: tuple[AttributeFile, ...],
        parent: "_Folder | None",
    ) -> None:
        self.path = path
        self.raw_oid = raw_oid
        self.entries = entries
        self.files = files
        self.parent = parent
        self.written = not path  # the root has no entry


class _Archiver:
    def __init__(self, repo: Repository, channel: Channel, band: SideBandWriter) -> None:
        self._repo = repo
        self._store: ObjectStore = repo.objects
        self._channel = channel
        self._band = band
        self._config: GitConfig = repo.config
        self._refs: RefSnapshot = repo.shown_refs("uploadpack")
        self._ends = LineEnds.from_config(self._config)
        self._commit: CommitText | None = None
        self.entries = 0

    def run(self, request: ArchiveRequest) -> None:
        formats = [name for name in FORMATS if self._may_send(name)]
        if request.list_formats:
            self._band.data("".join(f"{name}\n" for name in formats).encode())
            return
        if request.format not in formats:
            raise ArchiveRefused(f"Unknown archive format '{request.format}'")
        raw_oid, kind = self._resolve(request.treeish)
        commit, tree = self._peel_to_tree(raw_oid, kind)
        mtime = int(time.time())
        if commit is not None:
            mtime = self._store.commit(commit).date
            self._commit = self._commit_text(commit)
        if request.mtime is not None:
            mtime = _parse_time(request.mtime)
        pathspecs = [_Pathspec(text) for text in request.paths]
        for pathspec in pathspecs:
            if not any(pathspec.matches(path) for path in self._all_paths(tree)):
                raise ArchiveRefused(f"pathspec '{_text(pathspec.given)}' did not match any files")
        oid = None if commit is None else to_hex(commit)
        if request.format == "zip":
            self._write_zip(request, tree, oid, mtime, pathspecs)
        elif request.format == "tar":
            self._write_tar(request, tree, oid, mtime, pathspecs, self._band.data)
        else:
            gzip = zlib.compressobj(request.level, zlib.DEFLATED, 31, 8)
            self._write_tar(
                request, tree, oid, mtime, pathspecs, lambda data: self._band.data(gzip.compress(data))
            )
            self._band.data(gzip.flush())

    def _may_send(self, name: str) -> bool:
        """tar.<format>.remote; tar and zip always (git-archive(1), "CONFIGURATION")."""
        return name in ("tar", "zip") or self._config.get_bool(f"tar.{name}.remote", True)

    # -- which tree?

    def _resolve(self, treeish: bytes) -> tuple[bytes, int]:
        """Return raw oid and type of what is named (git: archive.c parse_treeish_arg())."""
        name, colon, path = treeish.partition(b":")
        if self._config.get_bool("uploadarchive.allowUnreachable", False):
            raw_oid = self._revision(name)
        else:
            found = self._find_ref(name)
            if found is None:
                raise ArchiveRefused(f"no such ref: {_text(name)}")
            raw_oid = to_raw(found)
        if raw_oid is None or raw_oid not in self._store:
            raise ArchiveRefused(f"not a valid object name: {_text(treeish)}")
        kind = self._store.type_of(raw_oid)
        if not colon:
            return raw_oid, kind
        _, tree = self._peel_to_tree(raw_oid, kind)
        at, mode = tree, stat.S_IFDIR
        for part in (part for part in path.split(b"/") if part):
            entry = self._entry_of(at, part) if stat.S_ISDIR(mode) else None
            if entry is None:
                raise ArchiveRefused(f"not a valid object name: {_text(treeish)}")
            mode, at = entry
        if mode == _GITLINK or at not in self._store:
            raise ArchiveRefused(f"not a tree object: {to_hex(at).decode()}")
        return at, self._store.type_of(at)

    def _find_ref(self, name: bytes) -> bytes | None:
        """Return the oid of the ref that git would take (gitrevisions(7), "<refname>")."""
        if name == b"@":
            name = b"HEAD"
        found = [ref.oid for rule in _REF_RULES if (ref := self._refs.get(rule % name)) is not None]
        if len(found) > 1:
            self._band.progress(b"warning: refname '%b' is ambiguous.\n" % name)
        return found[0] if found else None

    def _revision(self, text: bytes) -> bytes | None:
        """A ref or a whole object id, with ~n, ^n, ^{type} behind (gitrevisions(7)); None: no such thing."""
        if len(text) > 1024:
            return None
        match = re.fullmatch(rb"(.*?)((?:~\d{0,9}|\^\d{0,9}|\^\{[a-z]*\})*)", text, re.DOTALL)
        assert match is not None
        name, suffixes = match.groups()
        raw_oid: bytes | None
        if re.fullmatch(rb"[0-9a-f]{%d}" % self._repo.format.hex_len, name):
            raw_oid = to_raw(name)
        else:
            oid = self._find_ref(name)
            raw_oid = to_raw(oid) if oid is not None else None
        for suffix in re.findall(rb"~\d*|\^\{[a-z]*\}|\^\d*", suffixes):
            if raw_oid is None or raw_oid not in self._store:
                return None
            raw_oid = self._follow(raw_oid, suffix)
        return raw_oid

    def _follow(self, raw_oid: bytes, suffix: bytes) -> bytes | None:
        if suffix.startswith(b"^{"):
            wanted = suffix[2:-1]
            while True:
                kind = self._store.type_of(raw_oid)
                if TYPE_NAMES[kind] == wanted or wanted == b"object" or (not wanted and kind != TAG):
                    return raw_oid
                if kind == TAG:
                    raw_oid = parse_tag(self._store.read(raw_oid)[1], self._repo.format)[0]
                elif kind == COMMIT and wanted == b"tree":
                    return self._store.commit(raw_oid).tree
                else:
                    return None
        raw_oid = self._store.peel(raw_oid)[1]
        number = int(suffix[1:] or b"1")
        steps, parent = (number, 1) if suffix.startswith(b"~") else (1, number)
        for _ in range(steps):
            self._channel.check()
            if self._store.type_of(raw_oid) != COMMIT:
                return None
            if parent == 0:
                return raw_oid
            parents = self._store.commit(raw_oid).parents
            if len(parents) < parent:
                return None
            raw_oid = parents[parent - 1]
        return raw_oid

    def _peel_to_tree(self, raw_oid: bytes, kind: int) -> tuple[bytes | None, bytes]:
        """Return the commit, if there is one, and the tree."""
        _, end, kind = self._store.peel(raw_oid) if kind == TAG else ((), raw_oid, kind)
        if kind == COMMIT:
            return end, self._store.commit(end).tree
        if kind == TREE:
            return None, end
        raise ArchiveRefused(f"not a tree object: {to_hex(raw_oid).decode()}")

    def _entry_of(self, tree: bytes, name: bytes) -> tuple[int, bytes] | None:
        for mode, entry, raw_oid in iter_tree(self._read(tree, TREE), self._repo.format.raw_len):
            if entry == name:
                return _canonical(mode), raw_oid
        return None

    def _read(self, raw_oid: bytes, kind: int) -> bytes:
        limit = TREE_LIMIT_BYTES if kind == TREE else BLOB_LIMIT_BYTES
        found, data = self._store.read(raw_oid, limit_bytes=limit)
        if found != kind:
            raise PackError(f"{to_hex(raw_oid).decode()} is no {TYPE_NAMES[kind].decode()}")
        return data

    def _commit_text(self, raw_oid: bytes) -> CommitText:
        commit = self._store.commit(raw_oid)
        return CommitText(
            oid=to_hex(raw_oid),
            tree=to_hex(commit.tree),
            parents=[to_hex(parent) for parent in commit.parents],
            data=self._store.read(raw_oid)[1],
            abbreviate=self._abbreviate,
            decorations=lambda: _decorations(self._refs, to_hex(raw_oid)),
        )

    def _abbreviate(self, oid: bytes) -> bytes:
        """Shorten an id as git would in such a repository (git: object-name.c), by what its packs hold."""
        packs = self._store.packs()
        count = sum(pack.count for pack in packs)
        length = max(7, (count.bit_length() + 1) // 2)
        for pack in packs:
            length = max(length, _shared_digits(pack, to_raw(oid)) + 1)
        return oid[:length]

    # -- the walk

    def _all_paths(self, tree: bytes) -> Iterator[bytes]:
        """Every path in the tree, folders too; attributes don't count (git: archive.c path_exists())."""
        for folder, entry in self._walk(tree, with_attributes=False):
            yield (folder.path if entry is None else entry.path).removesuffix(b"/")

    def _walk(self, tree: bytes, *, with_attributes: bool = True) -> Iterator[tuple[_Folder, _Entry | None]]:
        """Give each folder as it is entered (no entry), and each entry that is no folder."""
        raw_len = self._repo.format.raw_len
        info: tuple[AttributeFile, ...] = ()
        if with_attributes:
            data = self._repo.info_attributes()
            info = (parse(data),) if data else ()
        data = self._read(tree, TREE)
        files = self._attributes(b"", data, (BINARY_MACRO,)) if with_attributes else ()
        stack = [_Folder(b"", tree, iter_tree(data, raw_len), files, None)]
        while stack:
            self._channel.check()
            folder = stack[-1]
            found = next(folder.entries, None)
            if found is None:
                stack.pop()
                continue
            mode, name, raw_oid = found
            mode = _canonical(mode)
            path = folder.path + name
            if stat.S_ISDIR(mode) or mode == _GITLINK:
                path += b"/"
            attributes = attributes_of(path, (*folder.files, *info), _WANTED) if with_attributes else {}
            if not stat.S_ISDIR(mode):
                yield folder, _Entry(path, mode, raw_oid, attributes)
                continue
            if attributes.get(b"export-ignore") is True:
                continue
            if len(stack) >= DEPTH_LIMIT:
                raise ArchiveRefused("exceeded maximum allowed tree depth")
            data = self._read(raw_oid, TREE)
            files = self._attributes(path, data, folder.files) if with_attributes else ()
            child = _Folder(path, raw_oid, iter_tree(data, raw_len), files, folder)
            stack.append(child)
            yield child, None

    def _attributes(
        self, path: bytes, data: bytes, above: tuple[AttributeFile, ...]
    ) -> tuple[AttributeFile, ...]:
        """Add the folder's own .gitattributes to those above it."""
        if b" .gitattributes\0" not in data:
            return above
        for mode, name, raw_oid in iter_tree(data, self._repo.format.raw_len):
            if name == b".gitattributes" and stat.S_ISREG(_canonical(mode)):
                if self._store.size_of(raw_oid)[1] > MAX_FILE_BYTES:
                    return above
                return (*above, parse(self._read(raw_oid, BLOB), path, macros=not path))
        return above

    def _selected(self, tree: bytes, pathspecs: "list[_Pathspec]") -> Iterator[_Entry]:
        """What the archive holds, in order: a folder before the first thing in it, and not without one."""
        for folder, entry in self._walk(tree):
            if entry is None:
                continue
            if pathspecs and not any(pathspec.matches(entry.path) for pathspec in pathspecs):
                continue
            above = []
            at: _Folder | None = folder
            while at is not None and not at.written:
                at.written = True
                above.append(_Entry(at.path, stat.S_IFDIR, at.raw_oid, {}))
                at = at.parent
            yield from reversed(above)
            # git writes the folders of an ignored file, but not an ignored folder
            if entry.attributes.get(b"export-ignore") is not True:
                yield entry

    def _entries(
        self, request: ArchiveRequest, tree: bytes, pathspecs: "list[_Pathspec]"
    ) -> Iterator[_Entry]:
        """The same with the prefix, which may be a folder itself (git: archive.c write_archive_entries())."""
        prefix = request.prefix
        if prefix.endswith(b"/"):
            first = prefix.rstrip(b"/")
            yield self._note(request, _Entry((first or b"") + b"/", 0o40777, tree, {}))
        for entry in self._selected(tree, pathspecs):
            yield self._note(
                request, _Entry(prefix + entry.path, entry.mode, entry.raw_oid, entry.attributes)
            )

    def _note(self, request: ArchiveRequest, entry: _Entry) -> _Entry:
        self.entries += 1
        if request.verbose:
            self._band.progress(entry.path + b"\n")
        return entry

    # -- content

    def _content(self, entry: _Entry) -> bytes:
        """Return a file's content as it is to be in the archive."""
        data = self._read(entry.raw_oid, BLOB)
        if not stat.S_ISREG(entry.mode):
            return data
        data = check_out(data, to_hex(entry.raw_oid), entry.attributes, self._ends)
        if entry.attributes.get(b"export-subst") is True and self._commit is not None:
            data = substitute(data, self._commit)
        return data

    def _write_tar(
        self,
        request: ArchiveRequest,
        tree: bytes,
        oid: bytes | None,
        mtime: int,
        pathspecs: "list[_Pathspec]",
        write: Callable[[bytes], None],
    ) -> None:
        tar = TarWriter(write, umask=self._umask(), mtime=mtime)
        tar.begin(oid)
        for entry in self._entries(request, tree, pathspecs):
            name = to_hex(entry.raw_oid)
            if stat.S_ISLNK(entry.mode):
                tar.entry(entry.path, entry.mode, name, 0, self._content(entry))
            elif not stat.S_ISREG(entry.mode):
                tar.entry(entry.path, entry.mode, name, 0)
            elif not self._stream(tar, entry):
                data = self._content(entry)
                tar.entry(entry.path, entry.mode, name, len(data))
                tar.content(data)
                tar.end_content()
        tar.finish()

    def _stream(self, tar: TarWriter, entry: _Entry) -> bool:
        """Send a big loose file in pieces, as it is stored (git does so too); False: it is not one."""
        kind, size = self._store.size_of(entry.raw_oid)
        if size <= BLOB_LIMIT_BYTES or kind != BLOB:
            return False
        loose = self._store.open_loose(entry.raw_oid)
        if loose is None:
            raise LimitExceeded(f"{_text(entry.path)} has {size} bytes, packed: too large for an archive")
        with loose:
            tar.entry(entry.path, entry.mode, to_hex(entry.raw_oid), size)
            for piece in loose.pieces():
                tar.content(piece)
            tar.end_content()
        return True

    def _umask(self) -> int:
        """tar.umask: a number, or `user` for the server's own (git-config(1))."""
        if "tar.umask" not in self._config:
            return 0o002
        if self._config.get_all("tar.umask")[-1] == "user":
            return _process_umask()
        return self._config.get_int("tar.umask", 0o002)

    def _write_zip(
        self,
        request: ArchiveRequest,
        tree: bytes,
        oid: bytes | None,
        mtime: int,
        pathspecs: "list[_Pathspec]",
    ) -> None:
        try:
            local = time.localtime(mtime)[:6]
        except (OverflowError, OSError, ValueError):
            raise ArchiveRefused(f"timestamp too large for this system: {mtime}") from None
        archive = ZipWriter(self._band.data, level=request.level, mtime=mtime, local=local)
        for entry in self._entries(request, tree, pathspecs):
            if self.entries > ZIP_ENTRIES_LIMIT:
                raise LimitExceeded(f"a zip archive of more than {ZIP_ENTRIES_LIMIT} entries")
            if not entry.path.isascii() and not _is_utf8(entry.path):
                self._band.progress(b"warning: path is not valid UTF-8: %b\n" % entry.path)
            if len(entry.path) > 0xFFFF:
                raise ArchiveRefused(f"path too long ({len(entry.path)} chars)")
            data = b""
            if stat.S_ISREG(entry.mode) or stat.S_ISLNK(entry.mode):
                data = self._content(entry)
            archive.entry(entry.path, entry.mode, data, is_binary=_is_binary(data, entry.attributes))
        archive.finish(oid)


class _Pathspec:
    """A path, or a pattern whose stars pass slashes too (gitglossary(7), "pathspec"); no magic."""

    def __init__(self, given: bytes) -> None:
        self.given = given
        if not given:
            raise ArchiveRefused(
                "empty string is not a valid pathspec. please use . instead if you meant to match all paths"
            )
        if given.startswith(b":"):
            raise ArchiveRefused(f"pathspec magic is not supported in '{_text(given)}'")
        parts: list[bytes] = []
        for part in given.split(b"/"):
            if part == b".." and not parts:
                raise ArchiveRefused(f"{_text(given)}: '{_text(given)}' is outside repository")
            if part == b"..":
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        if given.startswith(b"/"):
            raise ArchiveRefused(f"{_text(given)}: '{_text(given)}' is outside repository")
        self._path = b"/".join(parts)
        self._glob = None if is_literal(self._path) else compile_pattern(self._path, pathname=False)

    def matches(self, path: bytes) -> bool:
        if not self._path or path.startswith(self._path + b"/"):
            return True
        name = path.removesuffix(b"/")
        if name == self._path or self._glob is None or len(name) > LIMIT_BYTES:
            return name == self._path
        return self._glob.fullmatch(name) is not None


def _canonical(mode: int) -> int:
    """See git: object.h canon_mode()."""
    if stat.S_ISREG(mode):
        return stat.S_IFREG | (0o755 if mode & 0o100 else 0o644)
    if stat.S_ISLNK(mode):
        return stat.S_IFLNK
    if stat.S_ISDIR(mode):
        return stat.S_IFDIR
    return _GITLINK


def _is_binary(data: bytes, attributes: dict[bytes, Value]) -> bool:
    """See git: archive-zip.c entry_is_binary(), xdiff-interface.c buffer_is_binary()."""
    diff = attributes.get(b"diff")
    if isinstance(diff, bool):
        return not diff
    return b"\0" in data[:8000]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decorations(refs: RefSnapshot, oid: bytes) -> list[bytes]:
    """Names of what points at a commit, as `%D` has them (git: log-tree.c load_ref_decorations())."""
    names: list[bytes] = []
    head = refs.head
    current = refs.head_target if head is not None and head.oid == oid else None
    if head is not None and head.oid == oid:
        names.append(b"HEAD" if current is None else b"HEAD -> " + current.removeprefix(b"refs/heads/"))
    for ref in reversed(refs.refs):
        if oid not in (ref.oid, ref.peeled) or ref.name == current:
            continue
        if ref.name.startswith(b"refs/tags/"):
            names.append(b"tag: " + ref.name[10:])
        else:
            names.append(ref.name.removeprefix(b"refs/heads/").removeprefix(b"refs/remotes/"))
    return names


def _shared_digits(pack: PackFile, raw_oid: bytes) -> int:
    """How many hex digits an id has in common with another one in the pack."""
    low, high = 0, pack.count
    while low < high:
        middle = (low + high) // 2
        if pack.name_at(middle) < raw_oid:
            low = middle + 1
        else:
            high = middle
    most = 0
    oid = to_hex(raw_oid)
    for position in (low - 1, low, low + 1):
        if 0 <= position < pack.count and (other := to_hex(pack.name_at(position))) != oid:
            most = max(most, next(at for at in range(len(oid)) if oid[at] != other[at]))
    return most


def _parse_time(text: bytes) -> int:
    """Read --mtime: seconds with "@" or a zone, ISO 8601, RFC 2822. git's approxidate knows more."""
    value = text.decode("ascii", "replace").strip()
    match = re.fullmatch(r"@?(\d{1,12})(?: [+-]\d{4})?", value)
    if match is not None and (value.startswith("@") or " " in value or len(match[1]) >= 9):
        return int(match[1])
    try:
        when = datetime.fromisoformat(re.sub(r"^(\S+) (\S+) ([+-]\d{4})$", r"\1T\2\3", value))
        return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    except ValueError:
        pass
    try:
        return int(email.utils.parsedate_to_datetime(value).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        raise ArchiveRefused(f"--mtime={_text(text)} is no time that is understood here") from None


def _process_umask() -> int:
    """The process's umask, which can't be looked at without being set."""
    for line in Path("/proc/self/status").read_bytes().splitlines():
        if line.startswith(b"Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
