"""The optional native module: a few hot loops in C, called through ctypes. Everything works without it.

    gitsmart/native/*.c --build.py--> _native.so --ctypes--> thin typed wrappers, one module for each C file
    caller:  if native.available: delta.apply(...)    else the same in Python

`available` is asked at each call, not at import, so that tests run both ways in one process. A library made
from other sources than those beside it is refused: a stale one would give wrong answers. `GITSMART_NATIVE=0`
switches it off; as a path it names another library made from the same sources (tests/native/sanitize.py).
The rules for the C code are in docs/decisions/0006.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gitsmart.native.build import LIBRARY, digest

__all__ = [
    "MALFORMED",
    "NO_MEMORY",
    "OK",
    "TOO_SMALL",
    "Function",
    "address_of",
    "available",
    "describe",
    "function",
    "missing",
    "new_bytes",
]

OK, MALFORMED, TOO_SMALL, NO_MEMORY = 0, -1, -2, -3
"""What C functions return (gitsmart.h)."""

_ABI: Final = 1

Function = Callable[..., Any]


def _load() -> "tuple[ctypes.CDLL | None, ctypes.PyDLL | None, str]":
    """Load the library twice over: calls that let other threads run meanwhile, and calls that don't."""
    asked = os.environ.get("GITSMART_NATIVE", "")
    if asked == "0":
        return None, None, "switched off by GITSMART_NATIVE=0"
    library = Path(asked) if asked.startswith("/") else LIBRARY
    if not library.exists():
        return None, None, "not built (no C compiler at installation?)"
    try:
        free, held = ctypes.CDLL(str(library)), ctypes.PyDLL(str(library))
        free.gs_sources.restype = ctypes.c_char_p
        made_from, abi = free.gs_sources().decode(), free.gs_abi()
    except (OSError, AttributeError) as error:
        return None, None, f"can't be loaded: {error}"
    if abi != _ABI or digest() not in (None, made_from):
        return None, None, f"{library.name} is made from other sources: run make native"
    return free, held, ""


_free, _held, missing = _load()
"""`missing` says why there is none, "" when there is one."""

available: bool = _free is not None
"""Whether the functions below can be called. Ask when you call, as `native.available`: tests change it."""


def describe() -> str:
    """Say for people whether there is a native module."""
    return f"without native module: {missing}" if missing else "with native module"


def function(name: str, result: Any, *arguments: Any, long: bool = False) -> Function:
    """Return a function of the library, typed; without a library, one that must not be called.

    Args:
        long: other threads run during the call. For calls that take more than some 20 us: a thread that lets
        go of the interpreter may wait 5 ms to have it back, which is no price for a call of one microsecond.
    """
    library: ctypes.CDLL | None = _free if long else _held
    if library is None:
        return _absent
    found = library[name]
    found.restype = result
    found.argtypes = arguments
    return found


def _absent(*arguments: object) -> Any:
    raise AssertionError("called without a native module")


# -- memory of Python's objects

_allocate: Function = ctypes.pythonapi.PyBytes_FromStringAndSize
ctypes.pythonapi.PyBytes_FromStringAndSize.restype = ctypes.py_object
ctypes.pythonapi.PyBytes_FromStringAndSize.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)


def new_bytes(size: int) -> bytes:
    """Return a bytes object of any content, for a C function to write to before anybody else sees it.

    Raises: MemoryError.
    """
    made: bytes = _allocate(None, size)
    return made


class _Buffer(ctypes.Structure):
    """Py_buffer (Python's C API, "Buffer Protocol"): only the first three fields are read here."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("more", ctypes.c_ssize_t * 12),
    )


_get_buffer: Function = ctypes.pythonapi.PyObject_GetBuffer
ctypes.pythonapi.PyObject_GetBuffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
ctypes.pythonapi.PyObject_GetBuffer.restype = ctypes.c_int
_release_buffer: Function = ctypes.pythonapi.PyBuffer_Release
ctypes.pythonapi.PyBuffer_Release.argtypes = (ctypes.POINTER(_Buffer),)
ctypes.pythonapi.PyBuffer_Release.restype = None


def address_of(data: "bytes | bytearray | memoryview") -> int:
    """Return where contiguous bytes lie in memory: valid as long as the caller holds `data`, and does not
    resize it. About 2 us; `bytes` can be handed to a c_char_p argument as they are.

    Raises: BufferError when they are not contiguous.
    """
    buffer = _Buffer()
    _get_buffer(data, ctypes.byref(buffer), 0)
    address = buffer.buf or 0
    _release_buffer(ctypes.byref(buffer))
    return address
