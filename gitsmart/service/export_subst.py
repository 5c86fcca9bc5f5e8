"""$Format:...$ in files with the attribute export-subst: a commit's own data, in git's pretty formats.

    %H %h %T %t %P %p          commit, tree, parents; the small letters abbreviated
    %an %ae %al %ad %aD %at %ai %aI %as    author; %c... the committer; N, E, L: the same, no .mailmap is read
    %s %f %b %B %e %d %D       subject, for a file name, body, whole message, encoding, refs at the commit
    %n %% %xXX %m              newline, percent, a byte, ">"

What isn't known here stays as it is, as in git for what it doesn't know: %(describe), %(trailers), %ar, %ah,
%G?, colours. git-log(1), "PRETTY FORMATS"; git: archive.c format_subst(), pretty.c format_commit_one(),
date.c show_date().
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["CommitText", "substitute"]

_FORMAT: Final = re.compile(rb"\$Format:([^$]*)\$")
_PLACEHOLDER: Final = re.compile(
    rb"%(?:x([0-9a-fA-F]{2})|([HhTtPpsfbBedDnm%])|([ac])([nNeElLdDtiIs])|([+ -])([HhTtPpsfbBedD]))"
)
_WHEN: Final = re.compile(rb" *(\d{1,18}) *([+-]\d{4})")
_DAYS: Final = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS: Final = (
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitText:
    """A commit to take data from; oids are hex.

    Args:
        data: the commit object.
        abbreviate: a hex oid -> its shortest unambiguous form.
        decorations: names of what points here, in git's order; called at most once each use of %d or %D.
    """

    oid: bytes
    tree: bytes
    parents: Sequence[bytes]
    data: bytes
    abbreviate: Callable[[bytes], bytes]
    decorations: Callable[[], Sequence[bytes]]


def substitute(content: bytes, commit: CommitText) -> bytes:
    """Replace every `$Format:...$` in a file."""
    return _FORMAT.sub(lambda found: _expand(found[1], commit), content)


def _expand(text: bytes, commit: CommitText) -> bytes:
    return _PLACEHOLDER.sub(lambda found: _one(found, commit), text)


def _one(found: "re.Match[bytes]", commit: CommitText) -> bytes:
    code, plain, who, what, sign, signed = found.groups()
    if code is not None:
        return bytes([int(code, 16)])
    if who is not None:
        value = _person(commit.data, b"author" if who == b"a" else b"committer", what)
        return found[0] if value is None else value
    if signed is not None:
        value = _plain(signed, commit)
        if value:
            return (b"\n" if sign == b"+" else b" " if sign == b" " else b"") + value
        return b""
    return _plain(plain, commit)


def _plain(letter: bytes, commit: CommitText) -> bytes:
    match letter:
        case b"H":
            return commit.oid
        case b"h":
            return commit.abbreviate(commit.oid)
        case b"T":
            return commit.tree
        case b"t":
            return commit.abbreviate(commit.tree)
        case b"P":
            return b" ".join(commit.parents)
        case b"p":
            return b" ".join(map(commit.abbreviate, commit.parents))
        case b"d" | b"D":
            names = b", ".join(commit.decorations())
            return names if letter == b"D" or not names else b" (%b)" % names
        case b"n":
            return b"\n"
        case b"m":
            return b">"
        case b"%":
            return b"%"
        case b"e":
            return _header(commit.data, b"encoding")
    message = _message(commit.data)
    if letter == b"B":
        return message
    subject, body = _subject_and_body(message)
    if letter == b"s":
        return subject
    if letter == b"f":
        return _for_a_file_name(message.lstrip(b"\n").partition(b"\n")[0])
    return body


def _header(data: bytes, name: bytes) -> bytes:
    head = data.partition(b"\n\n")[0]
    for line in head.split(b"\n"):
        if line.startswith(name + b" "):
            return line[len(name) + 1 :]
    return b""


def _message(data: bytes) -> bytes:
    message = data.partition(b"\n\n")[2]
    encoding = _header(data, b"encoding")
    if encoding:
        try:
            return message.decode(encoding.decode("ascii")).encode("utf-8")
        except (UnicodeError, LookupError):
            pass  # git: the bytes as they are
    return message


def _subject_and_body(message: bytes) -> tuple[bytes, bytes]:
    lines = message.split(b"\n")
    at = 0
    while at < len(lines) and not lines[at].strip():
        at += 1
    subject = []
    while at < len(lines) and lines[at].strip():
        subject.append(lines[at].rstrip())
        at += 1
    while at < len(lines) and not lines[at].strip():
        at += 1
    return b" ".join(subject), b"\n".join(lines[at:])


def _for_a_file_name(subject: bytes) -> bytes:
    """See git: pretty.c format_sanitized_subject()."""
    text = re.sub(rb"[^A-Za-z0-9._]+", b"-", subject).lstrip(b"-")
    text = re.sub(rb"\.+", b".", text)
    return text.rstrip(b".-")


def _person(data: bytes, header: bytes, what: bytes) -> bytes | None:
    name, _, rest = _header(data, header).partition(b"<")
    address, _, rest = rest.partition(b">")
    found = _WHEN.fullmatch(rest)
    if found is None:
        return None
    name, address, (seconds, zone) = name.rstrip(), address.strip(), found.groups()
    match what:
        case b"n" | b"N":
            return name
        case b"e" | b"E":
            return address
        case b"l" | b"L":
            return address.partition(b"@")[0]
        case b"t":
            return seconds
    offset = (int(zone[1:3]) * 60 + int(zone[3:5])) * (-1 if zone.startswith(b"-") else 1)
    try:
        when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds), minutes=offset)
    except OverflowError:
        return None
    clock = b"%02d:%02d:%02d" % (when.hour, when.minute, when.second)
    day = b"%04d-%02d-%02d" % (when.year, when.month, when.day)
    week, month = _DAYS[when.weekday()], _MONTHS[when.month - 1]
    match what:
        case b"d":
            return b"%b %b %d %b %d %b" % (week, month, when.day, clock, when.year, zone)
        case b"D":
            return b"%b, %d %b %d %b %b" % (week, when.day, month, when.year, clock, zone)
        case b"i":
            return b"%b %b %b" % (day, clock, zone)
        case b"I":
            # git 2.45 and later say Z for UTC
            return b"%bT%b%b" % (day, clock, b"Z" if not offset else b"%b:%b" % (zone[:3], zone[3:]))
    return day
