r"""Fetch conversations written down line by line, ours held against them, and C git's own.

    # what it shows, and the section
    version N                         a POST to git-upload-pack with Git-Protocol: version=N
    info/refs SERVICE N               or a GET of info/refs
    config NAME VALUE                 the repository's git config
    repository empty FORMAT           another repository: without a commit, of that object format
    repository sha256                 or the same history in SHA-256
    lacks OID                         an object that the repository has lost to a promisor remote
    git COMMAND                       a git command that changes the repository
    differs from git                  C git is not held against this one
    since git N.N                     C git is, unless it is older
    C: text                           a pkt-line of the request; 0000 and 0001 are flush-pkt and delim-pkt
    S: text                           a pkt-line of the answer, its LF left out
    S: PACK revs                      a pack on band 1 of just the objects of `git rev-list --objects revs`
    S: BARE PACK revs                 the same without side-band, to the answer's end

`$(rev)` is an oid, `$(time rev)` a commit's time, `\0` a NUL, `\1` to `\3` a band. See docs/protocol.md
for what each section's lines are.
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
SESSION = b"20261124T221122.123456Z-H01234567-P0000002a"
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
        filled = re.sub(r"\$\((.+?)\)", lambda match: looked_up(served, match[1]), line)
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
            case "repository":
                served.path = make_repository(served, *text.split())
            case "git":
                served.git(*text.split(), cwd=served.path)
            case "lacks":
                lose(served, text)
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


def lose(served: Served, oid: str) -> None:
    """Leave one pack, marked as one that a promisor remote sent, of all objects but one."""
    packs = served.path / "objects" / "pack"
    everything = "\n".join(sorted(served.objects("--all") - {oid})) + "\n"
    name = served.git("pack-objects", "-q", packs / "pack", cwd=served.path, data=everything.encode())
    (packs / f"pack-{name}.promisor").touch()
    for other in packs.glob("pack-*"):
        if name not in other.name:
            other.unlink()
    served.git("prune-packed", "-q", cwd=served.path)
    (served.path / "objects" / oid[:2] / oid[2:]).unlink(missing_ok=True)


def looked_up(served: Served, text: str) -> str:
    if text.startswith("time "):
        return served.git("log", "-1", "--format=%ct", text[5:], cwd=served.path)
    return served.oid(text).decode()


def make_repository(served: Served, *words: str) -> Path:
    """`empty FORMAT`, or a copy of the served history in another format."""
    path = served.path.with_name("other.git")
    served.git("init", "-q", "--bare", f"--object-format={words[-1]}", path)
    if words[0] != "empty":
        history = served.git.run("fast-export", "--all", "--signed-tags=strip", cwd=served.path)
        served.git("fast-import", "--quiet", cwd=path, data=history)
    return path


def version_of(text: str) -> tuple[int, ...]:
    """The number in `git version 2.39.5`, or in `git 2.40`."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def check_answer(response: bytes, transcript: Transcript, served: Served, tmp_path: Path) -> None:
    expected = list(transcript.answer)
    is_bare = bool(expected) and expected[-1].startswith("BARE ")
    pack = b""
    if is_bare:
        response, start, pack = response.partition(b"PACK")
        pack = start + pack
    decoder = PktLineDecoder()
    lines = decoder.feed(response)
    assert decoder.is_between_packets
    while expected and not expected[0].startswith(("PACK", "BARE PACK")):
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
    revs = expected.pop(0).removeprefix("BARE ").split()[1:]
    if not is_bare:
        assert expected == ["0000"]
        assert lines.pop() is Special.FLUSH
    for line in lines:
        assert isinstance(line, bytes)
        assert not is_bare
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
    entries = sorted((int(row[4]), row[0]) for row in rows if len(row) >= 5 and len(row[0]) in (40, 64))
    return {oid for _, oid in entries[: int.from_bytes(pack[8:12], "big")]}


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_ours(path: Path, served: Served, tmp_path: Path) -> None:
    transcript = read_transcript(path, served)
    channel = BytesChannel(transcript.request)
    options = ServiceOptions(agent=b"gitsmart/test", session_id=SESSION)
    if transcript.is_advertisement:
        advertise(
            served.open(), channel, service=transcript.service, version=transcript.version, options=options
        )
    else:
        upload_pack(served.open(), channel, version=transcript.version, options=options)
    check_answer(bytes(channel.response), transcript, served, tmp_path)


# What is on here unless config says otherwise, and off in git
ON = ("uploadpack.allowFilter", "uploadpack.allowRefInWant", "uploadpack.allowReachableSHA1InWant",
      "receive.advertisePushOptions")  # fmt: skip


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_gits(path: Path, git: Git, served: Served, tmp_path: Path) -> None:
    given = path.read_text()
    chosen = [name for name in ON if f"config {name} " not in given]
    for number, name in enumerate(chosen, start=int(git.environ["GIT_CONFIG_COUNT"])):
        git.environ[f"GIT_CONFIG_KEY_{number}"] = name
        git.environ[f"GIT_CONFIG_VALUE_{number}"] = "true"
        git.environ["GIT_CONFIG_COUNT"] = str(number + 1)
    transcript = read_transcript(path, served)
    if not transcript.is_gits:
        pytest.skip("C git answers otherwise")
    if version_of(git("version")) < transcript.since:
        pytest.skip("this C git does not know it yet")
    git.environ["GIT_PROTOCOL"] = f"version={transcript.version}"
    if transcript.is_advertisement:
        command = transcript.service.removeprefix("git-")
        response = git.output(command, "--http-backend-info-refs", served.path)
        response = as_ours(response, transcript)
    else:
        response = git.output("upload-pack", "--stateless-rpc", served.path, data=transcript.request)
    del git.environ["GIT_PROTOCOL"]
    check_answer(response, transcript, served, tmp_path)


def as_ours(response: bytes, transcript: Transcript) -> bytes:
    """What git-http-backend makes of an advertisement, with our name in the agent capability."""
    decoder = PktLineDecoder()
    lines: list[bytes] = []
    if transcript.service == "git-receive-pack" or transcript.version != 2:
        lines += [pkt(f"# service={transcript.service}\n".encode()), FLUSH_PKT]
    for line in decoder.feed(response):
        if isinstance(line, bytes):
            line = re.sub(rb"session-id=[^ \n]+", b"session-id=" + SESSION, line)
            lines.append(pkt(re.sub(rb"agent=git/[^ \n]+", b"agent=gitsmart/test", line)))
        else:
            lines.append({Special.FLUSH: FLUSH_PKT, Special.DELIM: DELIM_PKT}[line])
    return b"".join(lines)
