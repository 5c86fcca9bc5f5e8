from gitsmart.wire.pktline import MAX_PAYLOAD, PktLineDecoder, Special
from gitsmart.wire.report import RefResult, format_report

A, B = b"a" * 40, b"b" * 40


def test_report_status() -> None:
    results = [RefResult(b"refs/heads/main", forced=True), RefResult(b"refs/heads/x", "non-fast-forward")]
    assert PktLineDecoder().feed(format_report(None, results, v2=False)) == [
        b"unpack ok\n",
        b"ok refs/heads/main\n",
        b"ng refs/heads/x non-fast-forward\n",
        Special.FLUSH,
    ]


def test_report_status_v2_has_option_lines() -> None:
    results = [
        RefResult(b"refs/for/main", refname=b"refs/changes/1", old=A, new=B, forced=True),
        RefResult(b"refs/heads/x", "stale info", forced=True),
        RefResult(b"refs/heads/y"),
    ]
    assert PktLineDecoder().feed(format_report(None, results, v2=True)) == [
        b"unpack ok\n",
        b"ok refs/for/main\n",
        b"option refname refs/changes/1\n",
        b"option old-oid " + A + b"\n",
        b"option new-oid " + B + b"\n",
        b"option forced-update\n",
        b"ng refs/heads/x stale info\n",
        b"ok refs/heads/y\n",
        Special.FLUSH,
    ]


def test_a_failed_unpack_and_texts_of_more_than_one_line() -> None:
    results = [RefResult(b"refs/heads/x", "unpacker error\nok refs/heads/y")]
    assert PktLineDecoder().feed(format_report("index-pack\nabnormal exit", results, v2=False)) == [
        b"unpack index-pack abnormal exit\n",
        b"ng refs/heads/x unpacker error ok refs/heads/y\n",
        Special.FLUSH,
    ]


def test_a_ref_of_the_greatest_length_leaves_little_room_for_the_reason() -> None:
    ref = b"refs/heads/" + b"x" * (MAX_PAYLOAD - 82 - 11)
    events = PktLineDecoder().feed(format_report(None, [RefResult(ref, "no" * 100)], v2=False))
    assert isinstance(events[1], bytes)
    assert events[1].startswith(b"ng " + ref + b" nono")
    assert len(events[1]) == MAX_PAYLOAD
