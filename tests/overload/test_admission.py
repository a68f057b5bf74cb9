"""The queue takes what there is room for and not more, says when to come back, and refuses for good what never fits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from api.admission import Admission, Limits, Reservation
from api.database import AsyncDatabase
from ondol.client.retry import RetryPolicy
from ondol.contract.cutting import MAX_JOB_SIZE
from ondol.contract.errors import Conflict, OndolError, Overloaded, PayloadTooLarge
from ondol.contract.states import Priority
from ondol.sql.backlog import count_backlog
from ondol.sql.database import Database
from ondol.sql.records import NewJob
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import new_fine_tune, new_job, project_of
from tests.overload.projects import make_project, wait

pytestmark = pytest.mark.integration

TOKENS = 8
"""Of a job of `new_job`."""
MANY = 10**9


class Door:
    """One process at which jobs arrive."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self.database = AsyncDatabase(database)
        self.admission = Admission(self.database, limits)

    async def submit(self, project_id: str, num: int = 1) -> OndolError | None:
        """Admit and record so many jobs of 8 tokens; the refusal, if there is one."""
        jobs = [new_job(project_id) for _ in range(num)]

        try:
            with await self.admission.admit(project_id, num, TOKENS * num) as room:

                def record(uow: UnitOfWork) -> None:
                    uow.jobs.add_all(jobs)
                    uow.after_commit(room.record)

                await self.database.write(record)
        except OndolError as exc:
            return exc
        return None


def at_doors(
    database: Database, limits: Limits, work: Callable[..., Awaitable[Sequence[OndolError | None]]], *, num: int = 1
) -> list[OndolError | None]:
    """What `work` returns with so many processes on the database."""

    async def run() -> list[OndolError | None]:
        others = [Database(database.url) for _ in range(num - 1)]
        try:
            return list(await work(*(Door(each, limits) for each in (database, *others))))
        finally:
            for other in others:
                other.close()

    return asyncio.run(run())


def num_queued(database: Database) -> int:
    """Queued jobs of all projects."""
    counted = database.read(lambda uow: count_backlog(uow, window_s=1.0, since=None))
    return sum(amount.num_jobs for amount in counted.queued.values())


@pytest.mark.parametrize("limits", [Limits(50, MANY), Limits(MANY, 50 * TOKENS), Limits(MANY, MANY, 50)])
def test_a_burst_of_requests_takes_no_more_than_the_room(database: Database, limits: Limits) -> None:
    project_id = project_of(database)

    async def burst(door: Door) -> list[OndolError | None]:
        return await asyncio.gather(*(door.submit(project_id) for _ in range(200)))

    refused = [error for error in at_doors(database, limits, burst) if error is not None]
    assert num_queued(database) == 50 and len(refused) == 150
    assert all(isinstance(error, Overloaded) and error.retry_after_s >= 0.25 for error in refused)


def test_two_processes_go_over_the_limit_by_what_one_takes_between_two_counts(database: Database) -> None:
    project_id = project_of(database)

    async def burst(*doors: Door) -> list[OndolError | None]:
        return await asyncio.gather(*(door.submit(project_id) for _ in range(200) for door in doors))

    at_doors(database, Limits(50, MANY), burst, num=2)
    assert 50 <= num_queued(database) <= 2 * 50


def test_processes_see_each_others_jobs_with_the_next_count(database: Database) -> None:
    project_id = project_of(database)

    async def by_turns(one: Door, other: Door) -> list[OndolError | None]:
        while await one.submit(project_id) is None or await other.submit(project_id) is None:
            pass
        num_full = num_queued(database)
        refused = [await door.submit(project_id) for _ in range(10) for door in (one, other)]
        assert num_queued(database) == num_full <= 2 * 20
        return refused

    assert None not in at_doors(database, Limits(20, MANY), by_turns, num=2)


def test_a_project_at_its_limit_leaves_the_others_their_room(database: Database) -> None:
    noisy, quiet = make_project(database, "noisy"), make_project(database, "quiet")
    database.write(lambda uow: uow.keys.set_project("noisy", {"max_queued_jobs": 5}))

    async def both(door: Door) -> list[OndolError | None]:
        return await asyncio.gather(*(door.submit(project) for project in [noisy] * 20 + [quiet] * 20))

    refused = at_doors(database, Limits(100, MANY, project_jobs=30), both)
    assert [error is None for error in refused].count(True) == 25
    assert refused[20:] == [None] * 20
    assert "in this project" in str(refused[19])


def test_what_never_fits_is_refused_for_good(database: Database) -> None:
    project_id = project_of(database)

    async def large(door: Door) -> list[OndolError | None]:
        refusals = await door.admission.refusals(
            [replace(new_job(project_id), estimated_tokens=tokens) for tokens in (1000, 1001)]
        )
        return [*refusals, await door.submit(project_id, num=11)]

    fits, too_many_tokens, too_many_jobs = at_doors(database, Limits(10, 1000), large)
    assert fits is None
    assert isinstance(too_many_tokens, PayloadTooLarge) and "ONDOL_MAX_QUEUED_TOKENS" in too_many_tokens.message
    assert "1001" in too_many_tokens.message and "1000" in too_many_tokens.message
    assert isinstance(too_many_jobs, PayloadTooLarge) and "ONDOL_MAX_QUEUED_JOBS" in too_many_jobs.message
    assert num_queued(database) == 0


