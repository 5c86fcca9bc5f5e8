import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import LimitExceeded, ProtocolError
from gitsmart.wire.filter_spec import FilterSpec, parse_filter_spec

NONE = FilterSpec(kind="blob:none")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        (b"blob:none", NONE),
        (b"blob:limit=0", FilterSpec(kind="blob:limit", number=0)),
        (b"blob:limit=1", FilterSpec(kind="blob:limit", number=1)),
        (b"blob:limit=2k", FilterSpec(kind="blob:limit", number=2 << 10)),
        (b"blob:limit=2M", FilterSpec(kind="blob:limit", number=2 << 20)),
        (b"blob:limit=2g", FilterSpec(kind="blob:limit", number=2 << 30)),
        (b"blob:limit=0x10", FilterSpec(kind="blob:limit", number=16)),
        (b"blob:limit= +010", FilterSpec(kind="blob:limit", number=8)),
        (b"blob:limit=18446744073709551615", FilterSpec(kind="blob:limit", number=(1 << 64) - 1)),
        (b"tree:0", FilterSpec(kind="tree", number=0)),
        (b"tree:12", FilterSpec(kind="tree", number=12)),
        (b"tree:1k", FilterSpec(kind="tree", number=1024)),
        (b"sparse:oid=main:a b/c", FilterSpec(kind="sparse:oid", name=b"main:a b/c")),
        (b"sparse:oid=", FilterSpec(kind="sparse:oid", name=b"")),
        (b"object:type=tag", FilterSpec(kind="object:type", name=b"tag")),
        (b"combine:blob:none", FilterSpec(kind="combine", parts=(NONE,))),
        (
            b"combine:+tree:3++blob:none+",
            FilterSpec(kind="combine", parts=(FilterSpec(kind="tree", number=3), NONE)),
        ),
        (
            b"combine:sparse:oid=main:a%2Bb%20c%00%zz%3A+%62lob:none",
            FilterSpec(
                kind="combine", parts=(FilterSpec(kind="sparse:oid", name=b"main:a+b c%00%zz:"), NONE)
            ),
        ),
        (
            b"combine:combine:tree:1%2Bblob:none+blob:none",
            FilterSpec(
                kind="combine",
                parts=(
                    FilterSpec(kind="combine", parts=(FilterSpec(kind="tree", number=1), NONE)),
                    NONE,
                ),
            ),
        ),
    ],
)
def test_parses(text: bytes, spec: FilterSpec) -> None:
    assert parse_filter_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "invalid filter-spec ''"),
        (b"blob", "invalid filter-spec 'blob'"),
        (b"blob:none ", "invalid filter-spec 'blob:none '"),
        (b"blob:limit", "invalid filter-spec 'blob:limit'"),
        (b"blob:limit=", "invalid filter-spec 'blob:limit='"),
        (b"blob:limit=k", "invalid filter-spec 'blob:limit=k'"),
        (b"blob:limit=-1", "invalid filter-spec 'blob:limit=-1'"),
        (b"blob:limit=1kb", "invalid filter-spec 'blob:limit=1kb'"),
        (b"blob:limit=1_0", "invalid filter-spec 'blob:limit=1_0'"),
        (b"blob:limit=18446744073709551616", "invalid filter-spec 'blob:limit=18446744073709551616'"),
        (b"blob:limit=99999999999g", "invalid filter-spec 'blob:limit=99999999999g'"),
        (b"tree:", "expected 'tree:<depth>'"),
        (b"tree:x", "expected 'tree:<depth>'"),
        (b"tree:-1", "expected 'tree:<depth>'"),
        (b"sparse:path=x", "sparse:path filters support has been dropped"),
        (b"object:type=", "'' for 'object:type=<type>' is not a valid object type"),
        (b"object:type=Blob", "'Blob' for 'object:type=<type>' is not a valid object type"),
        (b"auto", "'auto' filter not supported by this command"),
        (b"combine:", "expected something after combine:"),
        (b"combine:+", "expected something after combine:"),
        (b"combine:blob:none+x", "invalid filter-spec 'x'"),
        (b"combine:blob:none,x", "must escape char in sub-filter-spec: ','"),
        (b"combine:blob: none", "must escape char in sub-filter-spec: ' '"),
        (b"combine:combine:+", "expected something after combine:"),
        (b"\xff\x00", r"invalid filter-spec '\xff\x00'"),
    ],
)
def test_refuses(text: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_filter_spec(text)
    assert str(caught.value) == problem


def test_parts_are_bounded_in_number_and_depth() -> None:
    parse_filter_spec(b"combine:" + b"+".join([b"blob:none"] * 64))
    with pytest.raises(LimitExceeded):
        parse_filter_spec(b"combine:" + b"+".join([b"blob:none"] * 65))
    with pytest.raises(LimitExceeded):
        parse_filter_spec(b"combine:" * 5000 + b"blob:none")


@given(st.binary(max_size=40) | st.builds(lambda rest: b"combine:" + rest, st.binary(max_size=40)))
def test_garbage_raises_protocol_error_only(text: bytes) -> None:
    try:
        parse_filter_spec(text)
    except ProtocolError:
        pass
