"""Every route, in one table. The first pattern that fits the path counts; `{name}` may hold slashes.

Paths are matched as they were sent; what a pattern's group caught is percent-decoded once, by Tornado.
"""

import re
from dataclasses import dataclass

from tornado.routing import URLSpec

from gitsmart.httpd.handler import Handler, Site
from gitsmart.httpd.health import Health
from gitsmart.httpd.smart import InfoRefs, ServiceRpc

__all__ = ["GIT_ROUTES", "SERVER_ROUTES", "Route", "rules"]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is how docs/operations.md names it."""

    methods: str
    path: str
    action: str
    handler: type[Handler]

    def pattern(self) -> str:
        """The regular expression that Tornado matches against the whole path."""
        pattern = re.escape(self.path).replace(r"\{name\}", "(?P<name>.+)")
        return pattern.replace(r"\{service\}", "(?P<service>git-(?:upload|receive)-pack)")


SERVER_ROUTES = (Route("GET, HEAD", "/-/healthz", "is the server well?", Health),)

GIT_ROUTES = (
    Route("GET, HEAD", "/{name}/info/refs", "ref advertisement of the service in ?service=", InfoRefs),
    Route("POST", "/{name}/{service}", "one request of the service", ServiceRpc),
)


def rules(routes: tuple[Route, ...], site: Site, *, prefix: str = "") -> list[URLSpec]:
    """Return `routes` as Tornado's rules, below `prefix` ("" or "/some/path")."""
    return [
        URLSpec(re.escape(prefix) + route.pattern(), route.handler, {"site": site}, name=None)
        for route in routes
    ]
