"""Filters and wants of what no ref names: asked byte by byte, compared with what C git would send."""

import time
from pathlib import Path

import pytest

from gitsmart.repo import reachability
from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.service.advertise import advertise
from gitsmart.service.options import ServiceOptions, ServiceReport
from gitsmart.service.upload_pack import upload_pack
from gitsmart.wire.pktline import DELIM_PKT, FLUSH_PKT, PktLineDecoder, pkt
from tests.service.conftest import Answer, BytesChannel, Git, Served, read_answer

CAPS = b" side-band-64k no-progress ofs-delta"


def post(served: Served, version: int, *lines: bytes, filter: bytes = b"") -> tuple[bytes, ServiceReport]:
    """A clone's request by its wants, in the version's words; the raw answer."""
    wants = [b"want " + line for line in lines]
    if version == 2:
        head = [b"command=fetch", b"object-format=sha1"]
        arguments = [*wants, *([b"filter " + filter] if filter else []), b"no-progress", b"done"]
        body = b"".join(map(pkt, head)) + DELIM_PKT + b"".join(map(pkt, arguments)) + FLUSH_PKT
    else:
        wants[0] += CAPS + (b" filter" if filter else b"")
        arguments = [*wants, *([b"filter " + filter] if filter else [])]
        body = b"".join(map(pkt, arguments)) + FLUSH_PKT + pkt(b"done")
    channel = BytesChannel(body)
    report = upload_pack(served.open(), channel, version=version, options=ServiceOptions())
    return bytes(channel.response), report


def fetch(served: Served, version: int, *wants: bytes, filter: bytes = b"") -> Answer:
    response, report = post(served, version, *wants, filter=filter)
    assert not report.failed, report.note
    answer = read_answer(response, is_banded_from=None if version == 2 else 1)
    assert answer.is_finished
    return answer


def refusal(served: Served, version: int, *wants: bytes, filter: bytes = b"") -> str:
    """The text of the ERR that is all of the answer."""
    response, report = post(served, version, *wants, filter=filter)
    (line,) = PktLineDecoder().feed(response)
    assert isinstance(line, bytes)
    assert line.startswith(b"ERR ")
    assert report.failed
    return line[4:].decode().rstrip("\n")


def objects_in(git: Git, pack: bytes, into: Path) -> set[str]:
    if not into.exists():
        git("init", "-q", "--bare", into)
    git("index-pack", "--stdin", cwd=into, data=pack)
    newest = max(into.glob("objects/pack/*.idx"), key=lambda path: path.stat().st_mtime_ns)
    return {row.split()[1] for row in git("show-index", data=newest.read_bytes()).splitlines()}


@pytest.fixture(params=[0, 1, 2], ids=["v0", "v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def sparse(served: Served) -> str:
    served.commit("patterns", "/dir/\n")
    return served.oid("main:patterns").decode()


# -- filters


@pytest.mark.parametrize(
    "spec",
    ["blob:none", "blob:limit=20", "blob:limit=1k", "tree:0", "tree:1", "tree:2", "object:type=blob",
     "sparse:oid=SPARSE", "combine:blob:limit=1k+tree:2", "combine:tree:1+sparse:oid=SPARSE"],
)  # fmt: skip
def test_sends_what_git_does(served: Served, tmp_path: Path, version: int, sparse: str, spec: str) -> None:
    spec = spec.replace("SPARSE", sparse)
    main = served.oid("main")
    answer = fetch(served, version, main, filter=spec.encode())
    expected = served.objects("main", f"--filter={spec}")
    assert objects_in(served.git, answer.pack, tmp_path / "new.git") == expected
    assert expected < served.objects("main")


def test_patterns_are_named_by_rev_and_path(
    served: Served, tmp_path: Path, version: int, sparse: str
) -> None:
    expected = served.objects("main", f"--filter=sparse:oid={sparse}")
    main = served.oid("main")
    for name in (b"main:patterns", b"HEAD:patterns", b"refs/heads/main:patterns", main + b":patterns"):
        answer = fetch(served, version, main, filter=b"sparse:oid=" + name)
        assert objects_in(served.git, answer.pack, tmp_path / "new.git") == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere:patterns", "unable to access sparse blob in 'nowhere:patterns'"),
        ("main:nothing", "unable to access sparse blob in 'main:nothing'"),
        ("main:big.txt/x", "unable to access sparse blob in 'main:big.txt/x'"),
        ("1" * 40, f"unable to access sparse blob in '{'1' * 40}'"),
        ("main:dir", "unable to parse sparse filter data in {main:dir}"),
        ("main", "unable to parse sparse filter data in {main}"),
    ],
)
def test_patterns_that_are_not_there(served: Served, version: int, name: str, text: str) -> None:
    main = served.oid("main")
    if "{" in text:
        rev = text[text.index("{") + 1 : -1]
        text = text.replace("{" + rev + "}", served.oid(rev).decode())
    assert refusal(served, version, main, filter=b"sparse:oid=" + name.encode()) == text


