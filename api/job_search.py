"""Pages of a project's jobs by a filter: many short reads, so that no list holds a thread of the database for long."""

from __future__ import annotations

import time
from functools import partial

from api.database import AsyncDatabase
from ondol.contract.errors import InvalidPayload
from ondol.sql.job_pages import OPEN_STATES, JobFilter, last_of_next, oldest_open
from ondol.sql.records import JobRecord
from ondol.sql.unit_of_work import UnitOfWork

FIRST_ROWS, NEXT_ROWS = 1_000, 20_000
"""Jobs that one read looks at: the newest are wanted most."""

Page = tuple[list[JobRecord], bool]


async def find_jobs(
    database: AsyncDatabase, project_id: str, wanted: JobFilter, *, after: str | None, limit: int, limit_s: float
) -> Page:
    """A page, newest first, beginning behind the job `after`; and whether there are more.

    What takes over `limit_s` ends the page early, and then there may be more. InvalidPayload when nothing was found by
    then: the project has had too much to look through for so few.
    """
    down_to = wanted.begins_at
    if wanted.state in OPEN_STATES and not wanted.is_of_few:
        oldest = await database.read(lambda uow: oldest_open(uow, project_id))
        if oldest is None:
            return [], False
        down_to = max(down_to, oldest)
    found: list[JobRecord] = []
    place, num_rows, until = after, FIRST_ROWS, time.monotonic() + limit_s
    while True:
        look = partial(
            _look, project_id, wanted, after=place, down_to=down_to, num_rows=num_rows, limit=limit - len(found)
        )
        (records, has_more), place = await database.read(look)
        found += records
        if has_more or place is None:
            return found, has_more
        if time.monotonic() > until:
            if found:
                return found, True
            raise InvalidPayload(
                f"no such job is found in {limit_s:g} s; ask for those behind {place}, or for a time with "
                "created_after",
                param="after",
                code="filter_too_wide",
            )
        num_rows = NEXT_ROWS


def _look(
    project_id: str, wanted: JobFilter, uow: UnitOfWork, *, after: str | None, down_to: str, num_rows: int, limit: int
) -> tuple[Page, str | None]:
    """The page as far as the next `num_rows` jobs go, and the last of these; None: there is nothing behind them."""
    end = None
    if not wanted.is_of_few:
        end = last_of_next(uow, project_id, num_rows, after=after, down_to=down_to)
    return uow.jobs.page(project_id, wanted, after=after, down_to=end or down_to, limit=limit), end
