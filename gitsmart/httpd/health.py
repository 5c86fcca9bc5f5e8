"""GET /-/healthz: 200 while requests are served, 503 while the server drains."""

import logging

from gitsmart.errors import Unavailable
from gitsmart.httpd.handler import Handler

__all__ = ["Health"]


class Health(Handler):
    """For load balancers and supervisors: it touches no disk and no worker. Its log lines are DEBUG."""

    log_level = logging.DEBUG

    def prepare(self) -> None:
        self.check_method()

    def get(self) -> None:
        if self.site.draining:
            raise Unavailable("draining")
        self.bytes_out = len(b"ok\n")
        self.finish(b"ok\n")

    head = get
