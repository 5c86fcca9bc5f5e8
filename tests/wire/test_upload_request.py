from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import ProtocolError
from gitsmart.wire.filter_spec import FilterSpec
from gitsmart.wire.upload_request import (
    INFINITE_DEPTH,
    FetchRequest,
    LsRefsRequest,
    MultiAck,
    parse_fetch_arguments,
    parse_have,
    parse_ls_refs_arguments,
    parse_object_info_arguments,
    parse_upload_request,
)

A, B, C = b"a" * 40, b"b" * 40, b"c" * 40


def v0(*lines: bytes) -> FetchRequest:
    return parse_upload_request(lines, hex_len=40)


def v2(*lines: bytes) -> FetchRequest:
    return parse_fetch_arguments(lines, hex_len=40)


def test_v0_wants_with_what_git_2_39_chooses() -> None:
    request = v0(
        b"want " + A + b" multi_ack_detailed no-done side-band-64k thin-pack ofs-delta"
        b" deepen-since deepen-not agent=git/2.39.5\n",
        b"want " + B + b"\n",
        b"want " + A + b"\n",
        b"shallow " + C,
        b"deepen 3",
    )
    assert list(request.wants) == [A, B]
    assert list(request.shallow) == [C]
    assert request.depth == 3
    assert request.multi_ack is MultiAck.DETAILED
    assert request.side_band_limit == 65520
    assert request.no_done
    assert request.thin_pack
    assert request.ofs_delta
    assert not request.include_tag
    assert not request.no_progress
    assert request.agent == b"git/2.39.5"


@pytest.mark.parametrize(
    ("capabilities", "multi_ack", "limit"),
    [
        (b"", MultiAck.NONE, 0),
        (b" side-band", MultiAck.NONE, 1000),
        (b" multi_ack side-band side-band-64k", MultiAck.CONTINUE, 65520),
        (b" multi_ack multi_ack_detailed", MultiAck.DETAILED, 0),
        (b" session-id=x allow-tip-sha1-in-want unheard-of", MultiAck.NONE, 0),
    ],
)
def test_v0_capabilities_are_optional(capabilities: bytes, multi_ack: MultiAck, limit: int) -> None:
    request = v0(b"want " + A + capabilities)
    assert request.multi_ack is multi_ack
    assert request.side_band_limit == limit


def test_v0_oids_come_in_either_case_and_of_one_length() -> None:
    assert list(v0(b"want " + A.upper()).wants) == [A]
    assert list(parse_upload_request([b"want " + b"d" * 64], hex_len=64).wants) == [b"d" * 64]


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        (b"1", 1),
        (b"007", 7),
        (b"010", 8),
        (b"0x10", 16),
        (b" 1", 1),
        (b"+3", 3),
        (b"2147483647", INFINITE_DEPTH),
        (b"99999999999", INFINITE_DEPTH),
    ],
)
def test_depths(text: bytes, depth: int) -> None:
    assert v0(b"deepen " + text).depth == depth
    assert v2(b"deepen " + text).depth == depth


@pytest.mark.parametrize("text", [b"0", b"-1", b"abc", b"", b"1x", b"1_0", b"0x", b"08", b"1" * 99])
def test_bad_depths(text: bytes) -> None:
    for parse in (v0, v2):
        with pytest.raises(ProtocolError) as caught:
            parse(b"deepen " + text)
        assert str(caught.value) == f"Invalid deepen: deepen {text.decode()}"


def test_deepening_by_time_and_by_refs() -> None:
    for request in (
        v0(b"deepen-since 1700000000\n", b"deepen-not v1.0", b"deepen-not refs/heads/x"),
        v2(b"deepen-since 1700000000\n", b"deepen-not v1.0", b"deepen-not refs/heads/x"),
    ):
        assert request.deepen_since == 1_700_000_000
        assert request.deepen_not == [b"v1.0", b"refs/heads/x"]
        assert request.is_deepening
    assert v2(b"deepen-since 0").is_deepening
    assert not v2(b"shallow " + A).is_deepening


