import random

from gitsmart.pack.oidset import OidSet


def test_holds_what_was_added_and_nothing_else() -> None:
    rng = random.Random(1)
    members: set[bytes] = set()
    oids = OidSet()
    assert b"x" * 20 not in oids
    for size in (0, 1, 1, 5, 3, 100, 7, 2000, 1, 1):
        batch = [rng.randbytes(20) for _ in range(size)] + rng.sample(sorted(members), min(3, len(members)))
        oids.add(batch)
        members.update(batch)
        assert all(member in oids for member in members)
    assert not any(rng.randbytes(20) in oids for _ in range(2000))
    assert len(members) <= len(oids) <= len(members) + 30


def test_runs_stay_few() -> None:
    oids = OidSet()
    rng = random.Random(2)
    for _ in range(3000):
        oids.add([rng.randbytes(32)])
    assert len(oids._runs) <= 12
