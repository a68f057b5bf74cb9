"""Jobs go where their model is warm; idle workers help where warm ones are full; nobody is passed over for long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest

from ondol.contract.ids import shard_id
from ondol.sql.placement import (
    COPY_AFTER_S,
    PASS_OVER_S,
    MessageOut,
    MessageSize,
    Placed,
    Placement,
    ReadyWorker,
    even_jobs,
)

pytestmark = pytest.mark.unit

NOW = 1000.0
SIZE = MessageSize(max_jobs=4, max_tokens=100)
_numbers = count(1)


@dataclass(slots=True)
class Job:
    """A waiting job of 10 tokens."""

    model_ref: str | None = "a:1"
    parent_id: str | None = None
    run_after: float = NOW - 0.1
    is_alone: bool = False
    kind: str = "embedding"
    estimated_tokens: int = 10
    attempt: int = 0
    project_id: str = "prj_1"
    id: str = field(default_factory=lambda: f"job_{next(_numbers):06d}")
    version_id: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.version_id = self.model_ref


def shards(parent: str, num: int, *, model_ref: str = "a:1", run_after: float = NOW - 0.1) -> list[Job]:
    """Shards of a whole message's tokens each."""
    return [
        Job(model_ref, parent, run_after, estimated_tokens=100, id=shard_id(parent, number)) for number in range(num)
    ]


def worker(name: str, *warm: str, memory_bytes: int | None = None, is_silent: bool = False) -> ReadyWorker:
    """A ready worker."""
    return ReadyWorker(name, frozenset(warm), memory_bytes, is_silent)


def place(
    jobs: Sequence[Job],
    *workers: ReadyWorker,
    room: Mapping[str, int] | None = None,
    out: Sequence[MessageOut] = (),
    sizes: Mapping[str, int] | None = None,
    now: float = NOW,
) -> list[Placed]:
    """One round; every worker has room for two messages unless `room` says otherwise."""
    held: dict[str, set[str]] = {}
    for message in out:
        held.setdefault(message.worker, set()).update(message.versions)
    room = {w.name: 2 for w in workers} if room is None else room
    even = even_jobs(len(jobs), sum(1 for left in room.values() if left))
    placement = Placement(workers=workers, out=out, held=held, sizes=sizes or {}, size=SIZE, now=now, even_jobs=even)
    return placement.place(jobs, room)


def by_worker(placed: Sequence[Placed]) -> dict[str, list[str]]:
    """The references that each worker got, in order."""
    found: dict[str, list[str]] = {}
    for each in placed:
        found.setdefault(each.worker, []).extend(str(job.model_ref) for job in each.jobs)
    return found


def full(name: str, ref: str, *, rung_s_ago: float = 0.1) -> list[MessageOut]:
    """The messages of a full window."""
    return [MessageOut(name, (ref,), None, NOW - rung_s_ago)] * 2


def test_jobs_go_to_the_worker_that_is_warm_for_them() -> None:
    jobs = [Job("a:1"), Job("b:1"), Job("b:1"), Job("a:1")]
    assert by_worker(place(jobs, worker("w1", "b:1"), worker("w2", "a:1"))) == {"w1": ["b:1"] * 2, "w2": ["a:1"] * 2}


def test_a_worker_that_claims_nothing_does_not_keep_old_jobs_from_others() -> None:
    lying = [MessageOut("w1", ("a:1",), None, NOW - 0.1, is_claimed=False)]
    workers, room = (worker("w1"), worker("w2")), {"w1": 1, "w2": 2}
    old = Job(run_after=NOW - PASS_OVER_S)
    assert place([old], *workers, out=lying, room=room)[0].worker == "w2", "it may have come back from there"
    assert place([Job()], *workers, out=lying, room=room)[0].worker == "w1", "a new job waits for the one that loads"
    claimed = [MessageOut("w1", ("a:1",), None, NOW - 0.1)]
    assert place([old], *workers, out=claimed, room=room)[0].worker == "w1"


def test_a_warm_worker_whose_messages_lapsed_is_given_what_others_have_no_room_for() -> None:
    silent, other = worker("w1", "a:1", is_silent=True), worker("w2")
    assert by_worker(place([Job()], silent, other)) == {"w2": ["a:1"]}, "all its messages are gone, and it is not asked"
    assert by_worker(place([Job(run_after=NOW - 60)], silent, other)) == {"w2": ["a:1"]}
    jobs = [Job(estimated_tokens=100) for _ in range(4)]
    assert by_worker(place(jobs, silent, other, room={"w1": 2, "w2": 1})) == {"w2": ["a:1"], "w1": ["a:1"]}, (
        "one message, by which it may show that it claims"
    )
    probe = [MessageOut("w1", ("a:1",), None, NOW - 0.1, is_claimed=False)]
    assert by_worker(place(jobs, silent, other, out=probe, room={"w1": 1, "w2": 1})) == {"w2": ["a:1"]}


