r"""Fetch conversations written down line by line, ours held against them, and C git's own.

    # what it shows, and the section
    version N                         a POST to git-upload-pack with Git-Protocol: version=N
    info/refs SERVICE N               or a GET of info/refs
    config NAME VALUE                 the repository's git config
    differs from git                  C git is not held against this one
    since git N.N                     C git is, unless it is older
    C: text                           a pkt-line of the request; 0000 and 0001 are flush-pkt and delim-pkt
    S: text                           a pkt-line of the answer, its LF left out
    S: PACK revs                      a pack on band 1 of just the objects of `git rev-list --objects revs`

`$(rev)` is an oid, `\0` a NUL, `\1` to `\3` a band. See docs/protocol.md for what each section's lines are.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gitsmart.service.advertise import ServiceName, advertise
from gitsmart.service.options import ServiceOptions
from gitsmart.service.upload_pack import upload_pack
from gitsmart.wire.pktline import DELIM_PKT, FLUSH_PKT, PktLineDecoder, Special, chomp, pkt
from tests.service.conftest import (
    BytesChannel,
    Git,
    Served,
    fixture_git,
    fixture_served,
    fixture_served_template,
)

__all__ = ["fixture_git", "fixture_served", "fixture_served_template"]

TRANSCRIPTS = sorted((Path(__file__).parent / "fetch").glob("*.txt"))
SPECIAL = {"0000": Special.FLUSH, "0001": Special.DELIM}


@dataclass
class Transcript:
    """One file, with its oids filled in."""

    service: ServiceName = "git-upload-pack"
    version: int = 0
    is_advertisement: bool = False
    is_gits: bool = True
    since: tuple[int, ...] = ()
    request: bytes = b""
    answer: list[str] = field(default_factory=list)


def read_transcript(path: Path, served: Served) -> Transcript:
    transcript = Transcript()
    for line in path.read_text().splitlines():
        filled = re.sub(r"\$\((.+?)\)", lambda match: served.oid(match[1]).decode(), line)
        word, _, text = filled.partition(" ")
        match word:
            case "#" | "":
                continue
            case "version":
                transcript.version = int(text)
            case "info/refs":
                transcript.is_advertisement = True
                service, _, version = text.partition(" ")
                transcript.service = "git-upload-pack" if service == "git-upload-pack" else "git-receive-pack"
                transcript.version = int(version)
            case "config":
                served.git("config", "--add", *text.split(" ", 1), cwd=served.path)
            case "differs":
                transcript.is_gits = False
            case "since":
                transcript.since = version_of(text)
            case "C:":
                special = {"0000": FLUSH_PKT, "0001": DELIM_PKT}.get(text)
                transcript.request += special or pkt(text.encode() + b"\n")
            case "S:":
                transcript.answer.append(text)
            case _:
                raise AssertionError(line)
    return transcript


def version_of(text: str) -> tuple[int, ...]:
    """The number in `git version 2.39.5`, or in `git 2.40`."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def check_answer(response: bytes, transcript: Transcript, served: Served, tmp_path: Path) -> None:
    decoder = PktLineDecoder()
    lines = decoder.feed(response)
    assert decoder.is_between_packets
    expected = list(transcript.answer)
    while expected and not expected[0].startswith("PACK"):
        text = expected.pop(0)
        line = lines.pop(0)
        if text in SPECIAL:
            assert line is SPECIAL[text]
        else:
            assert isinstance(line, bytes)
            assert re.sub(rb"[\0-\3]", lambda match: b"\\%d" % match[0][0], chomp(line)).decode() == text
    if not expected:
        assert lines == []
        return
    revs = expected.pop(0).split()[1:]
    assert expected == ["0000"]
    assert lines.pop() is Special.FLUSH
    pack = b""
    for line in lines:
        assert isinstance(line, bytes)
        assert line[:1] in (b"\x01", b"\x02")
        pack += line[1:] if line[:1] == b"\x01" else b""
    assert objects_in(pack, served, tmp_path) == (served.objects(*revs) if revs else set())


def objects_in(pack: bytes, served: Served, tmp_path: Path) -> set[str]:
    """The pack's own objects, by index-pack in a copy that has the bases of a thin one."""
    scratch = tmp_path / "scratch.git"
    if not scratch.exists():
        served.git("clone", "-q", "--bare", served.path, scratch)
    before = {*scratch.glob("objects/pack/*.idx")}
    served.git("index-pack", "--stdin", "--fix-thin", cwd=scratch, data=pack)
    (index,) = {*scratch.glob("objects/pack/*.idx")} - before
    rows = [row.split() for row in served.git("verify-pack", "-v", index, cwd=scratch).splitlines()]
    entries = sorted((int(row[4]), row[0]) for row in rows if len(row) >= 5 and len(row[0]) == 40)
    return {oid for _, oid in entries[: int.from_bytes(pack[8:12], "big")]}


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_ours(path: Path, served: Served, tmp_path: Path) -> None:
    transcript = read_transcript(path, served)
    channel = BytesChannel(transcript.request)
    options = ServiceOptions(
        agent=b"gitsmart/test", session_id=b"20261124T221122.123456Z-H01234567-P0000002a"
    )
    if transcript.is_advertisement:
        advertise(
            served.open(), channel, service=transcript.service, version=transcript.version, options=options
        )
    else:
        upload_pack(served.open(), channel, version=transcript.version, options=options)
    check_answer(bytes(channel.response), transcript, served, tmp_path)


@pytest.mark.parametrize(
    "path", [path for path in TRANSCRIPTS if path.name[0] == "v"], ids=lambda path: path.stem
)
def test_gits(path: Path, git: Git, served: Served, tmp_path: Path) -> None:
    transcript = read_transcript(path, served)
    if not transcript.is_gits:
        pytest.skip("C git answers otherwise")
    if version_of(git("version")) < transcript.since:
        pytest.skip("this C git does not know it yet")
    git.environ["GIT_PROTOCOL"] = f"version={transcript.version}"
    response = git.output("upload-pack", "--stateless-rpc", served.path, data=transcript.request)
    del git.environ["GIT_PROTOCOL"]
    check_answer(response, transcript, served, tmp_path)
