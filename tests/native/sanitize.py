"""Run tests/native with the native module under AddressSanitizer and UBSan: make native-asan.

    python tests/native/sanitize.py [EXAMPLES] [pytest arguments]

EXAMPLES (default 300: a minute or two) is how many inputs Hypothesis tries for each property. Each test is
a line as it ends. Arguments say which tests instead of tests/native: those of tests/pack run the C code
too. Python's own allocator is switched off, so that a byte read or written beside a bytes object ends the
run. Needs gcc or clang with their sanitizers.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main(arguments: list[str]) -> int:
    """Build, run, return pytest's status."""
    examples = arguments.pop(0) if arguments and arguments[0].isdigit() else "300"
    compiler = os.environ.get("CC", "cc")
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "_native.so"
        subprocess.run(
            [sys.executable, ROOT / "gitsmart/native/build.py", library],
            check=True,
            env={**os.environ, "CFLAGS": "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"},
        )
        env = {
            **os.environ,
            "GITSMART_NATIVE": str(library),
            "GITSMART_EXAMPLES": examples,
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "PYTHONMALLOC": "malloc",
        }
        # Without the library every test would be skipped, and all be well
        loads = "from gitsmart import native; assert native.available, native.missing"
        subprocess.run([sys.executable, "-c", loads], check=True, cwd=ROOT, env=env)
        command = [sys.executable, "-m", "pytest", "-v", "--durations=10", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "--timeout=3600", *(arguments or [str(HERE)])], cwd=ROOT, env=env
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