def test_a_silent_worker_is_better_than_none() -> None:
    silent = worker("w1", "a:1", is_silent=True)
    assert len(place([Job(estimated_tokens=100), Job(estimated_tokens=100)], silent)) == 1
    small = worker("w2", memory_bytes=10)
    large = worker("w3", memory_bytes=1_000, is_silent=True)
    assert by_worker(place([Job("big:1")], small, large, sizes={"big:1": 500})) == {"w3": ["big:1"]}


def test_a_job_that_comes_back_again_and_again_does_not_go_to_the_same_of_two_equals() -> None:
    given = Counter(
        place([Job(run_after=NOW - 10)], worker("w1"), worker("w2"), now=NOW + n * 0.6)[0].worker for n in range(40)
    )
    assert min(given["w1"], given["w2"]) >= 5


def test_a_cold_version_is_given_to_one_worker_first() -> None:
    workers = (worker("w1"), worker("w2"), worker("w3"))
    placed = place([Job(), Job()], *workers)
    assert by_worker(placed) == {"w1": ["a:1", "a:1"]}
    loading = [MessageOut("w1", ("a:1",), None, NOW - 0.1)]
    assert by_worker(place([Job()], *workers, out=loading, room={"w1": 1, "w2": 2, "w3": 2})) == {"w1": ["a:1"]}


def test_a_cold_version_goes_to_the_worker_that_holds_fewest() -> None:
    assert by_worker(place([Job()], worker("w1", "b:1"), worker("w2"))) == {"w2": ["a:1"]}


def test_different_cold_versions_go_to_different_workers() -> None:
    placed = place([Job("a:1"), Job("b:1")], worker("w1"), worker("w2"))
    assert sorted(by_worker(placed)) == ["w1", "w2"]


def test_a_short_wait_for_a_warm_worker_is_waited() -> None:
    room = {"w2": 2}
    assert place([Job()], worker("w1", "a:1"), worker("w2"), room=room, out=full("w1", "a:1")) == []


def test_an_idle_worker_helps_once_jobs_keep_waiting_for_full_windows() -> None:
    jobs = [Job(run_after=NOW - COPY_AFTER_S - 0.1)]
    workers = (worker("w1", "a:1"), worker("w2"), worker("w3"))
    placed = place(jobs, *workers, room={"w2": 2, "w3": 2}, out=full("w1", "a:1"))
    assert len(placed) == 1 and placed[0].worker in {"w2", "w3"}, "chance decides which of two equals"


def test_an_idle_worker_helps_at_once_when_a_whole_message_waits() -> None:
    placed = place([Job() for _ in range(6)], worker("w1", "a:1"), worker("w2"), room={"w2": 2}, out=full("w1", "a:1"))
    assert by_worker(placed) == {"w2": ["a:1"] * 6}


def test_each_further_worker_that_loads_needs_another_message_of_work() -> None:
    workers = (worker("w1", "a:1"), worker("w2"), worker("w3"), worker("w4"))
    out = [*full("w1", "a:1"), *full("w2", "a:1")]
    room = {"w3": 2, "w4": 2}
    assert place([Job() for _ in range(6)], *workers, room=room, out=out) == []
    assert set(by_worker(place([Job() for _ in range(8)], *workers, room=room, out=out))) == {"w3"}
    many = [Job() for _ in range(40)]
    assert set(by_worker(place(many, *workers, room=room, out=out))) == {"w3", "w4"}


def test_a_worker_takes_what_is_warm_before_it_loads_something() -> None:
    jobs = [Job("b:1"), Job("a:1")]
    placed = place(jobs, worker("w1", "a:1"), room={"w1": 1})
    assert by_worker(placed) == {"w1": ["b:1", "a:1"]}, "the only worker takes all in order"
    placed = place(jobs, worker("w1", "a:1"), worker("w2", "c:1"), room={"w1": 1})
    assert by_worker(placed) == {"w1": ["a:1"]}