def test_a_job_of_more_tokens_than_its_row_has_room_for_is_refused(database: Database) -> None:
    project_id = project_of(database)
    largest = replace(new_job(project_id), estimated_tokens=MAX_JOB_SIZE)

    async def both(door: Door) -> list[OndolError | None]:
        return await door.admission.refusals([largest, replace(largest, estimated_tokens=MAX_JOB_SIZE + 1)])

    fits, too_large = at_doors(database, Limits(10, 10**15), both)
    assert fits is None
    assert isinstance(too_large, PayloadTooLarge) and "cut the input into several jobs" in too_large.message
    database.write(lambda uow: uow.jobs.add_all([largest]))
    assert database.read(lambda uow: uow.jobs.get(largest.id, project_id)).id == largest.id


def test_while_nothing_drains_clients_are_asked_for_no_more_patience_than_they_have(database: Database) -> None:
    async def fill(door: Door) -> list[OndolError | None]:
        assert await door.submit(project_of(database)) is None
        return [await door.submit(project_of(database)) for _ in range(50)]

    for refused in at_doors(database, Limits(jobs=1, tokens=MANY), fill):
        assert isinstance(refused, Overloaded)
        assert 50 <= refused.retry_after_s + refused.spread_s <= RetryPolicy().max_server_wait_s


def test_room_in_which_nothing_was_recorded_is_given_back(database: Database) -> None:
    project_id = project_of(database)

    async def refused_elsewhere(door: Door) -> list[OndolError | None]:
        for _ in range(30):
            with pytest.raises(Conflict), await door.admission.admit(project_id, 10, 10):
                raise Conflict("the key was answered before")
            with await door.admission.admit(project_id, 10, 10):
                pass
        return [await door.submit(project_id, num=10)]

    assert at_doors(database, Limits(10, MANY), refused_elsewhere) == [None]


def test_room_of_a_write_that_may_still_be_committed_is_held(database: Database) -> None:
    project_id = project_of(database)

    async def cancelled(door: Door) -> list[OndolError | None]:
        with pytest.raises(asyncio.CancelledError), await door.admission.admit(project_id, 10, 10):
            raise asyncio.CancelledError
        return [await door.submit(project_id)]

    assert isinstance(at_doors(database, Limits(10, MANY), cancelled)[0], Overloaded)


def test_a_deadline_before_its_turn_is_refused_with_the_time_that_others_take(database: Database) -> None:
    project_id = project_of(database)

    async def after_some_have_ended(door: Door) -> list[OndolError | None]:
        now = database.read(lambda uow: uow.now)
        ended = [new_job(project_id) for _ in range(300)]
        database.write(lambda uow: uow.jobs.add_all(ended))
        database.write(
            lambda uow: uow.conn.exec_driver_sql(f"UPDATE jobs SET state = 'succeeded', finished_at = {now - 1}")
        )  # ten jobs of 8 tokens a second
        wait(database, project_id, 1000, tokens=TOKENS)
        asked = [replace(new_job(project_id), deadline_s=deadline_s) for deadline_s in (50.0, 200.0, None)]
        urgent = replace(new_job(project_id), deadline_s=1.0, priority=Priority.INTERACTIVE)
        return await door.admission.refusals([*asked, urgent])

    late, in_time, without, urgent = at_doors(database, Limits(MANY, MANY), after_some_have_ended)
    assert isinstance(late, Overloaded) and late.param == "deadline_s" and 25 <= late.retry_after_s <= 75
    assert in_time is None and without is None
    assert urgent is None, "its class goes first"


def test_a_place_counts_other_projects_by_their_share(database: Database) -> None:
    mine, large = make_project(database, "mine", weight=2), make_project(database, "large")
    wait(database, mine, 9)
    wait(database, large, 1000)

    async def places(door: Door) -> list[OndolError | None]:
        assert (await door.admission.place(mine, Priority.NORMAL)).num_ahead == 9 + 5
        assert (await door.admission.place(mine, Priority.NORMAL, own_ahead=1)).num_ahead == 1 + 1
        assert (await door.admission.place(large, Priority.NORMAL)).num_ahead == 1000 + 9
        assert (await door.admission.place(mine, Priority.BULK)).num_ahead == 0
        return []

    at_doors(database, Limits(MANY, MANY), places)


@pytest.mark.parametrize("limits", [Limits(MANY, MANY, trainings=3), Limits(MANY, MANY, project_trainings=3)])
def test_fine_tunes_wait_in_a_bounded_number(database: Database, limits: Limits) -> None:
    mine, other = project_of(database), make_project(database, "other")

    async def submit(door: Door, project_id: str) -> OndolError | None:
        job = new_fine_tune(project_id)
        try:
            with await door.admission.admit(project_id, 1, 0, num_trainings=1) as room:
                await door.database.write(partial(_record, job, room))
        except OndolError as exc:
            return exc
        return None

    async def burst(door: Door, second: Door) -> list[OndolError | None]:
        first = await asyncio.gather(*(submit(door, mine) for _ in range(10)))
        return [*first, await submit(second, mine), await submit(second, other), await door.submit(mine)]

    *refused, of_second, of_other, no_fine_tune = at_doors(database, limits, burst, num=2)
    assert [error for error in refused if error is None] == [None] * 3
    assert all(isinstance(error, Overloaded) for error in [*(e for e in refused if e is not None), of_second])
    assert (of_other is None) == (limits.project_trainings is not None)
    assert no_fine_tune is None, "what runs on workers is not held up"


def _record(job: NewJob, room: Reservation, uow: UnitOfWork) -> None:
    uow.jobs.add_all([job])
    uow.after_commit(room.record)


def test_more_fine_tunes_at_once_than_may_wait_never_fit(database: Database) -> None:
    async def submit(door: Door) -> list[OndolError | None]:
        with pytest.raises(PayloadTooLarge):
            await door.admission.admit(project_of(database), 4, 0, num_trainings=4)
        return []

    at_doors(database, Limits(MANY, MANY, trainings=3), submit)