def test_patterns_that_may_not_be_seen(served: Served, version: int) -> None:
    oid = served.git("hash-object", "-w", "--stdin", cwd=served.path, data=b"/secret/\n").encode()
    main = served.oid("main")
    expected = f"unable to access sparse blob in '{oid.decode()}'"
    assert refusal(served, version, main, filter=b"sparse:oid=" + oid) == expected
    served.git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=served.path)
    assert fetch(served, version, main, filter=b"sparse:oid=" + oid).pack


def test_malformed_filters_are_told(served: Served, version: int) -> None:
    main = served.oid("main")
    assert refusal(served, version, main, filter=b"blob:some") == "invalid filter-spec 'blob:some'"
    assert refusal(served, version, main, filter=b"tree:x") == "expected 'tree:<depth>'"


def test_one_filter_only(served: Served) -> None:
    main = served.oid("main")
    expected = "multiple filter-specs cannot be combined"
    two = b"blob:none"
    head = b"".join(map(pkt, [b"command=fetch", b"object-format=sha1"])) + DELIM_PKT
    lines = [b"want " + main, b"filter " + two, b"filter " + two, b"done"]
    channel = BytesChannel(head + b"".join(map(pkt, lines)) + FLUSH_PKT)
    upload_pack(served.open(), channel, version=2, options=ServiceOptions())
    assert channel.response == pkt(b"ERR " + expected.encode() + b"\n")


def test_filters_can_be_refused(served: Served, version: int) -> None:
    def config(name: str, value: str) -> None:
        served.git("config", name, value, cwd=served.path)

    main = served.oid("main")
    config("uploadpackfilter.blob:limit.allow", "false")
    assert refusal(served, version, main, filter=b"blob:limit=3") == "filter 'blob:limit' not supported"
    spec = b"combine:tree:1+combine:blob:limit=1%2Bblob:none"
    assert refusal(served, version, main, filter=spec) == "filter 'blob:limit' not supported"
    assert fetch(served, version, main, filter=b"blob:none").pack
    config("uploadpackfilter.tree.maxDepth", "2")
    assert fetch(served, version, main, filter=b"tree:2").pack
    expected = "tree filter allows max depth 2, but got 3"
    assert refusal(served, version, main, filter=b"combine:tree:3+tree:1") == expected
    config("uploadpackfilter.allow", "false")
    assert refusal(served, version, main, filter=b"blob:none") == "filter 'blob:none' not supported"
    assert fetch(served, version, main, filter=b"tree:2").pack
    config("uploadpackfilter.blob:none.allow", "true")
    assert fetch(served, version, main, filter=b"blob:none").pack
    expected = "filter 'combine' not supported"
    assert refusal(served, version, main, filter=b"combine:blob:none+tree:0") == expected
    config("uploadpack.allowFilter", "false")
    expected = {
        2: "unexpected line: 'filter blob:none'",
    }.get(version, "git upload-pack: filtering capability not negotiated")
    assert refusal(served, version, main, filter=b"blob:none") == expected


def test_depth_and_filter_together(served: Served, tmp_path: Path) -> None:
    main = served.oid("main")
    head = b"".join(map(pkt, [b"command=fetch", b"object-format=sha1"])) + DELIM_PKT
    lines = [b"want " + main, b"deepen 1", b"filter blob:none", b"no-progress", b"done"]
    channel = BytesChannel(head + b"".join(map(pkt, lines)) + FLUSH_PKT)
    upload_pack(served.open(), channel, version=2, options=ServiceOptions())
    answer = read_answer(channel.response)
    assert answer.lines[:2] == [b"shallow-info", b"shallow " + main]
    trees = served.objects("main^{tree}", "--filter=blob:none")
    assert objects_in(served.git, answer.pack, tmp_path / "new.git") == {main.decode()} | trees


def test_tags_of_what_is_sent_go_along(served: Served, tmp_path: Path) -> None:
    head = b"".join(map(pkt, [b"command=fetch", b"object-format=sha1"])) + DELIM_PKT
    lines = [b"want " + served.oid("main"), b"include-tag", b"filter tree:0", b"done"]
    channel = BytesChannel(head + b"".join(map(pkt, lines)) + FLUSH_PKT)
    upload_pack(served.open(), channel, version=2, options=ServiceOptions())
    sent = objects_in(served.git, read_answer(channel.response).pack, tmp_path / "new.git")
    assert sent == served.objects("main", "v1", "--filter=tree:0")


