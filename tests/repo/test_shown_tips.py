from gitsmart.repo import shown_tips
from gitsmart.repo.refs import Ref, RefSnapshot
from gitsmart.repo.shown_tips import GRACE_S, ShownTips

A, B, C = b"a" * 40, b"b" * 40, b"c" * 40


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def snapshot(head: bytes | None = None, **refs: bytes) -> RefSnapshot:
    found = tuple(Ref(name.encode(), oid, None, None) for name, oid in sorted(refs.items()))
    return RefSnapshot(found, None if head is None else Ref(b"HEAD", head, None, None), None)


def test_what_went_stays_good_for_a_while() -> None:
    clock = Clock()
    tips = ShownTips(clock)
    rules = object()
    assert tips.tips == frozenset()
    tips.see(rules, snapshot(one=A, two=B))
    assert tips.tips == {A, B}
    assert tips.gone_ref(b"one") is None
    tips.see(rules, snapshot(one=C))
    assert tips.tips == {A, B, C}
    assert tips.gone_ref(b"two") == B
    assert tips.gone_ref(b"one") is None
    clock.now += GRACE_S - 1
    last = snapshot(one=C)
    tips.see(rules, last)
    assert tips.tips == {A, B, C}
    clock.now += 2
    tips.see(rules, last)
    assert tips.tips == {C}
    assert tips.gone_ref(b"two") is None


def test_what_came_back_went_not() -> None:
    clock = Clock()
    tips = ShownTips(clock)
    rules = object()
    for refs in ({"one": A}, {}, {"one": A}):
        tips.see(rules, snapshot(**refs))
    assert tips.gone_ref(b"one") is None
    clock.now += 10 * GRACE_S
    tips.see(rules, snapshot(one=A))
    assert tips.tips == {A}


def test_other_rules_end_all_grace() -> None:
    tips = ShownTips(Clock())
    tips.see("rules", snapshot(one=A, two=B, head=C))
    tips.see("others", snapshot(one=A))
    assert tips.tips == {A}
    assert tips.gone_ref(b"two") is None


def test_a_detached_head_counts() -> None:
    tips = ShownTips(Clock())
    rules = object()
    tips.see(rules, snapshot(one=A, head=B))
    tips.see(rules, snapshot(one=A, head=C))
    assert tips.tips == {A, B, C}


def test_memory_is_bounded() -> None:
    tips = ShownTips(Clock())
    rules = object()
    for number in range(3):
        oids = {f"r{number}-{n}": b"%040x" % (number * 10_000 + n) for n in range(shown_tips._GONE - 1)}
        tips.see(rules, snapshot(**oids))
    assert len(tips.tips) <= 2 * shown_tips._GONE
