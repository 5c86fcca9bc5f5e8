"""Commits, trees and tags by slicing: what git can read is read, the rest is PackError."""

import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import PackError
from gitsmart.pack.objects import (
    BLOB,
    COMMIT,
    SHA1,
    SHA256,
    TAG,
    TREE,
    ObjectFormat,
    iter_tree,
    object_header,
    parse_commit,
    parse_tag,
    to_hex,
    to_raw,
    tree_references,
)

FORMATS = [pytest.param(SHA1, id="sha1"), pytest.param(SHA256, id="sha256")]


def oid(fmt: ObjectFormat, digit: bytes) -> bytes:
    return digit * fmt.hex_len


@pytest.mark.parametrize("fmt", FORMATS)
def test_formats_agree_with_hashlib(fmt: ObjectFormat) -> None:
    assert fmt.new_hash().digest_size == fmt.raw_len == fmt.hex_len // 2
    assert fmt.zero == b"0" * fmt.hex_len
    assert fmt.new_hash().name == fmt.name.decode()


def test_object_header_is_what_git_hashes() -> None:
    blob = hashlib.sha1(object_header(BLOB, 6) + b"hello\n").hexdigest()
    assert blob == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


@pytest.mark.parametrize("fmt", FORMATS)
def test_hex_and_raw(fmt: ObjectFormat) -> None:
    raw_oid = bytes(range(fmt.raw_len))
    assert to_raw(to_hex(raw_oid)) == raw_oid
    assert to_raw(to_hex(raw_oid).upper()) == raw_oid


@pytest.mark.parametrize(
    "bad",
    [b"", b"0" * 39, b"0" * 41, b"g" * 40, b" " + b"0" * 39, b"0" * 39 + b"\n", b"0" * 63, b"0x" + b"0" * 38],
)
def test_not_an_oid(bad: bytes) -> None:
    with pytest.raises(PackError, match="not an object id"):
        to_raw(bad)


IDENT = b"author A U Thor <a@example.com> 1 +0000\ncommitter C O Mitter <c@example.com> %b\n"


@pytest.mark.parametrize("fmt", FORMATS)
def test_commit(fmt: ObjectFormat) -> None:
    tree, one, two = oid(fmt, b"1"), oid(fmt, b"2"), oid(fmt, b"3")
    data = (
        b"tree %b\nparent %b\nparent %b\n" % (tree, one, two) + IDENT % b"1112911993 -0700" + b"\nmessage\n"
    )
    commit = parse_commit(data, fmt)
    assert commit.tree == to_raw(tree)
    assert commit.parents == (to_raw(one), to_raw(two))
    assert commit.date == 1112911993


@pytest.mark.parametrize(
    ("line", "date"),
    [
        pytest.param(b"1 +0000", 1, id="usual"),
        pytest.param(b"  7 +0000", 7, id="blanks"),
        pytest.param(b"12", 12, id="no zone"),
        pytest.param(b"+5 +0000", 0, id="sign"),
        pytest.param(b"-5 +0000", 0, id="negative"),
        pytest.param(b"> 9 +0000", 9, id="the last > counts"),
        pytest.param(b"x", 0, id="no number"),
        pytest.param(b"9" * 40 + b" +0000", 0, id="beyond 64 bits"),
    ],
)
def test_commit_date_is_zero_when_unreadable(line: bytes, date: int) -> None:
    data = b"tree %b\n" % oid(SHA1, b"1") + IDENT % line + b"\n"
    assert parse_commit(data, SHA1).date == date


