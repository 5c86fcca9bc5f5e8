"""Every route, in one table. The first pattern that fits the path counts; `{name}` may hold slashes.

Paths are matched as they were sent; what a pattern's group caught is percent-decoded once, by Tornado.
"""

import re
from dataclasses import dataclass

from tornado.routing import URLSpec

from gitsmart.httpd.dumb import AlternatesFile, Head, InfoPacks, InfoRefs, LooseObject, PackFile
from gitsmart.httpd.handler import Handler, Site
from gitsmart.httpd.health import Health
from gitsmart.httpd.smart import ServiceRpc

__all__ = ["GIT_ROUTES", "SERVER_ROUTES", "Route", "rules"]


_PLACEHOLDERS = {
    "name": ".+",
    "service": "git-(?:upload-pack|upload-archive|receive-pack)",
    "alternates": "(?:http-)?alternates",
    "loose": "[0-9a-f]{2}/(?:[0-9a-f]{38}|[0-9a-f]{62})",
    "pack": r"pack-(?:[0-9a-f]{40}|[0-9a-f]{64})\.(?:pack|idx)",
}


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is how docs/operations.md names it."""

    methods: str
    path: str
    action: str
    handler: type[Handler]

    def pattern(self) -> str:
        """The regular expression that Tornado matches against the whole path."""
        pattern = re.escape(self.path)
        for word, meaning in _PLACEHOLDERS.items():
            pattern = pattern.replace(rf"\{{{word}\}}", f"(?P<{word}>{meaning})")
        return pattern


SERVER_ROUTES = (Route("GET, HEAD", "/-/healthz", "is the server well?", Health),)

GIT_ROUTES = (
    # in the order of git: http-backend.c services[]
    Route("GET, HEAD", "/{name}/HEAD", "dumb HTTP: what HEAD is", Head),
    Route("GET, HEAD", "/{name}/info/refs", "ref advertisement of the service in ?service=", InfoRefs),
    Route("GET, HEAD", "/{name}/objects/info/{alternates}", "dumb HTTP: the file", AlternatesFile),
    Route("GET, HEAD", "/{name}/objects/info/packs", "dumb HTTP: list of packs", InfoPacks),
    Route("GET, HEAD", "/{name}/objects/{loose}", "dumb HTTP: a loose object", LooseObject),
    Route("GET, HEAD", "/{name}/objects/pack/{pack}", "dumb HTTP: a pack or its index", PackFile),
    Route("POST", "/{name}/{service}", "one request of the service", ServiceRpc),
)


def rules(routes: tuple[Route, ...], site: Site, *, prefix: str = "") -> list[URLSpec]:
    """Return `routes` as Tornado's rules, below `prefix` ("" or "/some/path")."""
    return [
        URLSpec(re.escape(prefix) + route.pattern(), route.handler, {"site": site}, name=None)
        for route in routes
    ]
