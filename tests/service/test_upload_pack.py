"""Fetches: what is asked, byte by byte, and what git makes of the packs that come."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitsmart.errors import Disconnected, ObjectMissing
from gitsmart.service import upload_pack as module
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.service.upload_pack import upload_pack
from gitsmart.wire.pktline import DELIM_PKT, FLUSH_PKT, PktLineDecoder, Special, error_pkt, pkt
from tests.service.conftest import Answer, BytesChannel, Git, Served, read_answer

FLUSH, DELIM = Special.FLUSH, Special.DELIM
CAPS = b" multi_ack_detailed no-done side-band-64k thin-pack ofs-delta agent=git/2.39.5"
UNKNOWN = b"f" * 40


def v2_body(*arguments: bytes, command: bytes = b"fetch") -> bytes:
    head = [b"command=" + command, b"agent=git/test", b"object-format=sha1"]
    return b"".join(map(pkt, head)) + DELIM_PKT + b"".join(map(pkt, arguments)) + FLUSH_PKT


def v0_body(*lines: object) -> bytes:
    return b"".join(pkt(line) if isinstance(line, bytes) else FLUSH_PKT for line in lines)


def serve(
    served: Served,
    body: bytes,
    version: int = 2,
    *,
    stateless: bool = True,
    options: ServiceOptions | None = None,
) -> tuple[BytesChannel, ServiceReport]:
    channel = BytesChannel(body)
    report = upload_pack(
        served.open(), channel, version=version, options=options or ServiceOptions(), stateless=stateless
    )
    assert channel.flushes
    return channel, report


def fetch(served: Served, *arguments: bytes) -> Answer:
    """A v2 fetch whose answer has a pack."""
    channel, report = serve(served, v2_body(*arguments))
    answer = read_answer(channel.response)
    assert answer.is_finished, answer
    assert answer.error == b""
    assert not report.failed
    return answer


def unpack(git: Git, pack: bytes, into: Path) -> set[str]:
    """Let git take a pack, thin or not, into a repository, strictly; the oids that were in it."""
    if not into.exists():
        git("init", "-q", "--bare", into)
    git("index-pack", "--strict", "--stdin", "--fix-thin", cwd=into, data=pack)
    count = int.from_bytes(pack[8:12], "big")
    return entries(git, pack, into, count)


def entries(git: Git, pack: bytes, into: Path, count: int) -> set[str]:
    newest = max(into.glob("objects/pack/*.idx"), key=lambda path: path.stat().st_mtime_ns)
    rows = [row.split() for row in git("verify-pack", "-v", newest, cwd=into).splitlines()]
    found = sorted((int(row[4]), row[0]) for row in rows if len(row) >= 5 and len(row[0]) == 40)
    # What --fix-thin appended lies behind the pack's own entries.
    return {oid for _, oid in found[:count]}


# ------------------------------------------------------------------------------------------------------ v2


def test_clone(served: Served, tmp_path: Path) -> None:
    channel, report = serve(
        served, v2_body(b"want " + served.oid("main"), b"want " + served.oid("topic"), b"done")
    )
    answer = read_answer(channel.response)
    assert answer.lines == [b"packfile"]
    assert answer.is_finished
    assert unpack(served.git, answer.pack, tmp_path / "new.git") == served.objects("main", "topic")
    assert report.objects == len(served.objects("main", "topic"))
    assert report.refs == 2
    assert report.note == "clone"


def test_wants_without_haves_get_the_pack_without_done(served: Served, tmp_path: Path) -> None:
    answer = fetch(served, b"want " + served.oid("main"))
    assert unpack(served.git, answer.pack, tmp_path / "new.git") == served.objects("main")


@pytest.mark.parametrize("version", [0, 2])
@pytest.mark.parametrize("ofs_delta", [True, False])
@pytest.mark.parametrize("thin", [True, False])
def test_fetch_sends_the_difference(
    served: Served, tmp_path: Path, version: int, ofs_delta: bool, thin: bool
) -> None:
    client = tmp_path / "client.git"
    served.git("clone", "-q", "--bare", "--single-branch", served.path, client)
    served.git("update-ref", "refs/heads/main", "main~3", cwd=client)
    served.git("update-ref", "-d", "refs/tags/v1", cwd=client)
    served.git("prune", cwd=client)
    served.git("repack", "-adq", cwd=client)
    flags = [b"thin-pack"] * thin + [b"ofs-delta"] * ofs_delta
    want, have = served.oid("main"), served.oid("main~3")
    if version == 2:
        answer = fetch(served, *flags, b"want " + want, b"have " + have, b"done")
    else:
        caps = b" ".join([b"", b"side-band-64k", *flags])
        channel, _ = serve(served, v0_body(b"want " + want + caps, FLUSH, b"have " + have, b"done"), 0)
        answer = read_answer(channel.response, is_banded_from=1)
        assert answer.lines == [b"ACK " + have]
    assert unpack(served.git, answer.pack, client) == served.objects("main", "^main~3")
    served.git("fsck", "--full", "--strict", cwd=client)


def test_negotiation_ready(served: Served) -> None:
    have = served.oid("main~2")
    answer = fetch(served, b"want " + served.oid("main"), b"have " + UNKNOWN, b"have " + have)
    assert answer.lines == [b"acknowledgments", b"ACK " + have, b"ready", DELIM, b"packfile"]


def test_negotiation_goes_on(served: Served) -> None:
    want = b"want " + served.oid("main~4")
    channel, report = serve(served, v2_body(want, b"have " + UNKNOWN))
    assert PktLineDecoder().feed(bytes(channel.response)) == [b"acknowledgments\n", b"NAK\n", FLUSH]
    assert report.note == "negotiation"
    # Common, but no ancestor of what is wanted.
    have = served.oid("topic")
    channel, _ = serve(served, v2_body(want, b"have " + have))
    assert PktLineDecoder().feed(bytes(channel.response)) == [
        b"acknowledgments\n",
        b"ACK " + have + b"\n",
        FLUSH,
    ]


def test_done_with_nothing_in_common_is_a_clone(served: Served, tmp_path: Path) -> None:
    answer = fetch(served, b"want " + served.oid("main"), b"have " + UNKNOWN, b"done")
    assert answer.lines == [b"packfile"]
    assert unpack(served.git, answer.pack, tmp_path / "new.git") == served.objects("main")


def test_having_all_gives_an_empty_pack(served: Served) -> None:
    answer = fetch(served, b"want " + served.oid("main"), b"have " + served.oid("main"), b"done")
    assert answer.pack[:12] == b"PACK\0\0\0\2\0\0\0\0"
    assert len(answer.pack) == 32


def test_include_tag(served: Served, tmp_path: Path) -> None:
    served.git("tag", "-a", "-m", "a tag of a tag", "v1.1", "v1", cwd=served.path)
    want = b"want " + served.oid("main")
    tags = {served.oid("v1").decode(), served.oid("v1.1").decode()}
    answer = fetch(served, want, b"include-tag", b"done")
    assert unpack(served.git, answer.pack, tmp_path / "a.git") == served.objects("main") | tags
    # The tagged commit is there already: its tags are no part of the difference.
    answer = fetch(served, want, b"have " + served.oid("v1^{}"), b"include-tag", b"done")
    assert int.from_bytes(answer.pack[8:12], "big") == len(served.objects("main", "^v1"))


def test_wanting_a_tag_a_tree_and_a_blob(served: Served, tmp_path: Path) -> None:
    wants = [served.oid(rev) for rev in ("v1", "main:dir", "main:big.txt")]
    answer = fetch(served, *[b"want " + oid for oid in wants], b"done")
    expected = served.objects("v1", "main:dir", "main:big.txt")
    assert unpack(served.git, answer.pack, tmp_path / "new.git") == expected


def test_progress_is_shown_unless_refused(served: Served) -> None:
    want = b"want " + served.oid("main")
    answer = fetch(served, want, b"done")
    count = len(served.objects("main"))
    assert answer.progress.startswith(b"Enumerating objects: %d, done.\n" % count)
    assert b"\nTotal %d" % count in answer.progress
    assert fetch(served, want, b"no-progress", b"done").progress == b""


@pytest.mark.parametrize("flags", [[b"thin-pack", b"ofs-delta"], [b"ofs-delta"], []])
def test_progress_counts_deltas_as_git_finds_them(served: Served, tmp_path: Path, flags: list[bytes]) -> None:
    served.git("repack", "-adfq", "--depth=20", cwd=served.path)
    client = tmp_path / "client.git"
    served.git("clone", "-q", "--bare", served.path, client)
    wants = [b"want " + served.oid("topic"), b"want " + served.oid("main~1")]
    answer = fetch(served, *flags, *wants, b"have " + served.oid("main~4"), b"done")
    found = re.search(
        rb"\nTotal (\d+) \(delta (\d+)\), reused (\d+) \(delta (\d+)\), pack-reused 0 \(from 0\)\n",
        answer.progress,
    )
    assert found is not None, answer.progress
    total, deltas, reused, reused_deltas = map(int, found.groups())
    assert total == int.from_bytes(answer.pack[8:12], "big")
    assert total >= reused >= reused_deltas > 0
    assert deltas >= reused_deltas
    before = {*client.glob("objects/pack/*.idx")}
    served.git("index-pack", "--stdin", "--fix-thin", cwd=client, data=answer.pack)
    (index,) = {*client.glob("objects/pack/*.idx")} - before
    rows = [row.split() for row in served.git("verify-pack", "-v", index, cwd=client).splitlines()]
    # Seven columns: the last are the chain's length and the base.
    assert deltas == sum(len(row) == 7 for row in rows)


def test_progress_of_packs_that_are_sent_whole(served: Served) -> None:
    served.git("repack", "-adq", cwd=served.path)
    wants = [b"want " + served.oid(rev) for rev in ("main", "topic", "v1")]
    answer = fetch(served, b"ofs-delta", *wants, b"done")
    count = int.from_bytes(answer.pack[8:12], "big")
    assert (
        b"\nTotal %d (delta 0), reused 0 (delta 0), pack-reused %d (from 1)\n" % (count, count)
        in answer.progress
    )


def test_progress_while_enumerating(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    select = module.select_objects  # type: ignore[attr-defined]

    def ticking(*args: object, tick: Callable[[int], None], **kwargs: object) -> object:
        for count in (1, 2, 3):
            tick(count)
        return select(*args, tick=tick, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "select_objects", ticking)
    options = ServiceOptions(progress_interval_s=0)
    channel, _ = serve(served, v2_body(b"want " + served.oid("main"), b"done"), options=options)
    assert b"Enumerating objects: 2\rEnumerating objects: 3\r" in read_answer(channel.response).progress
    assert channel.checks >= 3
    options = ServiceOptions(progress_interval_s=60)
    channel, _ = serve(served, v2_body(b"want " + served.oid("main"), b"done"), options=options)
    assert b"\r" not in read_answer(channel.response).progress


def test_keepalive_only_while_packets_may_be_banded(served: Served) -> None:
    writes_at: list[int] = []

    class Watching(BytesChannel):
        def keepalive(self, packet: bytes, interval_s: float) -> None:
            super().keepalive(packet, interval_s)
            writes_at.append(len(self.response))

    watched = Watching(v2_body(b"want " + served.oid("main"), b"done"))
    upload_pack(served.open(), watched, version=2, options=ServiceOptions(keepalive_s=2.5))
    assert watched.keepalives == [(b"0005\x01", 2.5), (b"", 0)]
    assert bytes(watched.response[: writes_at[0]]) == pkt(b"packfile\n")
    # Switched off before the flush-pkt: nothing may come behind that.
    assert writes_at[1] < len(watched.response)
    channel, _ = serve(
        served, v2_body(b"want " + served.oid("main"), b"done"), options=ServiceOptions(keepalive_s=0)
    )
    assert not [packet for packet, _ in channel.keepalives if packet]


def test_every_write_holds_whole_packets(served: Served) -> None:
    channel, _ = serve(served, v2_body(b"want " + served.oid("main"), b"done"))
    for data in channel.writes:
        decoder = PktLineDecoder()
        decoder.feed(data)
        assert decoder.is_between_packets


def test_a_flush_alone_is_answered_with_nothing(served: Served) -> None:
    for version in (0, 1, 2):
        channel, report = serve(served, FLUSH_PKT, version)
        assert channel.response == b""
        assert not report.failed


def test_a_request_without_a_body_is_an_error(served: Served) -> None:
    wants = pkt(b"want " + served.oid("main") + b" side-band-64k\n") + FLUSH_PKT
    for version, body in ((0, b""), (1, b""), (2, b""), (0, wants), (1, wants)):
        channel, _ = serve(served, body, version)
        assert channel.response == error_pkt("the remote end hung up unexpectedly")


def test_nothing_wanted_is_answered_with_nothing(served: Served) -> None:
    assert serve(served, v2_body(b"have " + served.oid("main"), b"done"))[0].response == b""


# ------------------------------------------------------------------------------------------------- shallow


def shallow_clone(served: Served, tmp_path: Path, depth: int) -> Path:
    client = tmp_path / "shallow.git"
    served.git(
        "clone", "-q", "--bare", "--single-branch", f"--depth={depth}", f"file://{served.path}", client
    )
    return client


def test_depth_1(served: Served, tmp_path: Path) -> None:
    main = served.oid("main")
    answer = fetch(served, b"want " + main, b"deepen 1", b"done")
    assert answer.lines == [b"shallow-info", b"shallow " + main, DELIM, b"packfile"]
    expected = served.objects("main^{tree}") | {main.decode()}
    into = tmp_path / "new.git"
    served.git("init", "-q", "--bare", into)
    (into / "shallow").write_bytes(main + b"\n")
    assert unpack(served.git, answer.pack, into) == expected


def test_deepening_sends_what_lies_between(served: Served, tmp_path: Path) -> None:
    client = shallow_clone(served, tmp_path, 1)
    main = served.oid("main")
    answer = fetch(
        served, b"want " + main, b"have " + main, b"shallow " + main, b"deepen 3", b"thin-pack", b"done"
    )
    assert answer.lines == [
        b"shallow-info",
        b"shallow " + served.oid("main~2"),
        b"unshallow " + main,
        DELIM,
        b"packfile",
    ]
    (client / "shallow").write_bytes(served.oid("main~2") + b"\n")
    sent = unpack(served.git, answer.pack, client)
    commits = {served.oid("main~1").decode(), served.oid("main~2").decode()}
    assert commits <= sent
    # Nothing that the client has is sent again.
    assert not sent & (served.objects("main^{tree}") | {main.decode()})
    served.git("update-ref", "refs/heads/main", main.decode(), cwd=client)
    served.git("fsck", "--full", "--strict", cwd=client)
    assert served.git("rev-list", "--count", "main", cwd=client) == "3"


def test_deepening_by_some_more(served: Served, tmp_path: Path) -> None:
    main, shallow = served.oid("main"), served.oid("main~1")
    answer = fetch(
        served,
        b"want " + main,
        b"have " + main,
        b"shallow " + shallow,
        b"deepen 1",
        b"deepen-relative",
        b"done",
    )
    assert answer.lines[:4] == [
        b"shallow-info",
        b"shallow " + served.oid("main~2"),
        b"unshallow " + shallow,
        DELIM,
    ]
    client = shallow_clone(served, tmp_path, 2)
    (client / "shallow").write_bytes(served.oid("main~2") + b"\n")
    assert served.oid("main~2").decode() in unpack(served.git, answer.pack, client)


@pytest.mark.parametrize("option", ["--shallow-since", "--shallow-exclude"])
def test_deepening_by_time_and_by_refs(served: Served, tmp_path: Path, option: str) -> None:
    main = served.oid("main")
    if option == "--shallow-since":
        value = served.git("log", "-1", "--format=%ct", "main~2", cwd=served.path)
        line = b"deepen-since " + value.encode()
        expected = {served.oid("main"), served.oid("main~1"), served.oid("main~2")}
    else:
        value, line = "v1", b"deepen-not v1"
        expected = {served.oid("main"), served.oid("main~1"), served.oid("main~2")}
    # What git makes of the same wish.
    client = tmp_path / "client.git"
    clone = ("clone", "-q", "--bare", "--single-branch", f"{option}={value}", f"file://{served.path}", client)
    served.git(*clone)
    (shallow,) = (client / "shallow").read_bytes().split()
    assert shallow == served.oid("main~2")
    answer = fetch(served, b"want " + main, line, b"done")
    assert answer.lines == [b"shallow-info", b"shallow " + shallow, DELIM, b"packfile"]
    into = tmp_path / "new.git"
    served.git("init", "-q", "--bare", into)
    (into / "shallow").write_bytes(shallow + b"\n")
    sent = unpack(served.git, answer.pack, into)
    assert {oid for oid in served.objects("main", "topic") if oid.encode() in expected} <= sent
    assert sent == set(served.git("rev-list", "--objects", "--no-object-names", "main", cwd=client).split())
    # And for a client that has one commit so far.
    answer = fetch(served, b"want " + main, b"have " + main, b"shallow " + main, line, b"done")
    assert answer.lines[:3] == [b"shallow-info", b"shallow " + shallow, b"unshallow " + main]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([b"deepen-not nothing"], "git upload-pack: deepen-not is not a ref: deepen-not nothing"),
        ([b"deepen-not x"], "git upload-pack: ambiguous deepen-not: deepen-not x"),
        ([b"deepen-not main"], "no commits selected for shallow requests"),
        ([b"deepen-since 99999999999"], "no commits selected for shallow requests"),
        (
            [b"deepen 1", b"deepen-not v1"],
            "git upload-pack: deepen and deepen-since (or deepen-not) cannot be used together",
        ),
    ],
)
def test_deepening_that_makes_no_sense(served: Served, lines: list[bytes], text: str) -> None:
    served.git("branch", "x", "main", cwd=served.path)
    served.git("tag", "x", "main", cwd=served.path)
    channel, report = serve(served, v2_body(b"want " + served.oid("main"), *lines, b"done"))
    assert channel.response == pkt(f"ERR {text}\n".encode())
    assert report.failed


def test_unshallow(served: Served, tmp_path: Path) -> None:
    client = shallow_clone(served, tmp_path, 2)
    main, shallow = served.oid("main"), served.oid("main~1")
    answer = fetch(
        served, b"want " + main, b"have " + main, b"shallow " + shallow, b"deepen 2147483647", b"done"
    )
    assert answer.lines[:3] == [b"shallow-info", b"unshallow " + shallow, DELIM]
    (client / "shallow").unlink()
    sent = unpack(served.git, answer.pack, client)
    assert main.decode() not in sent
    assert shallow.decode() not in sent
    assert served.objects("main~2") - served.objects("main~1^{tree}", "main^{tree}") <= sent
    served.git("fsck", "--full", "--strict", cwd=client)
    assert served.git("rev-list", "--objects", "main", cwd=client).count("\n") + 1 == len(
        served.objects("main")
    )


def test_plain_fetch_into_a_shallow_clone(served: Served, tmp_path: Path) -> None:
    client = shallow_clone(served, tmp_path, 1)
    old = served.oid("main")
    new = served.commit("dir/new.txt", "new\n")
    for version in (2, 0):
        if version == 2:
            answer = fetch(served, b"want " + new, b"shallow " + old, b"have " + old, b"done")
            assert answer.lines == [b"shallow-info", DELIM, b"packfile"]
        else:
            wants = [b"want " + new + CAPS, b"shallow " + old, FLUSH]
            channel, _ = serve(served, v0_body(*wants, b"have " + old, b"done"), 0)
            answer = read_answer(channel.response, is_banded_from=2)
            assert answer.lines == [b"ACK " + old + b" common", b"ACK " + old]
        sent = unpack(served.git, answer.pack, client)
        assert sent == served.objects("main", "^main~1")
    # One level down again: what lies behind the client's shallow commit is not sent, though it lacks it.
    answer = fetch(served, b"want " + old, b"shallow " + old, b"done")
    into = tmp_path / "x.git"
    served.git("init", "-q", "--bare", into)
    (into / "shallow").write_bytes(old + b"\n")
    assert unpack(served.git, answer.pack, into) == served.objects("main~1^{tree}") | {old.decode()}


def test_shallow_lines_of_v0(served: Served, tmp_path: Path) -> None:
    main = served.oid("main")
    wants = [b"want " + main + CAPS, b"deepen 2", FLUSH]
    # Over HTTP the client asks for the shallow lines first, and then for all of it.
    channel, report = serve(served, v0_body(*wants), 0)
    assert PktLineDecoder().feed(bytes(channel.response)) == [b"shallow " + served.oid("main~1"), FLUSH]
    assert report.objects == 0
    channel, _ = serve(served, v0_body(*wants, b"done"), 0)
    answer = read_answer(channel.response, is_banded_from=3)
    assert answer.lines == [b"shallow " + served.oid("main~1"), FLUSH, b"NAK"]
    into = tmp_path / "new.git"
    served.git("init", "-q", "--bare", into)
    (into / "shallow").write_bytes(served.oid("main~1") + b"\n")
    assert {main.decode(), served.oid("main~1").decode()} <= unpack(served.git, answer.pack, into)


def test_a_shallow_commit_we_do_not_know_is_let_be(served: Served) -> None:
    answer = fetch(served, b"want " + served.oid("main"), b"shallow " + UNKNOWN, b"done")
    assert int.from_bytes(answer.pack[8:12], "big") == len(served.objects("main"))


def test_from_a_repository_that_is_shallow_itself(served: Served, tmp_path: Path) -> None:
    path = shallow_clone(served, tmp_path / "root", 2)
    shallow = Served(served.git, path, served.work)
    end = shallow.oid("main~1")
    answer = fetch(shallow, b"want " + shallow.oid("main"), b"done")
    assert answer.lines == [b"shallow-info", b"shallow " + end, DELIM, b"packfile"]
    into = tmp_path / "new.git"
    served.git("init", "-q", "--bare", into)
    (into / "shallow").write_bytes(end + b"\n")
    assert unpack(served.git, answer.pack, into) == shallow.objects("main")
    # v0 said so in the advertisement.
    channel, _ = serve(shallow, v0_body(b"want " + shallow.oid("main") + CAPS, FLUSH, b"done"), 0)
    assert read_answer(channel.response, is_banded_from=1).pack == answer.pack
    # Deeper than there is.
    answer = fetch(shallow, b"want " + shallow.oid("main"), b"deepen 100", b"done")
    assert answer.lines[:2] == [b"shallow-info", b"shallow " + end]


# ------------------------------------------------------------------------------------------------------ v0


@pytest.mark.parametrize("version", [0, 1])
def test_v0_clone(served: Served, tmp_path: Path, version: int) -> None:
    channel, _ = serve(
        served, v0_body(b"want " + served.oid("main") + CAPS + b"\n", FLUSH, b"done\n"), version
    )
    answer = read_answer(channel.response, is_banded_from=1)
    assert answer.lines == [b"NAK"]
    assert answer.is_finished
    assert unpack(served.git, answer.pack, tmp_path / "new.git") == served.objects("main")


def test_v0_without_any_capability(served: Served, tmp_path: Path) -> None:
    channel, _ = serve(served, v0_body(b"want " + served.oid("main"), FLUSH, b"done"), 0)
    assert channel.response.startswith(b"0008NAK\nPACK")
    assert unpack(served.git, bytes(channel.response[8:]), tmp_path / "new.git") == served.objects("main")
    assert not channel.keepalives


def test_v0_small_side_band(served: Served, tmp_path: Path) -> None:
    channel, _ = serve(served, v0_body(b"want " + served.oid("main") + b" side-band", FLUSH, b"done"), 0)
    answer = read_answer(channel.response, is_banded_from=1)
    assert unpack(served.git, answer.pack, tmp_path / "new.git") == served.objects("main")
    lines = [line for line in PktLineDecoder().feed(bytes(channel.response)) if isinstance(line, bytes)]
    assert max(map(len, lines)) <= 996


def v0_round(served: Served, caps: bytes, *haves: bytes) -> list[bytes | Special]:
    body = v0_body(b"want " + served.oid("main") + caps, FLUSH, *[b"have " + oid for oid in haves], FLUSH)
    channel, _ = serve(served, body, 0)
    return PktLineDecoder().feed(bytes(channel.response))


def test_v0_rounds_over_http(served: Served) -> None:
    old, topic = served.oid("main~4"), served.oid("topic")
    assert v0_round(served, CAPS, UNKNOWN) == [b"NAK\n"]
    # Not an ancestor of main, but common.
    assert v0_round(served, b" multi_ack_detailed", topic) == [b"ACK " + topic + b" common\n", b"NAK\n"]
    assert v0_round(served, b" multi_ack_detailed", UNKNOWN, old) == [
        b"ACK " + old + b" common\n",
        b"ACK " + old + b" ready\n",
        b"NAK\n",
    ]
    assert v0_round(served, b" multi_ack", old, UNKNOWN) == [
        b"ACK " + old + b" continue\n",
        b"ACK " + UNKNOWN + b" continue\n",
        b"NAK\n",
    ]
    assert v0_round(served, b" multi_ack", topic, UNKNOWN) == [b"ACK " + topic + b" continue\n", b"NAK\n"]
    assert v0_round(served, b"", UNKNOWN, old, topic) == [b"ACK " + old + b"\n"]
    assert v0_round(served, b"", UNKNOWN) == [b"NAK\n"]


def test_v0_no_done_sends_the_pack_when_ready(served: Served) -> None:
    old = served.oid("main~4")
    body = v0_body(b"want " + served.oid("main") + CAPS, FLUSH, b"have " + old, FLUSH)
    channel, _ = serve(served, body, 0)
    answer = read_answer(channel.response, is_banded_from=4)
    assert answer.lines == [b"ACK " + old + b" common", b"ACK " + old + b" ready", b"NAK", b"ACK " + old]
    assert answer.is_finished
    assert int.from_bytes(answer.pack[8:12], "big") == len(served.objects("main", "^main~4"))


def test_v0_over_one_connection(served: Served) -> None:
    old = served.oid("main~4")
    caps = b" multi_ack_detailed side-band-64k ofs-delta"
    wants = v0_body(b"want " + served.oid("main") + caps, FLUSH)
    rounds = v0_body(b"have " + UNKNOWN, FLUSH, b"have " + old, FLUSH, b"done")
    channel, report = serve(served, wants + rounds, 0, stateless=False)
    lines = PktLineDecoder().feed(bytes(channel.response))
    start = lines.index(FLUSH) + 1
    assert b"no-done" not in bytes(channel.response[:400])
    answer = read_answer(channel.response, is_banded_from=start + 5)
    assert answer.lines[start:] == [
        b"NAK",
        b"ACK " + old + b" common",
        b"ACK " + old + b" ready",
        b"NAK",
        b"ACK " + old,
    ]
    assert report.objects == len(served.objects("main", "^main~4"))


def test_v2_over_one_connection(served: Served) -> None:
    body = v2_body(command=b"ls-refs") + v2_body(b"want " + served.oid("main"), b"done") + FLUSH_PKT
    channel, report = serve(served, body, 2, stateless=False)
    assert channel.response.startswith(b"000eversion 2\n")
    assert read_answer(channel.response).is_finished
    assert report.objects == len(served.objects("main"))


def test_what_v0_lets_one_want(served: Served) -> None:
    dangling = served.git("commit-tree", "-m", "x", "main^{tree}", cwd=served.path).encode()
    for want, is_ours in [
        (served.oid("main"), True),
        (served.oid("v1"), True),
        (served.oid("main~3"), True),
        (served.oid("v1^{}"), True),
        (dangling, False),
        (served.oid("main:big.txt"), True),
        (served.oid("main^{tree}"), True),
        (UNKNOWN, False),
    ]:
        channel, report = serve(served, v0_body(b"want " + want + CAPS, FLUSH, b"done"), 0)
        if is_ours:
            assert channel.response.startswith(b"0008NAK\n")
        else:
            assert channel.response == pkt(b"ERR upload-pack: not our ref " + want + b"\n")
            assert report.failed
    channel, report = serve(served, v2_body(b"want " + dangling, b"done"))
    assert channel.response == pkt(b"ERR upload-pack: not our ref " + dangling + b"\n")


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(
            v2_body(b"want " + UNKNOWN, b"done"), b"upload-pack: not our ref " + UNKNOWN, id="not-ours"
        ),
        pytest.param(v2_body(command=b"push"), b"invalid command 'push'", id="command"),
        pytest.param(v2_body(b"filtre blob:none"), b"unexpected line: 'filtre blob:none'", id="argument"),
        pytest.param(v2_body()[:-4], b"the remote end hung up unexpectedly", id="cut"),
        pytest.param(v2_body()[:-6], b"the remote end hung up unexpectedly", id="cut-in-packet"),
        pytest.param(b"0003", b"protocol error: bad line length 3", id="length"),
        pytest.param(b"GET / HTTP/1.1", b"protocol error: bad line length character: GET ", id="no-pkt-line"),
        pytest.param(
            v2_body()[:-4] + b"0001", b"protocol error: got an unexpected packet", id="second-delim"
        ),
        pytest.param(
            pkt(b"command=fetch") + pkt(b"object-format=sha256") + FLUSH_PKT,
            b"mismatched object format: server sha1; client sha256",
            id="object-format",
        ),
        pytest.param(
            v2_body(b"want " + b"a" * 64), b"git upload-pack: protocol error, expected to get", id="oid"
        ),
    ],
)
def test_v2_errors_are_told(served: Served, body: bytes, text: bytes) -> None:
    channel, report = serve(served, body)
    (line,) = PktLineDecoder().feed(bytes(channel.response))
    assert isinstance(line, bytes)
    assert line.startswith(b"ERR " + text)
    assert report.failed
    assert report.note.encode().startswith(text)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        pytest.param(
            [b"hello", FLUSH], b"git upload-pack: protocol error, expected to get object ID", id="no-want"
        ),
        pytest.param(
            [b"want " + UNKNOWN, FLUSH, b"done"], b"upload-pack: not our ref " + UNKNOWN, id="unknown"
        ),
    ],
)
def test_v0_errors_are_told(served: Served, lines: list[bytes | Special], text: bytes) -> None:
    channel, _ = serve(served, v0_body(*lines), 0)
    (line,) = PktLineDecoder().feed(bytes(channel.response))
    assert isinstance(line, bytes)
    assert line.startswith(b"ERR " + text)


def test_v0_errors_in_the_haves_are_told(served: Served) -> None:
    wants = v0_body(b"want " + served.oid("main"), FLUSH)
    for rest, text in [
        (pkt(b"hello"), b"ERR git upload-pack: expected SHA1 list, got 'hello'\n"),
        (pkt(b"have x"), b"ERR git upload-pack: expected SHA1 object, got 'x'\n"),
        (pkt(b"have " + UNKNOWN), b"ERR the remote end hung up unexpectedly\n"),
        (b"0001", b"ERR protocol error: got an unexpected packet\n"),
    ]:
        channel, _ = serve(served, wants + rest, 0)
        assert channel.response == pkt(text)


def test_a_shallow_line_that_names_no_commit(served: Served) -> None:
    tree = served.oid("main^{tree}")
    channel, _ = serve(served, v2_body(b"want " + served.oid("main"), b"shallow " + tree, b"done"))
    assert channel.response == pkt(b"ERR invalid shallow object " + tree + b"\n")


def test_too_many_lines(served: Served) -> None:
    options = ServiceOptions(fetch_lines=3)
    want = served.oid("main")
    for version, body in [
        (2, v2_body(b"want " + want, *[b"have " + UNKNOWN] * 3)),
        (0, v0_body(*[b"want " + want] * 4, FLUSH)),
        (0, v0_body(b"want " + want, FLUSH, *[b"have " + UNKNOWN] * 4)),
    ]:
        channel, report = serve(served, body, version, options=options)
        assert channel.response[4:].startswith(b"ERR request has more than 3 ")
        assert report.failed


def test_a_peer_that_leaves(served: Served) -> None:
    body = v2_body(b"want " + served.oid("main"), b"done")
    for channel in [
        BytesChannel(body[:-4], fail_read=Disconnected("gone")),
        BytesChannel(body[:-6], fail_read=Disconnected("gone")),
    ]:
        with pytest.raises(Disconnected):
            upload_pack(served.open(), channel, version=2, options=ServiceOptions())
        assert channel.response == b""

    def leave(written: int) -> None:
        if written > 40:
            raise Disconnected("gone")

    channel = BytesChannel(body, fail_write=leave)
    with pytest.raises(Disconnected):
        upload_pack(served.open(), channel, version=2, options=ServiceOptions())
    assert len(channel.response) < 200


def lose_an_object(served: Served) -> None:
    """Take the blob of the last commit, which is loose, away."""
    oid = served.oid("main:dir/last.txt").decode()
    (served.path / "objects" / oid[:2] / oid[2:]).unlink()


@pytest.mark.parametrize("version", [0, 2])
def test_a_broken_repository_never_gives_a_pack_that_looks_whole(
    served: Served, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    want = served.oid("main")
    lose_an_object(served)
    if version == 2:
        channel, report = serve(served, v2_body(b"want " + want, b"done"))
        answer = read_answer(channel.response)
    else:
        channel, report = serve(served, v0_body(b"want " + want + CAPS, FLUSH, b"done"), 0)
        answer = read_answer(channel.response, is_banded_from=1)
    assert answer.error == (
        b"upload-pack: aborting due to possible repository corruption on the remote side."
    )
    assert report.failed
    assert "broke off" in caplog.text
    caplog.clear()


def test_a_broken_repository_without_side_band_breaks_the_connection(served: Served) -> None:
    body = v0_body(b"want " + served.oid("main"), FLUSH, b"done")
    lose_an_object(served)
    with pytest.raises(ObjectMissing):
        upload_pack(served.open(), BytesChannel(body), version=0, options=ServiceOptions())


GARBAGE = st.lists(
    st.binary(max_size=60).map(pkt)
    | st.binary(max_size=8)
    | st.sampled_from(
        [FLUSH_PKT, DELIM_PKT, b"0002", pkt(b"command=fetch"), pkt(b"command=ls-refs"), pkt(b"done"),
         pkt(b"deepen 1"), pkt(b"want " + UNKNOWN), pkt(b"have " + UNKNOWN), pkt(b"shallow " + UNKNOWN)]
    ),
    max_size=8,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(pieces=GARBAGE, version=st.sampled_from([0, 1, 2]))
def test_garbage_is_answered_with_err(served: Served, pieces: list[bytes], version: int) -> None:
    channel, report = serve(served, b"".join(pieces), version)
    answer = PktLineDecoder().feed(bytes(channel.response))
    assert report.failed is any(isinstance(line, bytes) and line.startswith(b"ERR ") for line in answer)


@pytest.mark.parametrize("version", [0, 2])
def test_100000_haves_take_about_a_second(served: Served, version: int) -> None:
    haves = [b"have %040x" % number for number in range(1, 100_001)]
    haves[::2] = [b"have " + served.oid("main~2")] * 50_000
    want = b"want " + served.oid("main")
    body = v2_body(want, *haves) if version == 2 else v0_body(want + CAPS, FLUSH, *haves, FLUSH)
    start = time.perf_counter()
    channel, _ = serve(served, body, version)
    assert time.perf_counter() - start < 3  # measured: 0.3 s
    assert b"ready\n" in channel.response


def test_100000_wants_take_about_a_second(served: Served) -> None:
    wants = [b"want " + served.oid("main~2"), *[b"want %040x" % number for number in range(1, 100_001)]]
    for version, body in [(2, v2_body(*wants, b"done")), (0, v0_body(*wants, FLUSH, b"done"))]:
        start = time.perf_counter()
        channel, _ = serve(served, body, version)
        assert time.perf_counter() - start < 3  # measured: 0.3 s
        assert channel.response[4:].startswith(b"ERR upload-pack: not our ref ")