def test_commit_without_idents_has_references_still() -> None:
    data = b"tree %b\nparent %b\n" % (oid(SHA1, b"1"), oid(SHA1, b"2"))
    assert parse_commit(data, SHA1).parents == (b"\x22" * 20,)
    assert parse_commit(data, SHA1).date == 0


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"tree ", id="no oid"),
        pytest.param(b"tree " + b"1" * 40, id="no line end"),
        pytest.param(b"tree " + b"1" * 39 + b"\n", id="short"),
        pytest.param(b"tree " + b"1" * 41 + b"\n", id="long"),
        pytest.param(b"tree " + b"g" * 40 + b"\n", id="not hex"),
        pytest.param(b"parent " + b"1" * 40 + b"\n", id="parent first"),
        pytest.param(b"tree " + b"1" * 40 + b"\nparent \n", id="parent empty"),
        pytest.param(b"tree " + b"1" * 40 + b"\nparent " + b"2" * 40, id="parent unfinished"),
        pytest.param(b"tree " + b"1" * 64 + b"\n", id="of the other format"),
    ],
)
def test_bad_commit(data: bytes) -> None:
    with pytest.raises(PackError):
        parse_commit(data, SHA1)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    ("name", "kind"), [(b"commit", COMMIT), (b"tree", TREE), (b"blob", BLOB), (b"tag", TAG)]
)
def test_tag(fmt: ObjectFormat, name: bytes, kind: int) -> None:
    target = oid(fmt, b"a")
    data = b"object %b\ntype %b\ntag v1\n\nno tagger, as in git's own v0.99\n" % (target, name)
    assert parse_tag(data, fmt) == (to_raw(target), kind)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"object " + b"a" * 40, id="unfinished"),
        pytest.param(b"object " + b"a" * 40 + b"\n", id="no type"),
        pytest.param(b"object " + b"a" * 40 + b"\ntype \n", id="empty type"),
        pytest.param(b"object " + b"a" * 40 + b"\ntype blub\n", id="unknown type"),
        pytest.param(b"object " + b"a" * 40 + b"\ntype commit", id="type without end"),
        pytest.param(b"object " + b"a" * 38 + b"zz\ntype commit\n", id="not hex"),
        pytest.param(b"object " + b"a" * 64 + b"\ntype commit\n", id="of the other format"),
    ],
)
def test_bad_tag(data: bytes) -> None:
    with pytest.raises(PackError):
        parse_tag(data, SHA1)


def entry(mode: bytes, name: bytes, raw_oid: bytes) -> bytes:
    return mode + b" " + name + b"\0" + raw_oid


@pytest.mark.parametrize("fmt", FORMATS)
def test_tree(fmt: ObjectFormat) -> None:
    names = [bytes([digit]) * fmt.raw_len for digit in range(6)]
    data = (
        entry(b"100644", b"a file", names[1])
        + entry(b"120000", b"link\n", names[2])
        + entry(b"160000", b"sub module", names[3])
        + entry(b"40000", b"\xff\xfe", names[4])
        + entry(b"100755", b"40000 x", names[5])
    )
    assert list(iter_tree(data, fmt.raw_len)) == [
        (0o100644, b"a file", names[1]),
        (0o120000, b"link\n", names[2]),
        (0o160000, b"sub module", names[3]),
        (0o40000, b"\xff\xfe", names[4]),
        (0o100755, b"40000 x", names[5]),
    ]
    assert tree_references(data, fmt.raw_len) == ({names[4]}, {names[1], names[2], names[5]})


def test_empty_tree() -> None:
    assert list(iter_tree(b"", 20)) == []
    assert tree_references(b"", 20) == (set(), set())


RAW = b"\x01" * 20


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        pytest.param(b"040000", TREE, id="padded tree"),
        pytest.param(b"0000040000", TREE, id="much padded tree"),
        pytest.param(b"40755", TREE, id="tree with permissions"),
        pytest.param(b"100664", BLOB, id="group writable"),
        pytest.param(b"0100644", BLOB, id="padded blob"),
        pytest.param(b"140000", BLOB, id="socket"),
        pytest.param(b"0", BLOB, id="zero"),
        pytest.param(b"7", BLOB, id="seven"),
        pytest.param(b"4000", BLOB, id="too short for a tree"),
        pytest.param(b"160000", 0, id="gitlink"),
        pytest.param(b"0160755", 0, id="odd gitlink"),
    ],
)
def test_odd_modes_are_read_as_git_reads_them(mode: bytes, kind: int) -> None:
    # git: object.h object_type(): S_ISDIR, S_ISGITLINK, or else a blob
    data = entry(mode, b"x", RAW)
    assert tree_references(data, 20) == ({RAW} if kind == TREE else set(), {RAW} if kind == BLOB else set())
    assert [found[0] for found in iter_tree(data, 20)] == [int(mode, 8)]


