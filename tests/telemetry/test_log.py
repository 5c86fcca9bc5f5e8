"""Lines that can't be forged, in both formats."""

import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Literal

import pytest

from gitsmart.telemetry import log


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(
    log_format: Literal["text", "json"], message: str, fields: dict[str, object] | None = None
) -> str:
    stream = io.StringIO()
    log.configure(log_format, stream)
    logging.getLogger("gitsmart.request").info(message, extra={"fields": fields or {}})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ("-", '"-"'),
        (7, "7"),
        (0.25, "0.250"),
        (True, "yes"),
        ("demo.git", "demo.git"),
        ("grün", "grün"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        ("a\nb", r'"a\nb"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("a\u2028b\x85", r'"a\u2028b\u0085"'),
        ("\udcff", r'"\udcff"'),
        ("a\u202eb\u200bc\ufeff", r'"a\u202eb\u200bc\ufeff"'),
    ],
)
def test_text_values(value: object, text: str) -> None:
    line = written("text", "", {"key": value})
    assert line.split(" ", 1)[1] == f"INFO gitsmart.request key={text}\n"


def test_text_line_begins_with_the_time_in_utc() -> None:
    assert written("text", "hello").split(" ", 1)[0].endswith("Z")


def test_messages_stay_on_one_line() -> None:
    assert written("text", 'a "b"\nc').endswith(' a "b"\\nc\n')


def test_messages_cannot_speak_to_the_terminal() -> None:
    assert written("text", "a\x1b[1m\x9b1m\u202e\\u").endswith(r" a\u001b[1m\u009b1m\u202e\\u" + "\n")


def test_tracebacks_cannot_pass_for_lines() -> None:
    stream = io.StringIO()
    log.configure("text", stream)
    try:
        raise ValueError("x\n2026-11-24T00:00:00.000Z INFO gitsmart.request forged\x1b[1m")
    except ValueError:
        logging.getLogger("gitsmart").exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("failed")
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in stream.getvalue()


def test_json_has_the_same_fields() -> None:
    entry = json.loads(written("json", "hello", {"user": None, "in": 3, "seconds": 0.5, "repo": "x\ny"}))
    del entry["time"]
    assert entry == {
        "level": "INFO", "logger": "gitsmart.request", "message": "hello", "user": None, "in": 3,
        "seconds": 0.5, "repo": "x\ny",
    }  # fmt: skip


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_tracebacks(log_format: Literal["text", "json"]) -> None:
    stream = io.StringIO()
    log.configure(log_format, stream)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("gitsmart").exception("failed")
    assert "ValueError: why" in stream.getvalue()
    if log_format == "json":
        assert stream.getvalue().count("\n") == 1


def test_long_records_of_several_processes_do_not_mix() -> None:
    read, write = os.pipe()
    handler = log.SharedHandler(write)
    handler.setFormatter(logging.Formatter("%(message)s"))
    children = []
    for n in range(3):
        pid = os.fork()
        if not pid:
            for _ in range(20):
                handler.handle(logging.makeLogRecord({"msg": str(n) * 30_000}))
            os._exit(0)
        children.append(pid)
    os.close(write)
    with open(read, encoding="ascii") as lines:
        found = sorted(line.removesuffix("\n") for line in lines)
    assert found == [str(n) * 30_000 for n in range(3) for _ in range(20)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
