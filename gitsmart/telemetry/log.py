"""Log lines that an operator can grep, or a machine can read: text key=value, or JSON.

    2026-11-24T22:08:22.123Z INFO gitsmart.request id=5f0c... address=127.0.0.1 user=- repo=demo.git ...
    {"time": "2026-11-24T22:08:22.123Z", "level": "INFO", "logger": "gitsmart.request", "id": "5f0c...", ...}

A record's fields come through `extra={"fields": {...}}`. No value is trusted: control characters are escaped,
so that no peer can forge a line. What must never be given to a logger: credentials, bodies, query strings.
"""

import fcntl
import json
import logging
import os
import re
import select
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

__all__ = ["JsonFormatter", "TextFormatter", "configure"]

_BARE = re.compile(r'[^\s"=\\]+')


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _text(value: object) -> str:
    """Return a value as it stands in a text line: bare where that is unambiguous, else a JSON string."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    # Not printable are also the characters that reorder or hide what a terminal shows (U+202E, U+200B)
    if text != "-" and text.isprintable() and _BARE.fullmatch(text):
        return text
    return json.dumps(text)


def _escaped(text: str) -> str:
    """Escape what could end a line, or hide or reorder it on a terminal; unlike a field it has no quotes."""
    return "".join(c if c.isprintable() and c != "\\" else json.dumps(c)[1:-1] for c in text)


class TextFormatter(logging.Formatter):
    """One line a record (a traceback follows, indented), `key=value` fields at its end."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname, record.name]
        message = record.getMessage()
        if message:
            parts.append(_escaped(message))
        parts += [f"{key}={_text(value)}" for key, value in _fields(record).items()]
        line = " ".join(parts)
        if record.exc_info:
            # Indented, so that no exception's text can pass for a line of ours
            for row in self.formatException(record.exc_info).split("\n"):
                line += "\n    " + _escaped(row)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a record, in ASCII; a traceback is its last member."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {"time": _time(record), "level": record.levelname, "logger": record.name}
        message = record.getMessage()
        if message:
            entry["message"] = message
        entry.update(_fields(record))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class SharedHandler(logging.Handler):
    """Writes each record as a whole to a descriptor that forked processes write to as well.

    Up to PIPE_BUF bytes a pipe takes at once (POSIX, write()); for more, such as a traceback, a lock makes
    the others wait. Records are written as they come: nothing is buffered.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lock_fd = os.memfd_create("gitsmart-log") if hasattr(os, "memfd_create") else None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = memoryview((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
            if len(data) <= select.PIPE_BUF or self._lock_fd is None:
                self._write(data)
                return
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX)  # of this process, though it has the file in common
            try:
                self._write(data)
            finally:
                fcntl.lockf(self._lock_fd, fcntl.LOCK_UN)
        except Exception:
            self.handleError(record)

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]


def configure(log_format: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Send the process's log to `stream` (stderr), INFO and above, replacing what was configured before."""
    handler = logging.StreamHandler(stream) if stream is not None else SharedHandler(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