GOOD = entry(b"100644", b"good", RAW)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"x", id="one byte"),
        pytest.param(b"\n", id="line end"),
        pytest.param(entry(b"100644", b"", RAW), id="no name"),
        pytest.param(entry(b"", b"x", RAW), id="no mode"),
        pytest.param(entry(b"100648", b"x", RAW), id="mode not octal"),
        pytest.param(entry(b"1000000", b"x", RAW), id="mode of 19 bits"),
        pytest.param(entry(b"200000", b"x", RAW), id="mode of 17 bits"),
        pytest.param(entry(b"-1", b"x", RAW), id="negative mode"),
        pytest.param(b"100644", id="only a mode"),
    ],
)
@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_bad_tree(bad: bytes, place: str) -> None:
    data = {"first": bad + GOOD, "between": GOOD + bad + GOOD, "last": GOOD + bad}[place]
    with pytest.raises(PackError):
        tree_references(data, 20)
    with pytest.raises(PackError):
        list(iter_tree(data, 20))


@pytest.mark.parametrize("cut", range(1, 29))
def test_tree_cut_short(cut: int) -> None:
    data = GOOD + entry(b"100644", b"c", RAW)
    with pytest.raises(PackError):
        tree_references(data[:-cut], 20)
    with pytest.raises(PackError):
        list(iter_tree(data[:-cut], 20))


@given(st.data())
def test_fast_path_agrees_with_the_plain_one(data: st.DataObject) -> None:
    modes = st.sampled_from([b"100644", b"40000", b"160000", b"120000", b"040000", b"100755", b"5"])
    # Bytes that look like modes, ends of names and digits, to find wrong synchronisation
    text = st.lists(st.sampled_from(list(b"\0 1004x\n")), min_size=20, max_size=20).map(bytes)
    names = st.lists(st.sampled_from(list(b" 1004x\n")), min_size=1, max_size=9).map(bytes)
    tree = b"".join(data.draw(st.lists(st.builds(entry, modes, names, text), max_size=8)))
    cut = data.draw(st.integers(0, len(tree)))
    tree = data.draw(st.sampled_from([tree, tree[:cut], tree[cut:], tree[:cut] + b"1" + tree[cut:]]))
    try:
        plain = list(iter_tree(tree, 20))
    except PackError:
        with pytest.raises(PackError):
            tree_references(tree, 20)
    else:
        trees = {raw for mode, _, raw in plain if mode & 0o170000 == 0o40000}
        others = {raw for mode, _, raw in plain if mode & 0o170000 not in {0o40000, 0o160000}}
        assert tree_references(tree, 20) == (trees, others)


@given(st.binary(max_size=200), st.sampled_from([SHA1, SHA256]))
def test_garbage_gives_pack_error_only(data: bytes, fmt: ObjectFormat) -> None:
    for parse in (
        lambda: parse_commit(data, fmt),
        lambda: parse_tag(data, fmt),
        lambda: tree_references(data, fmt.raw_len),
        lambda: list(iter_tree(data, fmt.raw_len)),
        lambda: to_raw(data),
    ):
        try:
            parse()
        except PackError:
            pass


@pytest.mark.parametrize("start", [b"", b"160000 a\0" + b"\1" * 20])
def test_malformed_trees_take_little_memory(start: bytes) -> None:
    data = start + b"x" * (4 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(PackError, match="malformed entry"):
            tree_references(data, 20)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()
