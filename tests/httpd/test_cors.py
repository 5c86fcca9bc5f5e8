"""Web pages of other origins: those that are listed, and nobody else."""

import pytest

from gitsmart.httpd.cors import cors_headers, preflight_headers
from tests.httpd.conftest import UPLOAD_REQUEST, Harness, Running

PAGE, OTHER = "https://example.org", "https://example.org.evil.test"
ASK = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "git-protocol,content-type"}
INFO_REFS = "/demo.git/info/refs?service=git-upload-pack"


def cors(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("Access-Control-") or name == "Vary"]


@pytest.mark.parametrize("origin", [PAGE, OTHER, "null", "", None])
def test_off_by_default(harness: Harness, origin: str | None) -> None:
    async def test(server: Running) -> None:
        fields = {"Origin": origin} if origin is not None else {}
        reply = await server.request("GET", INFO_REFS, fields)
        assert (reply.status, cors(reply.names)) == (200, [])
        reply = await server.request("OPTIONS", "/demo.git/git-upload-pack", fields | ASK)
        assert (reply.status, reply.header("Allow"), cors(reply.names)) == (405, "POST", [])

    harness.run(test)


def test_a_listed_origin(harness: Harness) -> None:
    harness.configure(http_cors_origins=["https://a.test:8443", PAGE])

    async def test(server: Running) -> None:
        for method, path, fields, status in (
            ("GET", INFO_REFS, {}, 200),
            ("GET", "/demo.git/HEAD", {}, 200),
            ("GET", "/none.git/info/refs?service=git-upload-pack", {}, 404),
            ("GET", "/demo.git/info/refs?service=x", {}, 403),
            ("POST", "/demo.git/git-upload-pack", {"Content-Type": UPLOAD_REQUEST}, 200),
            ("POST", "/demo.git/git-upload-pack", {"Content-Type": "text/plain"}, 415),
            ("PUT", "/demo.git/git-upload-pack", {}, 405),
        ):
            body = b"0000" if method == "POST" else None
            reply = await server.request(method, path, {"Origin": PAGE, **fields}, body)
            assert reply.status == status
            assert reply.header("Access-Control-Allow-Origin") == PAGE
            assert reply.header("Access-Control-Allow-Credentials") == "true"
            assert "WWW-Authenticate" in (reply.header("Access-Control-Expose-Headers") or "")
            assert reply.header("Vary") == "Origin"

    harness.run(test)


def test_another_origin_is_told_nothing(harness: Harness) -> None:
    harness.configure(http_cors_origins=[PAGE])

    async def test(server: Running) -> None:
        for origin in (
            OTHER,
            "http://example.org",
            "https://example.org:8443",
            "HTTPS://EXAMPLE.ORG",
            "null",
        ):
            reply = await server.request("GET", INFO_REFS, {"Origin": origin})
            assert (reply.status, cors(reply.names)) == (200, ["Vary"])
            reply = await server.request("OPTIONS", "/demo.git/git-upload-pack", {"Origin": origin, **ASK})
            assert (reply.status, cors(reply.names)) == (405, ["Vary"])
        reply = await server.request("GET", INFO_REFS)
        assert cors(reply.names) == ["Vary"]

    harness.run(test)


def test_preflight_asks_for_no_password_and_tells_of_no_repository(harness: Harness) -> None:
    harness.configure(http_cors_origins=[PAGE], access_anonymous="none")

    async def test(server: Running) -> None:
        replies = []
        for name in ("demo.git", "none.git"):
            reply = await server.request("OPTIONS", f"/{name}/git-receive-pack", {"Origin": PAGE, **ASK})
            assert (reply.status, reply.body) == (204, b"")
            replies.append([(key, value) for key, value in reply.headers if key != "Date"])
            assert reply.header("Access-Control-Allow-Methods") == "POST"
            allowed = (reply.header("Access-Control-Allow-Headers") or "").split(", ")
            assert {"Authorization", "Content-Type", "Git-Protocol"} <= set(allowed)
            assert reply.header("Access-Control-Allow-Credentials") == "true"
        assert replies[0] == replies[1]
        reply = await server.request("OPTIONS", "/demo.git/info/refs", {"Origin": PAGE, **ASK})
        assert reply.header("Access-Control-Allow-Methods") == "GET, HEAD"
        # no question of a browser's
        reply = await server.request("OPTIONS", "/demo.git/info/refs", {"Origin": PAGE})
        assert reply.status == 405

    harness.run(test)


def test_any_origin_has_no_credentials(harness: Harness) -> None:
    harness.configure(http_cors_origins=["*"])

    async def test(server: Running) -> None:
        for origin in (PAGE, "null", "*"):
            reply = await server.request("GET", INFO_REFS, {"Origin": origin})
            assert reply.header("Access-Control-Allow-Origin") == "*"
            assert reply.header("Access-Control-Allow-Credentials") is None
            assert reply.header("Vary") is None

    harness.run(test)


def test_both_kinds_of_entries() -> None:
    assert ("Access-Control-Allow-Origin", PAGE) in cors_headers(["*", PAGE], PAGE)
    assert ("Access-Control-Allow-Origin", "*") in cors_headers(["*", PAGE], OTHER)
    assert ("Vary", "Origin") in cors_headers(["*", PAGE], OTHER)
    assert preflight_headers([PAGE], None, "POST") == []


def test_the_server_s_own_routes_have_none(harness: Harness) -> None:
    harness.configure(http_cors_origins=["*"])

    async def test(server: Running) -> None:
        reply = await server.request("GET", "/-/healthz", {"Origin": PAGE})
        assert cors(reply.names) == []

    harness.run(test)
