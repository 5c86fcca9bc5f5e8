"""Imports only point down. This is the exact table; docs/architecture.md is the same in words.

A new arrow is a design decision: change the table and the page in the same commit. The test walks the syntax
tree of every module, so an import inside a function counts too. It also confines third-party and marker
modules, so that Tornado, threads or dulwich can't leak into layers that must not know them.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gitsmart"

# part -> the other parts of gitsmart that it may import
MAY_IMPORT: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "native": set(),
    "wildmatch": set(),
    "wire": {"errors", "wildmatch"},
    "pack": {"errors", "native", "wildmatch"},
    "access": {"errors"},
    "config": {"errors"},
    "telemetry": {"errors"},
    "repo": {"errors", "wildmatch", "pack"},
    "service": {"errors", "wildmatch", "wire", "pack", "repo", "access", "telemetry", "_version"},
    "workers": {"errors", "telemetry"},
    "jobs": {"errors", "telemetry", "workers"},
    "supervisor": {"errors", "telemetry"},
    "httpd": {
        "errors",
        "wire",
        "pack",
        "repo",
        "access",
        "service",
        "telemetry",
        "workers",
        "jobs",
        "config",
        "_version",
    },
    "upkeep": {"errors", "config", "repo", "workers"},
    "app": {"*"},
    "cli": {"app", "config", "errors", "native", "repo", "_version"},
    "__main__": {"cli"},
    "__init__": {"_version", "app", "config", "httpd"},
}

# module name prefix -> the parts (or part.module) that may import it
CONFINED: dict[str, set[str]] = {
    "tornado": {"httpd", "app"},
    "asyncio": {"httpd", "app", "workers", "cli", "upkeep"},
    "multiprocessing": {"workers"},
    "concurrent": {"workers"},
    "threading": {"workers", "jobs", "pack", "telemetry", "repo"},
    "dulwich": {"pack", "repo", "service.dulwich_front"},
    "pygit2": {"pack"},
    "ctypes": {"pack", "native"},
    "isal": {"pack", "wire.content"},
    "subprocess": {"service.hooks", "native.build", "upkeep"},
    "argparse": {"cli"},
    "msgspec": {"config"},
    "bcrypt": {"access"},
    "argon2": {"access"},
    "socket": {"httpd", "app", "jobs", "supervisor", "repo.gc_lock"},
    "pickle": {"jobs"},
    "logging": {
        "httpd",
        "app",
        "cli",
        "workers",
        "jobs",
        "supervisor",
        "upkeep",
        "telemetry",
        "service",
        "repo",
        "access",
        "pack",
        "__init__",
    },
    "time": {
        "httpd",
        "app",
        "workers",
        "jobs",
        "supervisor",
        "upkeep",
        "telemetry",
        "service",
        "repo",
        "pack",
        "access",
        "cli",
    },
}

# wire/ is bytes to events: it sees the errors, itself and these alone
WIRE_STDLIB = {
    "__future__",
    "abc",
    "binascii",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "itertools",
    "re",
    "string",
    "struct",
    "typing",
    "zlib",
    "isal",
    "email",
    "urllib",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def allowed_by(rule: set[str], path: Path) -> bool:
    dotted = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return any(dotted == entry or dotted.startswith(entry + ".") for entry in rule)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is in no layer: give it one in MAY_IMPORT and docs/architecture.md"
    may = MAY_IMPORT[part]
    for line, name in imported(path):
        head, _, rest = name.partition(".")
        where = f"{path.relative_to(ROOT)}:{line}: imports {name}"
        if head == "gitsmart":
            target = rest.split(".")[0]
            target = target if target in MAY_IMPORT else "__init__"
            assert target == part or target in may or "*" in may, f"{where}: {part} may import {sorted(may)}"
        elif head in CONFINED:
            assert allowed_by(CONFINED[head], path), f"{where}: {head} is for {sorted(CONFINED[head])}"
        if part == "wire" and head != "gitsmart":
            assert head in WIRE_STDLIB, f"{where}: wire does no I/O and knows no clock, thread or logger"
        if name.startswith("os.environ") or name == "os.getenv":
            assert part in {"cli", "config", "app", "native"}, (
                f"{where}: the environment is for cli, config, app"
            )


def test_packages_nest_one_level() -> None:
    deep = [p for p in modules() if len(p.relative_to(PACKAGE).parts) > 2]
    assert not deep, f"a folder never nests: {deep}"


def test_no_grab_bags() -> None:
    names = {p.stem for p in modules()}
    assert not names & {"utils", "util", "helpers", "common", "base", "misc"}
