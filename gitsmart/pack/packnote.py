"""What was found out about a pack, kept for all processes: `<objects>/info/gitsmart/pack-<name>.<suffix>`.

Never needed: where it can't be kept, each process finds it out for itself. So it isn't synced, and whoever
reads it has to check it. Only in an objects directory with a folder `info`.
"""

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

__all__ = ["note_path", "write_note"]


def note_path(pack: Path, suffix: str) -> Path:
    """Return where the note about the pack at `pack` is."""
    return pack.parent.parent / "info" / "gitsmart" / f"{pack.stem}.{suffix}"


def write_note(pack: Path, suffix: str, parts: Iterable[bytes | memoryview]) -> bool:
    """Keep a note, in one step, and drop those of packs that are gone. False: it could not be kept."""
    place = note_path(pack, suffix)
    temporary = place.with_name(f"tmp-{os.getpid()}-{threading.get_ident()}-{place.name}")
    try:
        if not pack.exists():
            return False
        place.parent.mkdir(exist_ok=True)
        with open(temporary, "xb") as file:
            file.writelines(parts)
            os.fchmod(file.fileno(), 0o444)
        temporary.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False  # read-only, or full
    for other in place.parent.glob(f"pack-*.{suffix}"):
        if not (pack.parent / f"{other.stem}.pack").exists():
            with contextlib.suppress(OSError):
                other.unlink()
    return True