def test_a_head_that_nobody_loads_is_passed_over_for_a_bounded_time() -> None:
    warm = [Job("a:1") for _ in range(40)]
    workers = (worker("w1", "a:1"), worker("w2", "a:1"))
    placed = place([Job("b:1", run_after=NOW - 2.5), *warm], *workers, room={"w1": 1})
    assert by_worker(placed) == {"w1": ["b:1"]}


def test_a_head_whose_warm_window_moves_is_left_to_it() -> None:
    jobs = [Job("b:1", run_after=NOW - 60), *(Job("a:1") for _ in range(4))]
    workers = (worker("w1", "a:1"), worker("w2", "b:1"))
    assert by_worker(place(jobs, *workers, room={"w1": 1}, out=full("w2", "b:1"))) == {"w1": ["a:1"] * 4}
    stuck = full("w2", "b:1", rung_s_ago=3)
    assert by_worker(place(jobs, *workers, room={"w1": 1}, out=stuck)) == {"w1": ["b:1"]}


def test_no_warm_worker_idles_while_others_are_full() -> None:
    jobs = [Job("a:1") for _ in range(40)]
    workers = [worker(f"w{i}", "a:1") for i in range(4)]
    placed = place(jobs, *workers)
    assert {name: len(refs) for name, refs in by_worker(placed).items()} == {f"w{i}": 8 for i in range(4)}


def test_shards_are_spread_and_leave_room_for_other_jobs() -> None:
    big, small = shards("job_big", 20), shards("job_small", 3, run_after=NOW - 0.05)
    whole = [Job(run_after=NOW - 0.01) for _ in range(2)]
    workers = (worker("w1", "a:1"), worker("w2", "a:1"), worker("w3", "a:1"))
    placed = place([*big, *small, *whole], *workers)
    assert sorted(str(each.line) for each in placed) == ["None"] + ["job_big"] * 3 + ["job_small"] * 2
    assert {each.worker for each in placed} == {"w1", "w2", "w3"}
    ids = [job.id for each in placed if each.line == "job_big" for job in each.jobs]
    assert ids == sorted(ids), "in the order of their numbers"


def test_messages_that_are_out_count_when_lines_take_turns() -> None:
    out = [MessageOut("w1", ("a:1",), "job_big", NOW - 1)]
    placed = place([*shards("job_big", 5), *shards("job_late", 5)], worker("w1", "a:1"), room={"w1": 1}, out=out)
    assert [each.line for each in placed] == ["job_late"]


def test_a_version_is_not_given_to_a_device_that_is_too_small() -> None:
    workers = (worker("w1", memory_bytes=100), worker("w2", memory_bytes=1000))
    sizes = {"a:1": 500}
    assert by_worker(place([Job()], *workers, sizes=sizes)) == {"w2": ["a:1"]}
    assert place([Job()], *workers, sizes=sizes, room={"w1": 2}) == []


def test_a_small_device_that_is_warm_keeps_no_job_from_the_one_that_fits() -> None:
    workers = (worker("w1", "a:1", memory_bytes=100), worker("w2", memory_bytes=1000))
    assert by_worker(place([Job()], *workers, sizes={"a:1": 500})) == {"w2": ["a:1"]}


def test_a_version_too_large_for_all_is_left_to_the_largest_to_refuse() -> None:
    workers = (worker("w1", memory_bytes=100), worker("w2", memory_bytes=1000))
    assert by_worker(place([Job()], *workers, sizes={"a:1": 5000})) == {"w2": ["a:1"]}


def test_a_job_that_must_be_alone_has_a_message_of_its_own() -> None:
    jobs = [Job(), Job(is_alone=True), Job()]
    assert [len(each.jobs) for each in place(jobs, worker("w1", "a:1"), room={"w1": 4})] == [1, 1, 1]


def test_a_message_holds_one_kind_within_its_size() -> None:
    jobs = [Job(estimated_tokens=60), Job(estimated_tokens=60), Job(kind="text-classification"), Job()]
    placed = place(jobs, worker("w1", "a:1"), room={"w1": 9})
    assert [[job.kind for job in each.jobs] for each in placed] == [
        ["embedding"],
        ["embedding"],
        ["text-classification"],
        ["embedding"],
    ]


def test_jobs_without_a_model_go_anywhere() -> None:
    assert by_worker(place([Job(None, kind="import")], worker("w1", "a:1"), room={"w1": 1})) == {"w1": ["None"]}
    assert len(place([Job(None, kind="import")], worker("w1", "a:1"), worker("w2"))) == 1
