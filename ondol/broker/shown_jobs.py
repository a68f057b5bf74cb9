"""How a message's jobs are written for people who look at Celery, and how that is read back. Ids only, never texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MOST_SHOWN = 64
_SHOWN = re.compile(r"jobs=(job_[0-9a-z]{1,32}(?:, job_[0-9a-z]{1,32})*)(?: and [0-9]+ more)?")


def show_jobs(ids: Sequence[str]) -> str:
    """The text that stands for a message's arguments, as in `jobs=job_…, job_… and 36 more`."""
    num_left_out = len(ids) - _MOST_SHOWN
    return f"jobs={', '.join(ids[:_MOST_SHOWN])}" + (f" and {num_left_out} more" if num_left_out > 0 else "")


def jobs_shown(text: object) -> tuple[str, ...]:
    """The ids in a text that `show_jobs` made; none if it is anything else."""
    match = _SHOWN.fullmatch(text) if isinstance(text, str) else None
    return tuple(match[1].split(", ")) if match else ()
