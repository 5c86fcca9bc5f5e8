"""Compile the C sources beside this file into one shared object, which `gitsmart.native` loads.

    python gitsmart/native/build.py [--force] [OUTPUT]

Needs a C compiler (`$CC`, or cc) and nothing else: no Python.h, no setuptools. `make` and setup.py run it,
and so can whoever works in a tree: nothing is done when the library is up to date. Status 1: it can't be
built.

The library carries a digest of sources and flags, so that a stale one is noticed when it is loaded.
"""

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

__all__ = ["LIBRARY", "build", "digest"]

HERE = Path(__file__).parent
LIBRARY = HERE / "_native.so"

# Nothing here is for one CPU: code that needs more than the architecture's baseline carries a target
# attribute, and asks the CPU first.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-g0",
    "-fPIC",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-shared",
)


def sources() -> list[Path]:
    """Return the C files to compile; none in an installed wheel that has no sources."""
    return sorted(HERE.glob("*.c"))


def digest() -> str | None:
    """Return what identifies the sources, headers and flags; None when there are no sources here."""
    files = [*sources(), *sorted(HERE.glob("*.h"))]
    if not files:
        return None
    found = hashlib.sha256(" ".join(FLAGS).encode())
    for path in files:
        found.update(b"\0%b\0" % path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def build(output: Path = LIBRARY, *, force: bool = False) -> bool:
    """Compile, and put the library in place in one step. Returns whether there was anything to do.

    Raises:
        OSError: there is no compiler, or no room.
        subprocess.CalledProcessError: the compiler failed; it has said why on stderr.
    """
    wanted = digest()
    if wanted is None:
        raise FileNotFoundError("there are no C sources here")
    if not force and output.exists() and wanted.encode() in output.read_bytes():
        return False
    compiler = shlex.split(os.environ.get("CC") or "cc")
    temporary = output.with_name(f"{output.name}.tmp{os.getpid()}")
    command = [
        *compiler,
        *FLAGS,
        *shlex.split(os.environ.get("CFLAGS", "")),
        f'-DGITSMART_SOURCES="{wanted}"',
        "-o",
        str(temporary),
        *map(str, sources()),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(command, check=True)
        # Whoever has the old one mapped keeps it.
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def main(arguments: list[str]) -> int:
    """Run as a script."""
    force = "--force" in arguments
    outputs = [argument for argument in arguments if argument != "--force"]
    output = Path(outputs[0]) if outputs else LIBRARY
    try:
        if build(output, force=force):
            print(f"built {output}")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the native module can't be built, gitsmart works without it: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
