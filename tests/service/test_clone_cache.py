"""Fetches through the clone cache: what is sent is what would be sent without it, always."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import Disconnected
from gitsmart.pack.packcache import PackCache
from gitsmart.service import pack_plan
from gitsmart.service import upload_pack as module
from gitsmart.service.options import ServiceOptions
from gitsmart.service.pack_plan import PackPlan
from gitsmart.service.upload_pack import upload_pack
from tests.pack.test_packcache import settle
from tests.service.conftest import BytesChannel, Git, Served, read_answer
from tests.service.test_upload_pack import unpack, v2_body

CAPS = (b"ofs-delta", b"thin-pack", b"no-progress")


class Clones:
    """Fetches from one server after another, which share a cache."""

    def __init__(self, served: Served, directory: Path) -> None:
        self.served = served
        self.directory = directory
        self.places = 0
        self.restart()

    def restart(self) -> None:
        settle()
        self.cache = PackCache(self.directory, limit_bytes=1 << 30, repository_bytes=1 << 30)
        self.repo = self.served.open()

    def fetch(self, *arguments: bytes) -> tuple[bytes, str]:
        """The pack of a fetch and the note of the report."""
        channel = BytesChannel(v2_body(*arguments, *CAPS, b"done"))
        options = ServiceOptions(pack_cache=self.cache)
        report = upload_pack(self.repo, channel, version=2, options=options)
        settle()
        answer = read_answer(channel.response)
        assert answer.is_finished, answer
        return answer.pack, report.note

    def refs(self) -> list[bytes]:
        oids = self.served.git("for-each-ref", "--format=%(objectname)", cwd=self.served.path)
        return sorted(set(oids.encode().split()))

    def clone(self) -> tuple[set[str], str]:
        """Fetch all refs: the oids that came, in a pack that git takes strictly, and the note."""
        pack, note = self.fetch(*[b"want " + oid for oid in self.refs()])
        self.places += 1
        into = self.directory.parent / f"clone{self.places}"
        found = unpack(self.served.git, pack, into)
        assert len(found) == int.from_bytes(pack[8:12], "big"), "an object came twice"
        return found, note


@pytest.fixture(name="clones")
def fixture_clones(served: Served, tmp_path: Path) -> Iterator[Clones]:
    yield Clones(served, tmp_path / "cache")
    settle()


def test_the_second_clone_is_the_first(served: Served, clones: Clones) -> None:
    want = [b"want " + oid for oid in clones.refs()]
    first, note = clones.fetch(*want)
    assert note == "clone"
    for _ in range(2):
        again, note = clones.fetch(*reversed(want))
        assert (again, note) == (first, "clone, cached")
        clones.restart()
    assert clones.clone() == (served.objects("--all"), "clone, cached")


def test_a_clone_after_a_push_is_built_on_what_there_is(
    served: Served, clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_plan, "_OUTGROWN", 1)
    clones.clone()
    haves: list[int] = []
    select = module.select_objects  # type: ignore[attr-defined]

    def selecting(*args: Any, **kwargs: Any) -> object:
        haves.append(len(list(kwargs["haves"])))
        return select(*args, **kwargs)

    monkeypatch.setattr(module, "select_objects", selecting)
    served.commit("dir/new.txt", "new\n")
    served.commit("big.txt", "all new\n" * 400)
    assert clones.clone() == (served.objects("--all"), "clone")
    assert haves.pop() > 0
    assert clones.clone() == (served.objects("--all"), "clone, cached")
    clones.restart()
    assert clones.clone() == (served.objects("--all"), "clone, cached")
    # a new branch at an old commit: nothing is added at all
    served.git("branch", "old", "main~2", cwd=served.path)
    assert clones.clone()[0] == served.objects("--all")
    # content that was in history long ago comes back: it's in the base, and not sent twice
    served.commit("dir/last.txt", "other\n")
    served.commit("dir/last.txt", "last\n")
    assert clones.clone()[0] == served.objects("--all")
    served.git("gc", "-q", "--prune=now", cwd=served.path)
    assert clones.clone()[0] == served.objects("--all")
    assert all(haves)


def test_what_is_gone_from_the_refs_is_gone_from_the_packs(served: Served, clones: Clones) -> None:
    everything, _ = clones.clone()
    served.git("update-ref", "refs/heads/main", "main~1", cwd=served.path)
    assert clones.clone()[0] == served.objects("--all") < everything
    served.git("branch", "-D", "topic", cwd=served.path)
    assert clones.clone()[0] == served.objects("--all")
    served.git("tag", "-d", "v1", cwd=served.path)
    assert clones.clone()[0] == served.objects("--all")
    served.git("gc", "-q", "--prune=now", cwd=served.path)
    clones.restart()
    assert clones.clone()[0] == served.objects("--all")
    served.git("update-ref", "refs/heads/main", "main~1", cwd=served.path)
    served.git("reflog", "expire", "--expire=now", "--all", cwd=served.path)
    served.git("gc", "-q", "--prune=now", cwd=served.path)
    assert clones.clone()[0] == served.objects("--all")


def test_tags_that_go_along_are_those_of_now(served: Served, clones: Clones, tmp_path: Path) -> None:
    main = b"want " + served.oid("main")

    def single_branch(place: str) -> set[str]:
        pack, _ = clones.fetch(main, b"include-tag")
        return unpack(served.git, pack, tmp_path / place)

    v1 = served.git("rev-parse", "v1", cwd=served.path)
    assert single_branch("a") == served.objects("main") | {v1}
    served.git("tag", "-a", "-m", "two", "v2", "main", cwd=served.path)
    served.git("tag", "-a", "-m", "not of main", "t", "topic", cwd=served.path)
    v2 = served.git("rev-parse", "v2", cwd=served.path)
    assert single_branch("b") == served.objects("main") | {v1, v2}
    served.git("tag", "-d", "v1", cwd=served.path)
    assert single_branch("c") == served.objects("main") | {v2}
    pack, _ = clones.fetch(main)
    assert unpack(served.git, pack, tmp_path / "d") == served.objects("main")


def test_hidden_refs_are_not_to_be_had_from_the_cache(served: Served, clones: Clones) -> None:
    topic = served.oid("topic")
    assert clones.fetch(b"want " + topic)[1] == "clone"
    served.git("config", "transfer.hideRefs", "refs/heads/topic", cwd=served.path)
    clones.restart()
    channel = BytesChannel(v2_body(b"want " + topic, *CAPS, b"done"))
    report = upload_pack(clones.repo, channel, version=2, options=ServiceOptions(pack_cache=clones.cache))
    assert report.failed
    assert b"not our ref" in channel.response
    # and what it reached is in no pack that is built on others
    clones.served.commit("more.txt", "more\n")
    main = b"want " + served.oid("main")
    pack, _ = clones.fetch(main)
    assert unpack(served.git, pack, clones.directory.parent / "clone") == served.objects("main")


@pytest.mark.parametrize(
    ("arguments", "revs"),
    [
        ([b"deepen 2"], ["--max-count=2"]),
        ([b"filter blob:none"], ["--filter=blob:none"]),
        ([b"filter tree:2"], ["--filter=tree:2"]),
        ([b"filter blob:limit=100"], ["--filter=blob:limit=100"]),
        ([b"deepen 1", b"filter blob:none"], ["--max-count=1", "--filter=blob:none"]),
    ],
    ids=lambda value: " ".join(map(str, value)).replace("b'", "").replace("'", ""),
)
def test_shallow_and_partial_clones_are_kept_apart(
    served: Served, clones: Clones, arguments: list[bytes], revs: list[str]
) -> None:
    for turn in range(2):
        want = b"want " + served.oid("main")
        whole, _ = clones.fetch(want)
        expected = {
            line.split()[0]
            for line in served.git("rev-list", "--objects", "main", *revs, cwd=served.path).splitlines()
        }
        for hint in ("", ", cached"):
            pack, note = clones.fetch(want, *arguments)
            assert note.startswith("clone")
            assert note.endswith("cached") == bool(hint)
            place = clones.directory.parent / "partial.git"
            served.git("init", "-q", "--bare", place)
            served.git("-c", "fsck.missing=ignore", "unpack-objects", "-q", cwd=place, data=pack)
            loose = {path.parent.name + path.name for path in place.glob("objects/??/*")}
            assert loose == expected
            assert pack != whole
            for path in place.glob("objects/??/*"):
                path.unlink()
        served.commit("dir/topic.txt", f"changed {turn}\n")


def test_fetches_of_the_same_are_shared_too(served: Served, clones: Clones) -> None:
    arguments = [b"want " + served.oid("main"), b"have " + served.oid("main~2")]
    first, note = clones.fetch(*arguments)
    assert note == "fetch"
    assert clones.fetch(*arguments) == (first, "fetch, cached")
    other, _ = clones.fetch(arguments[0], b"have " + served.oid("main~1"))
    assert int.from_bytes(other[8:12], "big") < int.from_bytes(first[8:12], "big")
    assert not clones.directory.exists()


def test_many_at_once_while_one_leaves(
    served: Served, clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = v2_body(*[b"want " + oid for oid in clones.refs()], *CAPS, b"done")
    made: list[int] = []
    together = threading.Barrier(24, timeout=20)
    select = module.select_objects  # type: ignore[attr-defined]

    def selecting(*args: Any, **kwargs: Any) -> object:
        made.append(1)
        return select(*args, **kwargs)

    monkeypatch.setattr(module, "select_objects", selecting)
    answers: list[bytes] = []

    def fail(written: int) -> None:
        if written > 3000:
            raise Disconnected("the client has gone")

    def one(number: int) -> None:
        channel = BytesChannel(body, fail_write=fail if number % 2 else None)
        together.wait()
        try:
            upload_pack(clones.repo, channel, version=2, options=ServiceOptions(pack_cache=clones.cache))
        except Disconnected:
            return
        answers.append(read_answer(channel.response).pack)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(answers) >= 12
    assert len(set(answers)) == 1
    assert made == [1]
    assert unpack(served.git, answers[0], clones.directory.parent / "x") == served.objects("--all")


def test_an_error_is_told_to_all_who_wait(
    served: Served, clones: Clones, caplog: pytest.LogCaptureFixture
) -> None:
    blob = served.git("rev-parse", "main:dir/last.txt", cwd=served.path)
    (served.path / "objects" / blob[:2] / blob[2:]).unlink()
    for _ in range(2):
        channel = BytesChannel(v2_body(b"want " + served.oid("main"), *CAPS, b"done"))
        report = upload_pack(clones.repo, channel, version=2, options=ServiceOptions(pack_cache=clones.cache))
        assert report.failed
        assert b"possible repository corruption" in read_answer(channel.response).error
        settle()
    assert not list(clones.directory.glob("*/*"))
    caplog.clear()


def test_a_client_without_side_band(served: Served, clones: Clones, git: Git, tmp_path: Path) -> None:
    body = b"".join(
        b"%04x%b" % (len(line) + 4, line) for line in [b"want " + served.oid("main") + b" ofs-delta\n"]
    )
    for _ in range(2):
        channel = BytesChannel(body + b"00000009done\n")
        upload_pack(clones.repo, channel, version=0, options=ServiceOptions(pack_cache=clones.cache))
        settle()
        assert channel.response.startswith(b"0008NAK\n")
        pack = bytes(channel.response[8:])
        assert unpack(git, pack, tmp_path / "bare") == served.objects("main")


def test_a_pack_of_the_repository_goes_out_as_it_is(served: Served, clones: Clones) -> None:
    served.git("repack", "-adq", cwd=served.path)
    (path,) = served.path.glob("objects/pack/*.pack")
    pack, _ = clones.fetch(*[b"want " + oid for oid in clones.refs()])
    assert pack == path.read_bytes()
    assert sum(file.stat().st_size for file in clones.directory.glob("*/*.pack")) < 6000
    clones.restart()
    assert clones.clone() == (served.objects("--all"), "clone, cached")
    # the pack that it was built on goes: it is made anew
    path.unlink()
    path.with_suffix(".idx").unlink()
    (served.path / "objects" / "pack" / "x").touch()
    served.git("fetch", "-q", served.work, "main", "topic", "v1", cwd=served.path)
    served.git("repack", "-adq", "--window=0", cwd=served.path)
    clones.restart()
    assert clones.clone() == (served.objects("--all"), "clone")


def test_a_pack_that_holds_more_is_not_sent_whole(served: Served, clones: Clones) -> None:
    served.git("repack", "-adq", cwd=served.path)
    everything = served.objects("--all")
    served.git("update-ref", "refs/heads/main", "main~1", cwd=served.path)
    served.git("repack", "-adkq", cwd=served.path)
    assert clones.clone()[0] == served.objects("--all") < everything
    served.git("update-ref", "-d", "refs/heads/topic", cwd=served.path)
    assert clones.clone()[0] == served.objects("--all")
    # without ofs-delta a pack that has such deltas can't be copied
    channel = BytesChannel(v2_body(b"want " + served.oid("main"), b"done"))
    upload_pack(clones.repo, channel, version=2, options=ServiceOptions(pack_cache=clones.cache))
    pack = read_answer(channel.response).pack
    place = clones.directory.parent / "refs-only"
    assert unpack(served.git, pack, place) == served.objects("main")
    settle()


def test_a_tag_brings_nothing_along_but_itself(served: Served, clones: Clones, tmp_path: Path) -> None:
    """A whole pack is no base where only a tag, which nobody asked for, leads to some of it."""
    tree = served.git("rev-parse", "main^{tree}", cwd=served.path).strip()
    apart = served.git("commit-tree", "-m", "apart", tree, cwd=served.path).strip()
    served.git("tag", "-a", "-m", "t", "apart", apart, cwd=served.path)
    main = served.git("rev-parse", "main", cwd=served.path).strip()
    served.git("tag", "-a", "-m", "t", "here", main, cwd=served.path)
    served.git("branch", "-D", "topic", cwd=served.path)
    served.git("repack", "-adq", cwd=served.path)
    clones.restart()
    for number in range(2):  # made, and out of the cache
        pack, _ = clones.fetch(b"want " + main.encode(), b"include-tag")
        found = unpack(served.git, pack, tmp_path / f"apart{number}")
        assert apart not in found
        assert found >= served.objects("main") | {served.git("rev-parse", "here", cwd=served.path).strip()}


FILTERS = ["blob:none", "blob:limit=400", "tree:0", "combine:blob:none+blob:limit=1k"]


@pytest.mark.parametrize("spec", [*FILTERS, "tree:1", "object:type=commit"])
def test_a_partial_clone_after_a_push_is_built_on_what_there_is(
    served: Served, clones: Clones, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.setattr(pack_plan, "_OUTGROWN", 0)
    built_on: list[int] = []
    write = PackPlan._write

    def writing(self: PackPlan, sink: Any, selection: Any, base: Any) -> Any:
        built_on.append(0 if base is None else base.count)
        return write(self, sink, selection, base)

    monkeypatch.setattr(PackPlan, "_write", writing)
    git, path = served.git, served.path

    def check(number: int) -> None:
        """What comes is what git sends, and nothing twice."""
        refs = clones.refs()
        pack, _ = clones.fetch(*[b"want " + oid for oid in refs], b"filter " + spec.encode(), b"include-tag")
        listed = git(
            "rev-list", "--objects", "--all", f"--filter={spec}", "--filter-provided-objects", cwd=path
        )
        expected = {line.split()[0] for line in listed.splitlines()} | {oid.decode() for oid in refs}
        place = clones.directory.parent / f"partial{number}.git"
        git("init", "-q", "--bare", place)
        (place / "x.pack").write_bytes(pack)
        git("index-pack", place / "x.pack")
        names = git("show-index", data=(place / "x.idx").read_bytes()).splitlines()
        assert len(names) == int.from_bytes(pack[8:12], "big")
        assert {line.split()[1] for line in names} == expected

    check(0)
    for number in range(1, 4):
        served.commit("dir/deep/new.txt", f"new {number}\n" * 40 * number)
        if number == 2:
            git("repack", "-adq", cwd=path)
            clones.restart()
        check(number)
    assert built_on[0] == 0
    assert all(count > 0 for count in built_on[1:]) == (spec in FILTERS)
    # a blob that is asked for comes, though the filter would leave it out and what there is leads to it
    blob = git("rev-parse", "main:dir/last.txt", cwd=path)
    pack, _ = clones.fetch(
        b"want " + served.oid("main"), b"want " + blob.encode(), b"filter " + spec.encode()
    )
    place = clones.directory.parent / "blob.git"
    git("init", "-q", "--bare", place)
    git("-c", "fsck.missing=ignore", "unpack-objects", "-q", cwd=place, data=pack)
    assert (place / "objects" / blob[:2] / blob[2:]).exists()
    if spec in FILTERS:
        # a ref that led to some of it is gone: it is no base
        git("update-ref", "refs/heads/main", "main~4", cwd=path)
        check(4)
        assert built_on[-1] == 0
