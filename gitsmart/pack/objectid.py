"""Object ids of pushed objects: SHA-1 with collision detection, or plain, or SHA-256.

SHA-1 collisions can be made (shattered.io, sha-mbles.github.io), so git hashes with sha1dc, which recognises
the blocks that such attacks need. The hasher that detects is libgit2's, out of the pygit2 wheel: its public
`git_odb_hash` and `git_odb_hashfile` by ctypes (0.9 us a call, 0.7 GB/s, the GIL released). Detection that
was asked for and is not to be had is an error at start, never silence: see
docs/decisions/0003-collision-detection.md.

Not done here: comparing with objects that are already there (indexer.py does).
"""

import ctypes
import functools
import hashlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gitsmart.errors import ConfigError, PackError
from gitsmart.native import ingest
from gitsmart.pack.objects import BLOB, TYPE_NAMES, ObjectFormat

__all__ = ["ObjectHasher", "require_collision_detection"]

_FEATURE_SHA1: Final = 1 << 10  # libgit2: include/git2/common.h, git_feature_t
_DETECTING_BACKENDS: Final = {b"builtin"}  # libgit2: cmake/SelectHashes.cmake, sha1dc
_PIECE: Final = 1 << 20


class _Error(ctypes.Structure):
    _fields_ = (("message", ctypes.c_char_p), ("klass", ctypes.c_int))


@dataclass(frozen=True, slots=True)
class _Library:
    hash_bytes: Any  # int git_odb_hash(git_oid *, const void *, size_t, git_object_t)
    hash_file: Any  # int git_odb_hashfile(git_oid *, const char *, git_object_t)
    last_error: Any


@functools.cache
def _library() -> _Library | str:
    """Give libgit2's hasher, after checking that it works and detects; else the reason why there is none."""
    try:
        import pygit2
        from pygit2 import _pygit2
    except ImportError as error:
        return f"pygit2 can't be imported ({error})"
    try:
        # dlsym on the extension module finds the symbols of the libgit2 that it is linked to.
        shared = ctypes.CDLL(_pygit2.__file__)
        hash_bytes, hash_file = shared.git_odb_hash, shared.git_odb_hashfile
        last_error, backend = shared.git_error_last, shared.git_libgit2_feature_backend
    except (OSError, AttributeError) as error:
        return f"libgit2 {pygit2.LIBGIT2_VERSION} lacks a function ({error})"
    hash_bytes.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
    hash_file.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
    last_error.restype = ctypes.POINTER(_Error)
    last_error.argtypes = ()
    backend.argtypes = (ctypes.c_int,)
    backend.restype = ctypes.c_char_p
    name = backend(_FEATURE_SHA1)
    if name not in _DETECTING_BACKENDS:
        return f"libgit2 {pygit2.LIBGIT2_VERSION} hashes with {name!r}, which does not detect collisions"
    # The empty blob, and one longer than a block: a library with another signature can't give these.
    out = ctypes.create_string_buffer(64)
    for data in (b"", bytes(range(256))):
        expected = hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).digest()
        if hash_bytes(out, data, len(data), BLOB) != 0 or out.raw[:20] != expected:
            return f"libgit2 {pygit2.LIBGIT2_VERSION} gave a wrong object id"
    return _Library(hash_bytes, hash_file, last_error)


def require_collision_detection() -> None:
    """Check that SHA-1 collisions can be detected here: called at start when the configuration asks for it.

    Raises: ConfigError with the reason when they can't.
    """
    library = _library()
    if isinstance(library, str):
        raise ConfigError(f"SHA-1 collision detection is not available: {library}")


