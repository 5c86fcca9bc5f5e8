"""Zip archives, byte for byte as `git archive --format=zip` writes them.

    archive  =  *( local-header path extra content ) *( directory-header path extra ) [ zip64-end ] end commit

Every entry has an extended timestamp; zip64 fields come only where they must. APPNOTE.TXT 4.3; git:
archive-zip.c.
Memory: the directory, some 100 bytes and two paths an entry, and one entry's content with its deflated form.
"""

import struct
import zlib
from collections.abc import Callable

__all__ = ["ZipWriter"]

# of a mode as in a tree
_TYPE, _DIRECTORY, _SYMLINK, _GITLINK = 0o170000, 0o040000, 0o120000, 0o160000
_UTF8 = 1 << 11
_STORE, _DEFLATE = 0, 8
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF


class ZipWriter:
    """Writes one archive: `entry` for each entry, then `finish`.

    Args:
        write: called with pieces of any size.
        level: of zlib, -1 for its own choice; 0 stores.
        mtime: of all entries, seconds since 1970.
        local: that time by the server's clock: year, month, day, hour, minute, second.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        level: int,
        mtime: int,
        local: tuple[int, int, int, int, int, int],
    ) -> None:
        self._write = write
        self._level = level
        year, month, day, hour, minute, second = local
        self._time = (second // 2 + minute * 32 + hour * 2048) & _MAX16
        self._date = (day + month * 32 + (year - 1980) * 512) & _MAX16
        self._extra = struct.pack("<HHBI", 0x5455, 5, 1, mtime & _MAX32)
        self._offset = 0
        self._directory = bytearray()
        self._entries = 0
        self._creator = 0

    def entry(self, path: bytes, mode: int, content: bytes, *, is_binary: bool) -> None:
        """Write an entry whole.

        Args:
            path: at most 65535 bytes; with a slash at its end for a directory or a gitlink.
            mode: as in a tree.
            content: of a file, or a symlink's target.
            is_binary: only noted in the archive.
        """
        offset = self._offset
        flags = 0
        if not path.isascii():
            try:
                path.decode("utf-8")
                flags = _UTF8
            except UnicodeDecodeError:
                pass
        creator, method, attributes = 0, _STORE, 0
        packed = content
        crc = zlib.crc32(content)
        if mode & _TYPE in (_DIRECTORY, _GITLINK):
            attributes = 16
            # git leaves "is it binary?" at "don't know", and writes that as 0
            is_binary = True
        elif mode & _TYPE == _SYMLINK:
            creator, attributes = 0x0317, (mode | 0o777) << 16
        else:
            if mode & 0o111:
                creator, attributes = 0x0317, mode << 16
            if self._level != 0 and content:
                deflated = _deflate(content, self._level)
                if len(deflated) < len(content):
                    packed, method = deflated, _DEFLATE
        self._creator = max(self._creator, creator)
        size, packed_size = len(content), len(packed)
        is_large = size > _MAX32 or packed_size > _MAX32
        version = 45 if is_large else 10
        sizes = (_MAX32, _MAX32) if is_large else (packed_size, size)
        extra = self._extra
        if is_large:
            extra += struct.pack("<HHQQ", 1, 16, size, packed_size)
        self._put(
            struct.pack(
                "<IHHHHHIIIHH",
                0x04034B50,
                version,
                flags,
                method,
                self._time,
                self._date,
                crc,
                *sizes,
                len(path),
                len(extra),
            )
        )
        self._put(path + extra)
        self._put(packed)
        zip64 = b""
        if packed_size > _MAX32 or size > _MAX32 or offset > _MAX32:
            values = [value for value in (size, packed_size, offset) if value >= _MAX32]
            zip64 = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
        self._directory += struct.pack(
            "<IHHHHHHIIIHHHHHII",
            0x02014B50,
            creator,
            version,
            flags,
            method,
            self._time,
            self._date,
            crc,
            min(packed_size, _MAX32),
            min(size, _MAX32),
            len(path),
            len(self._extra) + len(zip64),
            0,
            0,
            not is_binary,
            attributes,
            min(offset, _MAX32),
        )
        self._directory += path + self._extra + zip64
        self._entries += 1

    def finish(self, commit: bytes | None) -> None:
        """Write the directory; `commit` (hex), if it is one, becomes the archive's comment."""
        offset, size = self._offset, len(self._directory)
        self._put(bytes(self._directory))
        if self._entries > _MAX16 or offset > _MAX32:
            self._put(
                struct.pack(
                    "<IQHHIIQQQQIIQI",
                    0x06064B50,
                    44,
                    self._creator,
                    45,
                    0,
                    0,
                    self._entries,
                    self._entries,
                    size,
                    offset,
                    0x07064B50,
                    0,
                    offset + size,
                    1,
                )
            )
        entries = min(self._entries, _MAX16)
        comment = commit or b""
        self._put(
            struct.pack(
                "<IHHHHIIH",
                0x06054B50,
                0,
                0,
                entries,
                entries,
                size & _MAX32,
                min(offset, _MAX32),
                len(comment),
            )
        )
        self._put(comment)

    def _put(self, data: bytes) -> None:
        if data:
            self._offset += len(data)
            self._write(data)


def _deflate(content: bytes, level: int) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15, 8)
    return deflater.compress(content) + deflater.flush()
