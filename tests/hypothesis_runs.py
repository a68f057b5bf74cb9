"""How long tests with hypothesis run: short and the same every time in the suite, long and random on demand.

`HYPOTHESIS_PROFILE=long pytest tests/model_based tests/hostile` is the long run.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

LONG = "long"
_TOO_SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture)


def is_long() -> bool:
    """Whether the long run was asked for."""
    return os.environ.get("HYPOTHESIS_PROFILE") == LONG


def bounded(num_examples: int, *, num_long: int, steps: int = 30) -> settings:
    """Settings of a property: `num_examples` fixed ones in the suite, `num_long` random ones in the long run."""
    return settings(
        max_examples=num_long if is_long() else num_examples,
        stateful_step_count=steps * 2 if is_long() else steps,
        derandomize=not is_long(),
        database=None,
        deadline=None,
        print_blob=False,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=_TOO_SLOW,
    )
