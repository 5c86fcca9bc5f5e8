"""The frame: built, found, refused when stale, switched off; memory handed to C."""

import subprocess
import sys
from ctypes import c_char_p, c_size_t, c_void_p, string_at
from pathlib import Path

import pytest

from gitsmart import native
from gitsmart.native import build

HERE = Path(build.__file__).parent


def describe(environ: dict[str, str], cwd: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", "from gitsmart import native; print(native.available, native.describe())"],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout.strip()


@pytest.fixture
def compiler() -> None:
    try:
        subprocess.run(["cc", "--version"], capture_output=True, check=True)
    except OSError:
        pytest.skip("no C compiler")


@pytest.fixture
def tree(tmp_path: Path, compiler: None) -> Path:
    """The package `gitsmart.native` alone, with sources."""
    package = tmp_path / "tree" / "gitsmart" / "native"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    for path in HERE.iterdir():
        if path.suffix in (".py", ".c", ".h"):
            (package / path.name).write_bytes(path.read_bytes())
    return tmp_path / "tree"


def make(tree: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(tree / "gitsmart/native/build.py")],
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        encoding="utf-8",
    )


def test_built_once_and_again_when_a_source_changes(tree: Path) -> None:
    assert describe({}, tree).startswith("False without native module: not built")
    assert make(tree).stdout.startswith("built ")
    assert make(tree).stdout == ""
    assert describe({}, tree) == "True with native module"
    with (tree / "gitsmart/native/delta.c").open("a") as file:
        file.write("/* changed */\n")
    stale = describe({}, tree)
    assert stale == "False without native module: _native.so is made from other sources: run make native"
    assert make(tree).stdout.startswith("built ")
    assert describe({}, tree) == "True with native module"
    assert [path.name for path in (tree / "gitsmart/native").glob("*.tmp*")] == []


def test_switched_off(tree: Path) -> None:
    make(tree)
    assert describe({"GITSMART_NATIVE": "0"}, tree).endswith("switched off by GITSMART_NATIVE=0")


def test_broken_library_is_refused(tree: Path) -> None:
    (tree / "gitsmart/native/_native.so").write_bytes(b"\x7fELF is not enough")
    assert describe({}, tree).startswith("False without native module: can't be loaded: ")


def test_without_compiler_there_is_one_clear_line(tree: Path) -> None:
    for compiler in ("/nowhere/cc", "false"):
        result = make(tree, CC=compiler)
        assert result.returncode == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("the native module can't be built, gitsmart works without it: ")


def test_without_sources_as_in_a_wheel_the_library_is_taken(tree: Path) -> None:
    make(tree)
    for path in [*tree.rglob("*.c"), *tree.rglob("*.h")]:
        path.unlink()
    assert describe({}, tree) == "True with native module"
    assert make(tree).returncode == 1


def test_addresses_are_those_of_the_bytes() -> None:
    data = bytes(range(200))
    for view in (
        data,
        bytearray(data),
        memoryview(data),
        memoryview(data)[50:120],
        memoryview(bytearray(data))[7:],
    ):
        assert string_at(native.address_of(view), len(view)) == bytes(view)
    assert native.address_of(b"") != 0
    with pytest.raises(BufferError):
        native.address_of(memoryview(data)[::2])


def test_new_bytes_are_of_their_size() -> None:
    assert [len(native.new_bytes(size)) for size in (0, 1, 2, 1000)] == [0, 1, 2, 1000]
    assert native.new_bytes(1) is not native.new_bytes(1)
    with pytest.raises(MemoryError):
        native.new_bytes(1 << 62)


def test_absent_functions_must_not_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_held", None)
    function = native.function("gs_anything", c_size_t, c_char_p, c_void_p)
    with pytest.raises(AssertionError, match="without a native module"):
        function(b"", 0)