# -- wants


def make_alone(served: Served) -> list[bytes]:
    """A commit that no ref leads to, its tree and its blob."""
    blob = served.git("hash-object", "-w", "--stdin", cwd=served.path, data=b"of no ref\n")
    tree = served.git("mktree", cwd=served.path, data=b"100644 blob " + blob.encode() + b"\tf\n")
    commit = served.git("commit-tree", "-m", "x", "-p", "main", tree, cwd=served.path)
    return [oid.encode() for oid in (commit, tree, blob)]


def test_what_refs_lead_to_may_be_asked_for(served: Served, tmp_path: Path, version: int) -> None:
    for rev in ("main~3", "v1^{}", "main~2^{tree}", "main~2:big.txt", "topic:dir", "v1"):
        answer = fetch(served, version, served.oid(rev))
        assert objects_in(served.git, answer.pack, tmp_path / "new.git") == served.objects(rev)


def test_a_blob_that_is_asked_for_comes_alone_and_in_spite_of_the_filter(
    served: Served, tmp_path: Path, version: int
) -> None:
    blobs = [served.oid("main:big.txt"), served.oid("main~3:big.txt")]
    answer = fetch(served, version, *blobs, filter=b"blob:none")
    sent = objects_in(served.git, answer.pack, tmp_path / "new.git")
    assert sent == {blob.decode() for blob in blobs}


def test_what_no_ref_leads_to_is_refused_unless_config_says_otherwise(served: Served, version: int) -> None:
    alone = make_alone(served)
    for want in alone:
        expected = f"upload-pack: not our ref {want.decode()}"
        assert refusal(served, version, want) == expected
        assert refusal(served, version, served.oid("main"), want) == expected
    served.git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=served.path)
    for want in alone:
        assert fetch(served, version, want).pack
    missing = b"1" * 40
    assert refusal(served, version, missing) == f"upload-pack: not our ref {missing.decode()}"


def test_what_a_deleted_branch_led_to_is_refused_again(served: Served, version: int) -> None:
    blob, commit = served.oid("topic:dir/topic.txt"), served.oid("topic")
    assert fetch(served, version, blob).pack
    served.git("update-ref", "-d", "refs/heads/topic", cwd=served.path)
    assert refusal(served, version, blob) == f"upload-pack: not our ref {blob.decode()}"
    assert refusal(served, version, commit) == f"upload-pack: not our ref {commit.decode()}"


def test_what_a_client_was_told_of_stays_good_for_a_moment(served: Served) -> None:
    """A ref that is deleted or moved between the listing and the fetch breaks neither."""
    repo = served.open()

    def ask(*lines: bytes, command: bytes = b"fetch") -> bytes:
        head = b"".join(map(pkt, [b"command=" + command, b"object-format=sha1"])) + DELIM_PKT
        channel = BytesChannel(head + b"".join(map(pkt, lines)) + FLUSH_PKT)
        upload_pack(repo, channel, version=2, options=ServiceOptions())
        return bytes(channel.response)

    topic, blob = served.oid("topic"), served.oid("topic:dir/topic.txt")
    assert topic in ask(command=b"ls-refs")
    served.git("update-ref", "-d", "refs/heads/topic", cwd=served.path)
    for want in (b"want " + topic, b"want " + blob, b"want-ref refs/heads/topic"):
        assert b"packfile\n" in ask(want, b"done")
    served.git("config", "transfer.hideRefs", "refs/heads/other", cwd=served.path)
    for want in (b"want " + topic, b"want " + blob, b"want-ref refs/heads/topic"):
        assert ask(want, b"done")[4:8] == b"ERR "


def test_what_a_push_deleted_stays_good_for_those_who_are_told_nothing(served: Served, version: int) -> None:
    """Each request comes to a process of its own."""
    topic, blob = served.oid("topic"), served.oid("topic:dir/topic.txt")
    alone = make_alone(served)
    repo = served.open()
    with repo.begin_push() as push:
        update = RefUpdate(b"refs/heads/topic", topic, repo.format.zero)
        assert push.commit([update], atomic=False, identity=ReflogIdentity("a", "b")) == [None]
    for want in (topic, blob):
        assert fetch(served, version, want).pack
        assert fetch(served, version, served.oid("main"), want).pack
    for want in alone:
        assert refusal(served, version, want) == f"upload-pack: not our ref {want.decode()}"
    served.git("config", "uploadpack.hideRefs", "refs/heads/topic", cwd=served.path)
    for want in (topic, blob):
        assert refusal(served, version, want) == f"upload-pack: not our ref {want.decode()}"


