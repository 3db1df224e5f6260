"""Settings that all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Shared machines are slow and noisy: no deadline, and the same examples on every run of CI.
settings.register_profile(
    "vmbk", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("vmbk"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "vmbk")
