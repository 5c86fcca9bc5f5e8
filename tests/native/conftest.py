"""More inputs for Hypothesis when sanitize.py asks for them."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "sanitize",
    max_examples=int(os.environ.get("GITSMART_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
if "GITSMART_EXAMPLES" in os.environ:
    settings.load_profile("sanitize")
