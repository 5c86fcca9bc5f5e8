"""One reftable, read and written: held against tables that git wrote, and against anything else."""

import random
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gitsmart.pack.objects import SHA1, SHA256, ObjectFormat
from gitsmart.repo.reftable import LogRecord, RefRecord, Reftable, ReftableError, ReftableWriter, log_key

DATA = Path(__file__).parent / "data" / "reftable"
FORMATS = {"sha1": SHA1, "sha256": SHA256}


def opened(data: bytes, fmt: ObjectFormat) -> Reftable:
    return Reftable(lambda offset, count: data[offset : offset + count], len(data), fmt)


def written(
    refs: list[RefRecord],
    logs: list[LogRecord],
    fmt: ObjectFormat,
    low: int = 1,
    high: int = 1 << 40,
    **how: int,
) -> bytes:
    pieces: list[bytes] = []
    writer = ReftableWriter(pieces.append, fmt, low, high, **how)  # type: ignore[arg-type]
    for ref in refs:
        writer.add_ref(ref)
    for line in logs:
        writer.add_log(line)
    writer.finish()
    return b"".join(pieces)


def golden(name: str) -> list[bytes]:
    folder = DATA / name
    return [(folder / table).read_bytes() for table in (folder / "tables.list").read_text().split()]


@pytest.fixture(params=["sha1", "sha256"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_git_s_tables_come_out_the_same_byte_for_byte(name: str) -> None:
    fmt = FORMATS[name]
    tables = golden(name)
    assert len(tables) == 3
    for data in tables:
        table = opened(data, fmt)
        refs, logs = list(table.refs()), list(table.logs())
        again = written(
            refs,
            logs,
            fmt,
            table.min_update_index,
            table.max_update_index,
            block_size=320,
            restart_interval=4,
        )
        assert again == data


def test_every_ref_and_line_is_found_on_its_own(name: str) -> None:
    fmt = FORMATS[name]
    for data in golden(name):
        table = opened(data, fmt)
        refs, logs = list(table.refs()), list(table.logs())
        for record in refs:
            assert table.ref(record.name) == record
            assert table.ref(record.name + b"\x01") is None
        for absent in (b"A", b"refs", b"refs/heads/topic/1000x", b"zzz", b"\xff"):
            assert table.ref(absent) is None
        for one, other in pairwise(refs):
            assert next(table.refs(one.name + b"\x01")) == other
        for line in logs:
            assert next(table.logs(line.key)) == line
        assert list(table.logs(b"\xff")) == []


def test_what_git_wrote_is_what_git_says_it_is(name: str) -> None:
    first, second, third = (opened(data, FORMATS[name]) for data in golden(name))
    refs = {record.name: record for record in first.refs()}
    assert refs[b"HEAD"].target == b"refs/heads/main"
    assert refs[b"refs/heads/alias"].target == b"refs/heads/topic/1007"
    tag = refs[b"refs/tags/release-29"]
    assert tag.oid == refs[b"refs/tmp/tag"].oid
    assert tag.peeled == refs[b"refs/heads/topic/1001"].oid
    assert {line.zone for line in first.logs()} == {-330}
    assert {(line.who, line.email) for line in first.logs()} == {(b"C O Mitter", b"c@example.com")}
    gone = [record.name for record in second.refs() if record.is_deletion]
    assert len(gone) == 50
    assert sorted({line.name for line in second.logs() if line.is_deletion}) == gone
    assert list(third.refs()) == []
    (line,) = third.logs()
    assert (line.name, line.message) == (b"refs/heads/main", b"only logged\n")


def random_records(
    rng: random.Random, count: int, fmt: ObjectFormat
) -> tuple[list[RefRecord], list[LogRecord]]:
    names = sorted(
        {
            b"refs/%b/%d" % (rng.choice([b"heads", b"pull", b"t" * 60]), rng.randrange(10**6))
            for _ in range(count)
        }
    )
    oids = [rng.randbytes(fmt.raw_len) for _ in range(max(1, count // 3))]
    refs = []
    for ref in names:
        kind = rng.randrange(8)
        index = rng.randrange(1, 1 << 20)
        if kind == 0:
            refs.append(RefRecord(ref, index))
        elif kind == 1:
            refs.append(RefRecord(ref, index, target=rng.choice(names)))
        elif kind == 2:
            refs.append(RefRecord(ref, index, rng.choice(oids), rng.choice(oids)))
        else:
            refs.append(RefRecord(ref, index, rng.choice(oids)))
    logs = []
    for ref in names[::2]:
        for index in sorted({rng.randrange(1, 1 << 20) for _ in range(rng.randrange(4))}, reverse=True):
            if rng.randrange(5) == 0:
                logs.append(LogRecord(ref, index))
            else:
                old, new = rng.choice(oids), rng.choice(oids)
                message = b"m" * rng.randrange(60) + b"\n"
                logs.append(
                    LogRecord(ref, index, old, new, b"W H O", b"w@e", rng.randrange(1 << 33), -1200, message)
                )
    return refs, logs


@pytest.mark.parametrize("block_size", [256, 1000, 4096, 65536])
@pytest.mark.parametrize("count", [0, 1, 3, 40, 1500])
def test_what_is_written_is_read(count: int, block_size: int, name: str) -> None:
    fmt = FORMATS[name]
    rng = random.Random(count * block_size)
    refs, logs = random_records(rng, count, fmt)
    data = written(refs, logs, fmt, block_size=block_size, restart_interval=rng.choice([1, 4, 16, 64]))
    table = opened(data, fmt)
    assert list(table.refs()) == refs
    assert list(table.logs()) == logs
    for record in rng.sample(refs, min(60, len(refs))):
        assert table.ref(record.name) == record
    for line in rng.sample(logs, min(60, len(logs))):
        assert next(table.logs(log_key(line.name)), None) is not None
        assert next(table.logs(line.key)) == line


def test_an_oid_that_very_many_refs_have_is_left_out_of_the_obj_blocks() -> None:
    refs = [RefRecord(b"refs/heads/%06d" % number, 1, b"\x11" * 20) for number in range(20_000)]
    data = written(refs, [], SHA1, block_size=512)
    assert list(opened(data, SHA1).refs()) == refs


def test_a_record_that_is_larger_than_a_block_is_refused() -> None:
    with pytest.raises(ReftableError, match="larger than a block"):
        written([RefRecord(b"refs/heads/" + b"x" * 4096, 1, b"\x11" * 20)], [], SHA1)


def test_a_table_of_the_other_format_is_refused() -> None:
    for name, other in (("sha1", SHA256), ("sha256", SHA1)):
        with pytest.raises(ReftableError, match="object format"):
            opened(golden(name)[0], other)


def sealed(data: bytes, fmt: ObjectFormat) -> bytes:
    """The same with a header and footer that agree and a checksum that is right: only the inside is wrong."""
    size = 24 if fmt is SHA1 else 28
    footer = data[:size] + data[-(size + 44) + size : -4]
    return data[: -(size + 44)] + footer + zlib.crc32(footer).to_bytes(4, "big")


def read_all(data: bytes, fmt: ObjectFormat) -> None:
    table = opened(data, fmt)
    refs = list(table.refs())
    assert [record.name for record in refs] == sorted({record.name for record in refs})
    for _ in table.logs():
        pass
    for wanted in (b"HEAD", b"refs/heads/main", b"refs/tags/release-29", b"zz"):
        table.ref(wanted)
        next(table.logs(log_key(wanted)), None)


def check_hostile(data: bytes, fmt: ObjectFormat) -> None:
    try:
        read_all(data, fmt)
    except ReftableError:
        pass


@given(
    st.sampled_from(["sha1", "sha256"]),
    st.integers(0, 2),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_flipped_bytes_are_refused_or_harmless(
    name: str, which: int, changes: list[tuple[int, int]], is_sealed: bool
) -> None:
    data = bytearray(golden(name)[which])
    for place, value in changes:
        data[place % len(data)] = value
    check_hostile(sealed(bytes(data), FORMATS[name]) if is_sealed else bytes(data), FORMATS[name])


@given(st.sampled_from(["sha1", "sha256"]), st.integers(0, 30_000), st.booleans())
@settings(deadline=None, max_examples=100)
def test_truncated_tables_are_refused_or_harmless(name: str, length: int, keeps_footer: bool) -> None:
    data = golden(name)[0]
    footer = 68 if name == "sha1" else 72
    cut = data[:length] + (data[-footer:] if keeps_footer else b"")
    if cut == data:
        return
    check_hostile(cut, FORMATS[name])


@given(st.binary(max_size=300))
@example(b"REFT\x01" + bytes(200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ReftableError):
        opened(data, SHA1)


def block(kind: bytes, body: bytes, restarts: list[int], skip: int = 24) -> bytes:
    tail = b"".join(place.to_bytes(3, "big") for place in restarts) + len(restarts).to_bytes(2, "big")
    return kind + (skip + 4 + len(body) + len(tail)).to_bytes(3, "big") + body + tail


def table_of(first: bytes, places: tuple[int, ...] = (0, 0, 0, 0, 0)) -> bytes:
    header = b"REFT\x01" + bytes(3) + (1).to_bytes(8, "big") + (9).to_bytes(8, "big")
    footer = header + b"".join(place.to_bytes(8, "big") for place in places)
    return header + first + footer + zlib.crc32(footer).to_bytes(4, "big")


OID = b"\x12" * 20


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(
            table_of(block(b"r", b"\0\x09a\0" + OID + b"\0\x09a\0" + OID, [28])), "order", id="twice"
        ),
        pytest.param(
            table_of(block(b"r", b"\0\x09b\0" + OID + b"\0\x09a\0" + OID, [28])), "order", id="order"
        ),
        pytest.param(table_of(block(b"r", b"\0\x0ca\0", [28])), "kind of a ref", id="kind"),
        pytest.param(table_of(block(b"r", b"\x05\x09a\0" + OID, [28])), "name of a ref", id="prefix"),
        pytest.param(table_of(block(b"r", b"\0\xff\xff\x7fa\0" + OID, [28])), "name of a ref", id="suffix"),
        pytest.param(table_of(block(b"r", b"\0\x09a\x20" + OID, [28])), "update index", id="update-index"),
        pytest.param(table_of(block(b"r", b"\0\x09a\0" + OID[:5], [28])), "value", id="short-oid"),
        pytest.param(table_of(block(b"r", b"\0\x0ba\0\x50b", [28])), "value", id="short-target"),
        pytest.param(table_of(block(b"r", b"\0\x09a" + b"\xff" * 12, [28])), "too large", id="varint"),
        pytest.param(table_of(block(b"r", b"\0\x09a\0" + OID, [])), "restarts", id="no-restarts"),
        pytest.param(table_of(b"r\xff\xff\xff" + bytes(40)), "truncated", id="length"),
        pytest.param(table_of(b"r\0\0\x05" + bytes(40)), "length", id="tiny-length"),
        pytest.param(table_of(b"g\0\1\0" + zlib.compress(bytes(1 << 20))), "another length", id="log-bomb"),
        pytest.param(table_of(b"g\0\1\0" + bytes(80)), "inflate", id="log-garbage"),
    ],
)
def test_malformed_tables_are_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(ReftableError, match=text):
        read_all(data, SHA1)


def test_an_index_that_goes_in_circles_ends() -> None:
    first = block(b"r", b"\0\x09a\0" + OID, [28])
    place = 24 + len(first)
    index = block(b"i", b"\0\x08a" + bytes([place]), [4], skip=0)
    table = opened(table_of(first + index, (place, 0, 0, 0, 0)), SHA1)
    with pytest.raises(ReftableError, match="index"):
        table.ref(b"a")


def test_dulwich_reads_our_refs(tmp_path: Path) -> None:
    dulwich: Callable[..., object] = pytest.importorskip("dulwich.reftable").ReftableReader
    refs = [
        RefRecord(b"HEAD", 1, target=b"refs/heads/main"),
        RefRecord(b"refs/heads/main", 1, b"\x11" * 20),
        RefRecord(b"refs/heads/old", 1),
        RefRecord(b"refs/tags/v1", 1, b"\x22" * 20, b"\x11" * 20),
    ]
    path = tmp_path / "table.ref"
    path.write_bytes(written(refs, [], SHA1, 1, 1))
    with path.open("rb") as file:
        found = dulwich(file).all_refs()  # type: ignore[attr-defined]
    assert {name: value for name, (_, value) in found.items()} == {
        b"HEAD": b"refs/heads/main",
        b"refs/heads/main": b"11" * 20,
        b"refs/heads/old": b"",
        b"refs/tags/v1": b"22" * 20 + b"11" * 20,
    }