def test_hidden_refs_count_where_config_says_so(served: Served, version: int) -> None:
    def config(name: str, value: str) -> None:
        served.git("config", name, value, cwd=served.path)

    wants = [served.oid(rev) for rev in ("topic", "topic~1", "topic:dir/topic.txt")]
    config("transfer.hideRefs", "refs/heads/topic")
    for want in wants:
        assert refusal(served, version, want) == f"upload-pack: not our ref {want.decode()}"
    for name in ("allowTipSHA1InWant", "allowReachableSHA1InWant"):
        config(f"uploadpack.{name}", "true")
        for want in wants:
            assert fetch(served, version, want).pack
        served.git("config", "--unset", f"uploadpack.{name}", cwd=served.path)
    for want in wants:
        assert refusal(served, version, want) == f"upload-pack: not our ref {want.decode()}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, [b"allow-reachable-sha1-in-want", b"filter"]),
        (
            {"allowTipSHA1InWant": "true"},
            [b"allow-tip-sha1-in-want", b"allow-reachable-sha1-in-want", b"filter"],
        ),
        ({"allowReachableSHA1InWant": "false"}, [b"filter"]),
        ({"allowReachableSHA1InWant": "false", "allowFilter": "false"}, []),
        (
            {"allowReachableSHA1InWant": "false", "allowAnySHA1InWant": "true", "allowFilter": "false"},
            [b"allow-tip-sha1-in-want", b"allow-reachable-sha1-in-want"],
        ),
    ],
)
def test_what_v0_is_told(served: Served, settings: dict[str, str], words: list[bytes]) -> None:
    for name, value in settings.items():
        served.git("config", f"uploadpack.{name}", value, cwd=served.path)
    channel = BytesChannel()
    advertise(served.open(), channel, service="git-upload-pack", version=0, options=ServiceOptions())
    line = PktLineDecoder().feed(bytes(channel.response))[2]
    assert isinstance(line, bytes)
    told = line.partition(b"\0")[2].split()
    assert [word for word in told if word.endswith(b"-in-want") or word == b"filter"] == words


def test_over_one_connection_only_what_was_advertised_when_config_says_so(served: Served) -> None:
    want = served.oid("main~3")
    body = pkt(b"want " + want + CAPS) + FLUSH_PKT + pkt(b"done")
    for value, is_served in (("true", True), ("false", False)):
        served.git("config", "uploadpack.allowReachableSHA1InWant", value, cwd=served.path)
        channel = BytesChannel(body)
        report = upload_pack(served.open(), channel, version=0, options=ServiceOptions(), stateless=False)
        assert report.failed is not is_served
        assert channel.response.endswith(b"not our ref " + want + b"\n") is not is_served


def test_lazy_fetches_look_at_trees_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone without blobs proves all of them; where there was none, HEAD's trees are looked at once."""
    calls = 0
    expand = reachability.expand_trees  # type: ignore[attr-defined]

    def counting(*args: object, **more: object) -> set[bytes]:
        nonlocal calls
        calls += 1
        return expand(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(reachability, "expand_trees", counting)
    monkeypatch.setattr(reachability, "bitmaps_of", lambda store: None)  # with bitmaps no trees are looked at
    repo = served.open()

    def ask(*arguments: bytes) -> None:
        head = b"".join(map(pkt, [b"command=fetch", b"object-format=sha1"])) + DELIM_PKT
        channel = BytesChannel(head + b"".join(map(pkt, [*arguments, b"done"])) + FLUSH_PKT)
        assert not upload_pack(repo, channel, version=2, options=ServiceOptions()).failed

    blobs = [served.oid(rev) for rev in ("main:big.txt", "main:dir/last.txt")]
    for blob in blobs:
        ask(b"want " + blob, b"filter blob:none")
    assert calls == 1
    repo = served.open()
    ask(b"want " + served.oid("main"), b"filter blob:none")
    for blob in (*blobs, served.oid("main~4:big.txt")):
        ask(b"want " + blob, b"filter blob:none")
    assert calls == 1
    started = time.monotonic()
    for _ in range(20):
        ask(b"want " + blobs[0], b"filter blob:none")
    assert (time.monotonic() - started) / 20 < 0.05  # 1 ms, where nothing else runs
