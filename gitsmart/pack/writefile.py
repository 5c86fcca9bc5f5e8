"""Files beside packs and objects that are written whole: bitmaps, commit-graphs, multi-pack-indexes."""

import os
import threading
from pathlib import Path

__all__ = ["write_file"]


def write_file(path: Path, data: bytes, *, temporary: Path | None = None) -> None:
    """Put a read-only file in place, in one step, durably.

    Args:
        temporary: what it is called until then, such as the name of a lock that git knows.

    Raises:
        FileExistsError: there is one of that name.
        OSError: it can't be written.
    """
    temporary = temporary or path.with_name(f"tmp_{os.getpid()}_{threading.get_ident()}_{path.name}")
    file = open(temporary, "xb")  # noqa: SIM115 - so that another's file is not removed
    try:
        with file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
