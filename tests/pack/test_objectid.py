"""Object ids: right for each format and way, and attacks on SHA-1 are detected or not promised to be.

What is tested of the detection: libgit2 says that its SHA-1 is the detecting one; its internal hash function,
which git_odb_hash calls, refuses the SHAttered blocks (reached through the wheel's symbol table,
as it is not exported); and a refusal becomes PackError. What can't be tested is a whole git object that
collides: none is known, since the published collisions begin at a file's first byte, and what is hashed of an
object begins with its header.
"""

import ctypes
import hashlib
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import ConfigError, PackError
from gitsmart.pack import objectid
from gitsmart.pack.objectid import ObjectHasher, require_collision_detection
from gitsmart.pack.objects import BLOB, COMMIT, SHA1, SHA256, TAG, TREE, ObjectFormat, object_header

# The first 320 bytes of shattered.io's shattered-1.pdf: the prefix and both near-collision blocks
SHATTERED = bytes.fromhex(
    "255044462d312e330a25e2e3cfd30a0a0a312030206f626a0a3c3c2f57696474682032203020522f4865696768742033"
    "203020522f547970652034203020522f537562747970652035203020522f46696c7465722036203020522f436f6c6f72"
    "53706163652037203020522f4c656e6774682038203020522f42697473506572436f6d706f6e656e7420383e3e0a7374"
    "7265616d0affd8fffe00245348412d3120697320646561642121212121852fec092339759c39b1a1c63c4c97e1fffe01"
    "7346dc9166b67e118f029ab621b2560ff9ca67cca8c7f85ba84c79030c2b3de218f86db3a90901d5df45c14f26fedfb3"
    "dc38e96ac22fe7bd728f0e45bce046d23c570feb141398bb552ef5a0a82be331fea48037b8b5d71f0e332edf93ac3500"
    "eb4ddc0decc1a864790c782c76215660dd309791d06bd0af3f98cda4bc4629b1"
)

HASHERS = [
    pytest.param(SHA1, True, id="sha1 detecting"),
    pytest.param(SHA1, False, id="sha1"),
    pytest.param(SHA256, True, id="sha256"),
    pytest.param(SHA256, False, id="sha256, nothing asked"),
]


def expected(fmt: ObjectFormat, kind: int, data: bytes) -> bytes:
    return hashlib.new(fmt.name.decode(), object_header(kind, len(data)) + data).digest()


@pytest.mark.parametrize(("fmt", "detect"), HASHERS)
@pytest.mark.parametrize("size", [0, 1, 55, 56, 64, 4095, 4096, 100_000])
def test_object_id(fmt: ObjectFormat, detect: bool, size: int, tmp_path: Path) -> None:
    hasher = ObjectHasher(fmt, detect_collisions=detect)
    data = (b"\0\xff" * size)[:size]
    path = tmp_path / "f\xe9"
    path.write_bytes(data)
    for kind in (COMMIT, TREE, BLOB, TAG):
        assert hasher.object_id(kind, data) == expected(fmt, kind, data)
        assert hasher.file_id(kind, path) == expected(fmt, kind, data)


def test_detects_says_what_is_done() -> None:
    assert ObjectHasher(SHA1).detects
    assert not ObjectHasher(SHA1, detect_collisions=False).detects
    assert not ObjectHasher(SHA256).detects


@given(st.binary(max_size=300), st.sampled_from([COMMIT, TREE, BLOB, TAG]))
def test_detecting_and_plain_agree(data: bytes, kind: int) -> None:
    assert ObjectHasher(SHA1).object_id(kind, data) == expected(SHA1, kind, data)


@pytest.mark.parametrize(("fmt", "detect"), HASHERS)
def test_missing_file(fmt: ObjectFormat, detect: bool, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        ObjectHasher(fmt, detect_collisions=detect).file_id(BLOB, tmp_path / "none")


def test_shattered_prefix_in_a_blob_is_an_ordinary_object() -> None:
    # Shifted by the header, the blocks do not collide: neither does git refuse to store the PDF.
    assert ObjectHasher(SHA1).object_id(BLOB, SHATTERED) == expected(SHA1, BLOB, SHATTERED)


def internal_function(name: str) -> "Any | None":
    """Find a local function of the libgit2 that pygit2 has loaded, if the library has its symbol table."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    loaded = {fields[5]: int(fields[0].split("-")[0], 16) for fields in reversed(maps) if len(fields) > 5}
    path = next((path for path in loaded if "libgit2" in path), None)
    if path is None:
        return None
    elf = Path(path).read_bytes()
    if elf[:6] != b"\x7fELF\x02\x01":
        return None
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + k * size) for k in range(count)]
    for section in sections:
        if section[1] == 2:  # SHT_SYMTAB
            strings = sections[section[6]][4]
            for at in range(section[4], section[4] + section[5], 24):
                at_name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", elf, at)
                end = elf.index(b"\0", strings + at_name)
                if elf[strings + at_name : end].decode() == name:
                    return ctypes.CFUNCTYPE(
                        ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
                    )(loaded[path] + value)
    return None


def test_shattered_blocks_are_detected_by_the_library() -> None:
    require_collision_detection()
    hash_buf = internal_function("git_hash_buf")  # libgit2: src/util/hash.c
    if hash_buf is None:
        pytest.skip("this libgit2 has no symbol table: its hasher can't be reached with raw bytes")
    library = objectid._library()
    assert isinstance(library, objectid._Library)
    out = ctypes.create_string_buffer(32)
    harmless = b"\0" + SHATTERED[1:]
    assert hash_buf(out, harmless, len(harmless), 1) == 0
    assert out.raw[:20] == hashlib.sha1(harmless).digest()
    assert hash_buf(out, SHATTERED, len(SHATTERED), 1) != 0
    error = ObjectHasher._failure(library)
    assert isinstance(error, PackError)
    assert str(error) == "SHA-1 collision attack detected"


def library_that_refuses(message: bytes) -> objectid._Library:
    error = SimpleNamespace(contents=SimpleNamespace(message=message))
    return objectid._Library(lambda *_: -1, lambda *_: -1, lambda: error)


def test_refusal_is_pack_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(objectid, "_library", lambda: library_that_refuses(b"SHA1 collision attack detected"))
    hasher = ObjectHasher(SHA1)
    with pytest.raises(PackError, match="collision attack detected"):
        hasher.object_id(BLOB, b"x")
    with pytest.raises(PackError, match="collision attack detected"):
        hasher.file_id(BLOB, tmp_path / "x")


def test_other_failures_are_not_taken_for_collisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectid, "_library", lambda: library_that_refuses(b"out of memory"))
    with pytest.raises(OSError, match="out of memory"):
        ObjectHasher(SHA1).object_id(BLOB, b"x")


def test_unavailable_detection_is_an_error_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectid, "_library", lambda: "pygit2 can't be imported (gone)")
    with pytest.raises(ConfigError, match=r"detection is not available: pygit2 can't be imported"):
        require_collision_detection()
    with pytest.raises(ConfigError, match="not available"):
        ObjectHasher(SHA1)
    # What was not asked for is not missed.
    ObjectHasher(SHA1, detect_collisions=False)
    ObjectHasher(SHA256)


def test_library_without_detection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectid, "_DETECTING_BACKENDS", {b"another"})
    reason = objectid._library.__wrapped__()
    assert isinstance(reason, str)
    assert "does not detect" in reason


def test_missing_pygit2_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pygit2", None)
    reason = objectid._library.__wrapped__()
    assert isinstance(reason, str)
    assert reason.startswith("pygit2 can't be imported")
