"""What clients may ask for beside what the refs name, under each of git's settings for it."""

from tests.parity import differences as known
from tests.parity.stage import Client, Difference, session

REACHABLE = "uploadpack.allowReachableSHA1InWant"
ITEM = r"(\w+\t.*'\w+' of HOST/.*\n?)+"
REFUSAL = r"exit 128\nfatal: remote error: upload-pack: not our ref \w+"


def odd_objects(client: Client) -> dict[str, str]:
    """A commit that only a hidden ref has, one below it, one that no ref leads to, a blob."""
    hidden = client.on_server("commit-tree", "-m", "hidden", "-p", "main", "main^{tree}")
    above = client.on_server("commit-tree", "-m", "above", "-p", hidden, "main^{tree}")
    client.on_server("update-ref", "refs/hidden/one", above)
    client.config("transfer.hideRefs", "refs/hidden")
    return {
        "tip": client.on_server("rev-parse", "topic"),
        "below": client.on_server("rev-parse", "main~5"),
        "blob": client.on_server("rev-parse", "main~5:src/part1/module1.txt"),
        "hidden": above,
        "below-hidden": hidden,
        "of-no-ref": client.on_server("commit-tree", "-m", "lone", "main^{tree}"),
        "missing": "1" * client.oid_len,
    }


def ask_for_all(client: Client, *refused: str) -> None:
    """Fetch each by its id; what is named in `refused` is not to be had from git."""
    for name, oid in odd_objects(client).items():
        client.init(name)
        client.git(
            "fetch", "-q", "--no-tags", "--depth=1", "URL", oid,
            cwd=name, status=128 if name in refused else 0, label=f"fetch {name}",
        )  # fmt: skip


def not_ours(*names: str, versions: tuple[int, ...] = (2,)) -> list[Difference]:
    """What git sends and we don't."""
    steps, reason = "|".join(names), known.ONLY_WHAT_REFS_SHOW
    return [
        Difference(reason, at=f"^fetch ({steps})$", gits="exit 0", ours=REFUSAL, versions=versions),
        Difference(reason, at="^refs", gits=ITEM, ours="", versions=versions),
        Difference(reason, at=f"^objects of ({steps})$", gits=".+", ours="", versions=versions),
    ]


@session(versions=(2,), expected=not_ours("hidden", "below-hidden", "of-no-ref"))
def test_without_settings(client: Client) -> None:
    client.config(REACHABLE, "false")
    ask_for_all(client, "missing")


@session(versions=(0, 1))
def test_v0_clients_dont_even_ask(client: Client) -> None:
    client.config(REACHABLE, "false")
    ask_for_all(client, "below", "blob", "hidden", "below-hidden", "of-no-ref", "missing")


@session()
def test_any_are_allowed(client: Client) -> None:
    client.config("uploadpack.allowAnySHA1InWant", "true")
    ask_for_all(client, "missing")


@session(expected=not_ours("of-no-ref"))
def test_reachable_ones_are_allowed(client: Client) -> None:
    ask_for_all(client, "missing", *(["of-no-ref"] if client.protocol < 2 else []))


@session(expected=not_ours("of-no-ref"))
def test_tips_are_allowed(client: Client) -> None:
    client.config("uploadpack.allowTipSHA1InWant", "true")
    client.config(REACHABLE, "false")
    refused = ["of-no-ref"] if client.protocol < 2 else []
    ask_for_all(client, "missing", *refused)


UNASKED = r"error: Server does not allow request for unadvertised object \w+"


@session(
    versions=(0, 1),
    defaults=True,
    expected=[
        Difference(
            known.REACHABLE_BY_DEFAULT,
            at="^fetch (below|blob)$",
            gits=r"exit 128\n" + UNASKED,
            ours="exit 0",
        ),
        Difference(known.REACHABLE_BY_DEFAULT, at="^fetch", gits=UNASKED, ours="fatal: .*: not our ref .*"),
        Difference(known.REACHABLE_BY_DEFAULT, at="^refs", gits="", ours=ITEM),
        Difference(known.REACHABLE_BY_DEFAULT, at="^objects of (below|blob)", gits="", ours=".+"),
    ],
)
def test_by_default(client: Client) -> None:
    ask_for_all(client, "below", "blob", "hidden", "below-hidden", "of-no-ref", "missing")
