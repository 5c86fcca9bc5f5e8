"""What the pages say is true: every option, flag, route, log field and dependency is documented, and nothing
else.
"""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

from gitsmart import config
from gitsmart.cli import make_parser
from gitsmart.httpd.routes import GIT_ROUTES, SERVER_ROUTES
from tests.parity import differences

ROOT = Path(__file__).parents[1]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_example_file_has_every_option_with_its_default_and_no_other() -> None:
    path = ROOT / "conf" / "gitsmart.toml"
    document = tomllib.loads(path.read_text())
    found = {f"{section}.{key}": value for section, table in document.items() for key, value in table.items()}
    expected = {
        name: list(default) if isinstance(default, tuple) else default
        for name, default, _ in config.options()
    }
    assert found == expected
    assert config.load(path) == config.Config()


def test_example_file_explains_every_option() -> None:
    lines = (ROOT / "conf" / "gitsmart.toml").read_text().splitlines()
    for before, line in pairwise(lines):
        if re.match(r"\w+ = ", line):
            assert before.startswith("#") or re.match(r"\w+ = ", before), f"no comment above {line!r}"


def test_page_has_every_option_with_its_default_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \|[^|]*\| `([^`]*)` \|", CONFIGURATION, re.MULTILINE)
    assert dict(rows) == {name: toml(default) for name, default, _ in config.options()}


def test_page_has_every_command_and_flag() -> None:
    parser = make_parser()
    commands = next(action for action in parser._actions if action.dest == "command")
    assert isinstance(commands.choices, dict)
    assert set(re.findall(r"^    gitsmart (\w+)", CONFIGURATION, re.MULTILINE)) == set(commands.choices)
    for name, command in commands.choices.items():
        usage = re.search(rf"^    gitsmart {name}( .*(?:\n {{16,}}.*)*)", CONFIGURATION, re.MULTILINE)
        assert usage is not None
        flags = {flag for action in command._actions for flag in action.option_strings} - {"-h", "--help"}
        assert set(re.findall(r"--[a-z-]+", usage[1])) == flags


def test_page_has_every_route_and_no_other() -> None:
    rows = re.findall(r"^\| ((?:GET|POST)[A-Z, ]*) \| `([^`]*)` \|", OPERATIONS, re.MULTILINE)
    assert set(rows) == {(route.methods, route.path) for route in (*GIT_ROUTES, *SERVER_ROUTES)}
    for route in (*GIT_ROUTES, *SERVER_ROUTES):
        assert route.methods == route.handler.allowed


def test_page_has_every_log_field_and_no_other() -> None:
    table = OPERATIONS[OPERATIONS.index("| field | |") : OPERATIONS.index("INFO: these lines")]
    documented = {
        name
        for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    sources = "".join((ROOT / "gitsmart" / "httpd" / name).read_text() for name in ("handler.py", "smart.py"))
    logged = set(re.findall(r'fields\["(\w+)"\]', sources))
    body = sources[sources.index("fields: dict[str, object] = {\n") :]
    logged |= set(re.findall(r'^            "(\w+)": ', body, re.MULTILINE))
    logged |= set(re.findall(r'\{"(objects)": .*"(refs)":', sources)[0])
    assert documented == logged


def test_every_dependency_is_argued_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[ ]", line)[0] for line in project["dependencies"]}
    page = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text()
    assert set(re.findall(r"^\| ([a-z][\w-]*) \|", page, re.MULTILINE)) == names


def test_unit_file_runs_a_command_that_exists() -> None:
    unit = (ROOT / "conf" / "gitsmart.service").read_text()
    match = re.search(r"^ExecStart=\S+/gitsmart (.*)$", unit, re.MULTILINE)
    assert match is not None
    assert make_parser().parse_args(match[1].split()).command == "serve"
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > config.Server().drain_s


def test_differences_that_parity_sessions_expect_are_owned_up_to() -> None:
    page = " ".join((ROOT / "docs" / "protocol.md").read_text().split())
    known = {name: value for name, value in vars(differences).items() if isinstance(value, differences.Known)}
    assert known
    for name, value in known.items():
        assert " ".join(value.documented.split()) in page, f"{name}: not in docs/protocol.md (any more)"


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