@functools.cache
def _openssl(is_sha1: bool) -> tuple[int, int, int, int] | None:
    """Find OpenSSL's hash functions in the library that Python's hashlib is linked to."""
    try:
        shared = ctypes.CDLL(importlib.import_module("_hashlib").__file__)
        found = [shared[f"{'SHA1' if is_sha1 else 'SHA256'}_{step}"] for step in ("Init", "Update", "Final")]
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    first, second, third = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in found)
    config = ingest.Config(raw_len=20 if is_sha1 else 32, hash_kind=1 if is_sha1 else 2)
    config.hash_functions[:] = first, second, third
    # The empty blob, and one longer than a block: functions with another signature can't give these.
    for data in (b"", bytes(range(256))):
        header = b"blob %d\0" % len(data)
        new = hashlib.sha1 if is_sha1 else hashlib.sha256
        if ingest.hash_object(config, BLOB, data) != new(header + data, usedforsecurity=False).digest():
            return None
    return config.hash_kind, first, second, third


class ObjectHasher:
    """Compute object ids of one format. One thread's own: it keeps the buffer that results come in."""

    __slots__ = ("_library", "_out", "_sha1", "detects")

    def __init__(self, fmt: ObjectFormat, *, detect_collisions: bool = True) -> None:
        """Prepare; SHA-256 has no collisions to detect.

        Raises: ConfigError when collisions of SHA-1 are to be detected and it can't be done.
        """
        self._sha1 = fmt.raw_len == 20
        self.detects: Final = detect_collisions and self._sha1
        self._library: _Library | None = None
        if self.detects:
            require_collision_detection()
            library = _library()
            assert isinstance(library, _Library)
            self._library = library
        self._out = ctypes.create_string_buffer(64)

    def object_id(self, type_number: int, data: bytes) -> bytes:
        """Give the raw oid of an object held in memory.

        Raises: PackError when its bytes are those of a SHA-1 collision attack.
        """
        if self._library is not None:
            if self._library.hash_bytes(self._out, data, len(data), type_number) != 0:
                raise self._failure(self._library)
            return self._out.raw[:20]
        header = b"%b %d\0" % (TYPE_NAMES[type_number], len(data))
        new = hashlib.sha1 if self._sha1 else hashlib.sha256
        if len(data) < 4096:  # one call is faster below, measured: design/packs.md A.2
            return new(header + data, usedforsecurity=False).digest()
        state = new(header, usedforsecurity=False)
        state.update(data)
        return state.digest()

    def file_id(self, type_number: int, path: Path) -> bytes:
        """Give the raw oid of an object whose bytes are a file's, never holding more than 1 MiB of it.

        Raises: PackError as `object_id`; OSError when the file can't be read.
        """
        if self._library is not None:
            if self._library.hash_file(self._out, os.fsencode(path), type_number) != 0:
                raise self._failure(self._library)
            return self._out.raw[:20]
        with path.open("rb", buffering=0) as file:
            header = b"%b %d\0" % (TYPE_NAMES[type_number], os.fstat(file.fileno()).st_size)
            state = (hashlib.sha1 if self._sha1 else hashlib.sha256)(header, usedforsecurity=False)
            while piece := file.read(_PIECE):
                state.update(piece)
        return state.digest()

    def functions(self) -> tuple[int, int, int, int] | None:
        """Give the addresses of C functions that hash the same, for native/ingest.c: its `hash_kind`, and one
        to three functions. None when there are none.
        """
        if self._library is not None:
            address = ctypes.cast(self._library.hash_bytes, ctypes.c_void_p).value
            return None if address is None else (0, address, 0, 0)
        return _openssl(self._sha1)

    def failure(self) -> PackError | OSError:
        """Give the reason why `functions` failed in this thread."""
        if self._library is None:
            return OSError("hashing failed")
        return self._failure(self._library)

    @staticmethod
    def _failure(library: _Library) -> PackError | OSError:
        error = library.last_error()
        message: bytes = (error.contents.message if error else None) or b"unknown error"
        if b"collision" in message.lower():
            return PackError("SHA-1 collision attack detected")
        return OSError(f"libgit2 can't hash: {message.decode('utf-8', 'replace')}")