NOT_AN_OID = "git upload-pack: protocol error, expected to get object ID, not '{}'"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"want abc", NOT_AN_OID.format("want abc")),
        (b"want " + b"d" * 64, NOT_AN_OID.format("want " + "d" * 64)),
        (b"want " + A + b"x", NOT_AN_OID.format("want " + "a" * 40 + "x")),
        (b"have " + A, NOT_AN_OID.format("have " + "a" * 40)),
        (b"", NOT_AN_OID.format("")),
        (b"shallow x", "invalid shallow line: shallow x"),
        (b"filter blob:none", "git upload-pack: filtering capability not negotiated"),
        (b"deepen-since x", "Invalid deepen-since: deepen-since x"),
        (b"deepen-since -1", "Invalid deepen-since: deepen-since -1"),
        (b"deepen-not", NOT_AN_OID.format("deepen-not")),
    ],
)
def test_v0_refuses(line: bytes, text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        v0(line)
    assert str(caught.value) == text


def test_haves() -> None:
    assert parse_have(b"have " + A + b"\n", hex_len=40) == A
    assert parse_have(b"done\n", hex_len=40) is None
    with pytest.raises(ProtocolError, match="expected SHA1 object, got 'x'"):
        parse_have(b"have x", hex_len=40)
    with pytest.raises(ProtocolError, match="expected SHA1 list, got 'donee'"):
        parse_have(b"donee", hex_len=40)


def test_v2_arguments() -> None:
    request = v2(
        b"thin-pack\n", b"ofs-delta", b"include-tag", b"no-progress", b"want " + A + b"\n", b"want " + B,
        b"have " + C, b"have " + C, b"shallow " + B, b"deepen 2", b"deepen-relative", b"done\n",
    )  # fmt: skip
    assert list(request.wants) == [A, B]
    assert list(request.haves) == [C]
    assert list(request.shallow) == [B]
    assert request.depth == 2
    assert request.deepen_relative
    assert request.done
    assert request.thin_pack
    assert request.ofs_delta
    assert request.include_tag
    assert request.no_progress
    assert request.side_band_limit == 65520


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"want abc", "git upload-pack: protocol error, expected to get oid, not 'want abc'"),
        (b"have abc", "git upload-pack: expected SHA1 object, got 'abc'"),
        (b"shallow abc", "invalid shallow line: shallow abc"),
        (b"filter blob:none", "unexpected line: 'filter blob:none'"),
        (b"want-ref refs/heads/main", "unexpected line: 'want-ref refs/heads/main'"),
        (b"wait-for-done ", "unexpected line: 'wait-for-done '"),
        (b"sideband-all", "unexpected line: 'sideband-all'"),
        (b"packfile-uris https", "unexpected line: 'packfile-uris https'"),
        (b"deepen-since 1 ", "Invalid deepen-since: deepen-since 1 "),
        (b"deepen-not", "unexpected line: 'deepen-not'"),
        (b"", "unexpected line: ''"),
    ],
)
def test_v2_refuses_by_name(line: bytes, text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        v2(line)
    assert str(caught.value) == text


FEATURES = frozenset({b"ref-in-want", b"sideband-all", b"packfile-uris"})


def v2_with_features(*lines: bytes) -> FetchRequest:
    return parse_fetch_arguments(lines, hex_len=40, features=FEATURES)


def test_v2_arguments_of_features() -> None:
    request = v2_with_features(
        b"want-ref refs/heads/main\n", b"want-ref HEAD", b"wait-for-done\n", b"sideband-all\n",
        b"packfile-uris https,http\n",
    )  # fmt: skip
    assert list(request.want_refs) == [b"refs/heads/main", b"HEAD"]
    assert request.wants == {}
    assert request.wait_for_done
    assert request.sideband_all
    assert request.uri_protocols == (b"https", b"http")
    assert v2_with_features(b"packfile-uris https").uri_protocols == ()


@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_v2_refuses_arguments_of_a_feature_that_is_off(feature: bytes) -> None:
    lines = {
        b"ref-in-want": b"want-ref refs/heads/main",
        b"sideband-all": b"sideband-all",
        b"packfile-uris": b"packfile-uris https",
    }
    line = lines[feature]
    assert parse_fetch_arguments([line], hex_len=40, features={feature})
    with pytest.raises(ProtocolError) as caught:
        parse_fetch_arguments([line], hex_len=40, features=FEATURES - {feature})
    assert str(caught.value) == f"unexpected line: '{line.decode()}'"


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([b"want-ref refs/heads/x", b"want-ref refs/heads/x\n"], "duplicate want-ref refs/heads/x"),
        ([b"packfile-uris https", b"packfile-uris http"], "multiple packfile-uris lines forbidden"),
        ([b"want-ref"], "unexpected line: 'want-ref'"),
    ],
)
def test_v2_refuses_with_features(lines: list[bytes], text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        v2_with_features(*lines)
    assert str(caught.value) == text


def test_object_info_arguments() -> None:
    request = parse_object_info_arguments(
        [b"size\n", b"oid " + A + b"\n", b"oid " + B.upper(), b"oid " + A], hex_len=40
    )
    assert request.size
    assert request.oids == [A, B.upper(), A]
    assert not parse_object_info_arguments([b"oid " + A], hex_len=40).size


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"type", "object-info: unexpected line: 'type'"),
        (b"oid", "object-info: unexpected line: 'oid'"),
        (b"oid main", "object-info: protocol error, expected to get oid, not 'main'"),
        (b"oid " + A + b"0", f"object-info: protocol error, expected to get oid, not '{'a' * 40}0'"),
        (b"oid " + b"a" * 64, f"object-info: protocol error, expected to get oid, not '{'a' * 64}'"),
    ],
)
def test_object_info_refuses(line: bytes, text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_object_info_arguments([line], hex_len=40)
    assert str(caught.value) == text


def test_ls_refs_arguments() -> None:
    request = parse_ls_refs_arguments(
        [b"peel\n", b"symrefs\n", b"unborn", b"ref-prefix refs/heads/\n", b"ref-prefix "]
    )
    assert request == LsRefsRequest(peel=True, symrefs=True, unborn=True, prefixes=(b"refs/heads/", b""))
    assert parse_ls_refs_arguments([]) == LsRefsRequest()
    with pytest.raises(ProtocolError, match="unexpected line: 'ref-prefix'"):
        parse_ls_refs_arguments([b"ref-prefix"])


def test_too_many_prefixes_count_for_none() -> None:
    lines = [b"ref-prefix refs/heads/%d" % i for i in range(65536)]
    assert len(parse_ls_refs_arguments(lines[:-1]).prefixes) == 65535
    assert parse_ls_refs_arguments(lines).prefixes == ()


LINES = st.lists(
    st.binary(max_size=60)
    | st.builds(
        lambda name, rest: name + b" " + rest,
        st.sampled_from(
            [
                b"want",
                b"have",
                b"shallow",
                b"deepen",
                b"deepen-since",
                b"ref-prefix",
                b"want-ref",
                b"packfile-uris",
                b"oid",
            ]
        ),
        st.binary(max_size=50) | st.sampled_from([A, B, b"1"]),
    ),
    max_size=6,
)


@pytest.mark.parametrize(
    "parse",
    [
        lambda lines: v0(*lines),
        lambda lines: v2(*lines),
        lambda lines: v2_with_features(*lines),
        lambda lines: parse_object_info_arguments(lines, hex_len=40),
        parse_ls_refs_arguments,
    ],
)
@given(lines=LINES)
def test_garbage_raises_protocol_error_only(
    parse: Callable[[Iterable[bytes]], object], lines: list[bytes]
) -> None:
    try:
        parse(lines)
    except ProtocolError:
        pass


def test_filters_where_they_were_offered() -> None:
    spec = FilterSpec(kind="tree", number=2)
    request = parse_fetch_arguments([b"want " + A, b"filter tree:2\n"], hex_len=40, features=(b"filter",))
    assert request.filter == spec
    lines = [b"want " + A + b" filter ofs-delta", b"filter tree:2"]
    assert parse_upload_request(lines, hex_len=40, filters=True).filter == spec
    for wants in ([b"want " + A], [b"want " + A + b" ofs-delta"]):
        with pytest.raises(ProtocolError, match="filtering capability not negotiated"):
            parse_upload_request([*wants, b"filter tree:2"], hex_len=40, filters=True)
    for text, lines in (
        ("multiple filter-specs cannot be combined", [b"filter tree:2", b"filter blob:none"]),
        ("invalid filter-spec 'x'", [b"filter x"]),
    ):
        with pytest.raises(ProtocolError, match=text):
            parse_upload_request([b"want " + A + b" filter", *lines], hex_len=40, filters=True)
        with pytest.raises(ProtocolError, match=text):
            parse_fetch_arguments(lines, hex_len=40, features=(b"filter",))
