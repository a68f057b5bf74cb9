"""Placement: which waiting jobs go to which worker next. Pure: rows and windows in, messages out.

Jobs stand in lines: the shards of each sharded job are one, the whole jobs of a project together another. The project
that was given least by its weight goes next (decision 17), and of its lines the one with the fewest messages out, so
that a job of many shards leaves room for others; within a line the order is that of ringing (decision 16).
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ondol.contract.kinds import JobKind

COPY_AFTER_S = 2.0
"""When its oldest job has waited so long, a version whose warm windows are full is also given to a worker that has
nothing else to do."""
PASS_OVER_S = 2.0
"""A head of a line is passed over no longer than this: then it goes to any worker, before what is warm there."""
MIN_SPREAD_JOBS = 8
"""Messages are not made smaller than this to spread a short backlog."""


class WaitingJob(Protocol):
    """The columns of a waiting job that placement looks at."""

    id: str
    project_id: str
    attempt: int
    kind: str
    estimated_tokens: int
    is_alone: bool
    version_id: str | None
    model_ref: str | None
    parent_id: str | None
    run_after: float


@dataclass(frozen=True, slots=True)
class MessageOut:
    """A message that is rung and not finished; `versions`: model references of its jobs, `project`: the first one's.

    `is_claimed`: its worker has taken it up; one that never does so must not keep the jobs from others.
    """

    worker: str
    versions: tuple[str, ...]
    line: str | None
    rung_at: float
    project: str | None = None
    is_claimed: bool = True


@dataclass(frozen=True, slots=True)
class ReadyWorker:
    """A worker that takes messages; `memory_bytes` of its device, None where it is not known.

    `is_silent`: messages of it have lapsed, and it has claimed nothing since.
    """

    name: str
    warm: frozenset[str]
    memory_bytes: int | None = None
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class MessageSize:
    """How much one message may name."""

    max_jobs: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Share:
    """A project beside others: `served` is what it was given, tokens divided by its weight.

    `waits_since`: set when it has been passed over for so long that it goes first.
    """

    weight: float
    served: float
    waits_since: float | None = None

    @property
    def turn(self) -> tuple[bool, float]:
        """The smallest goes next."""
        return (True, self.served) if self.waits_since is None else (False, self.waits_since)


@dataclass(frozen=True, slots=True)
class Placed:
    """Jobs of one kind for one worker: shards of one job, or whole jobs, which may be of several projects."""

    worker: str
    jobs: tuple[WaitingJob, ...]

    @property
    def versions(self) -> tuple[str, ...]:
        """The model references of the jobs."""
        return tuple(sorted({job.model_ref for job in self.jobs if job.model_ref is not None}))

    @property
    def line(self) -> str | None:
        """The sharded job whose shards these are; None for whole jobs."""
        return self.jobs[0].parent_id

    @property
    def project(self) -> str:
        """The project whose turn it was; others' jobs only fill the message up."""
        return self.jobs[0].project_id


_Sort = tuple[str | None, str | None, bool]
"""What tells jobs apart when a place is looked for: reference and id of the version, and whether it has waited long."""


@dataclass(slots=True)
class Placement:
    """One round for one class. `out`: all messages of the class; `sizes`: bytes of versions by id, as far as known.

    `held`: the references that a worker has been given work of and that may still load there. `shares`: of the
    projects whose jobs wait, if there is more than one. `even_jobs`: no message gets more whole jobs or shards.
    """

    workers: Sequence[ReadyWorker]
    out: Sequence[MessageOut]
    held: Mapping[str, Iterable[str]]
    sizes: Mapping[str, int]
    size: MessageSize
    now: float
    even_jobs: int
    shares: Mapping[str, Share] = field(default_factory=dict)
    _lines: dict[str, list[WaitingJob]] = field(default_factory=dict)
    _sorts: dict[str, Counter[_Sort]] = field(default_factory=dict)
    _examples: dict[_Sort, WaitingJob] = field(default_factory=dict)
    _num_out: Counter[str | None] = field(default_factory=Counter)
    _turns: dict[str, tuple[bool, float]] = field(default_factory=dict)
    _warm_at: dict[str, set[str]] = field(default_factory=dict)
    _loading_at: dict[str, set[str]] = field(default_factory=dict)
    _rung_at: dict[str, float] = field(default_factory=dict)
    _room: dict[str, int] = field(default_factory=dict)
    _tokens: Counter[str] = field(default_factory=Counter)
    _num_jobs: Counter[str] = field(default_factory=Counter)
    _oldest: dict[str, float] = field(default_factory=dict)
    _silent: set[str] = field(default_factory=set)
    _trusted: Sequence[ReadyWorker] = ()
    _trusted_names: frozenset[str] = frozenset()
    _is_late: bool = False
    _least_memory: float = math.inf
    _most_memory: float = math.inf

    def place(self, waiting: Sequence[WaitingJob], room: Mapping[str, int]) -> list[Placed]:
        """Messages for the workers, each at most its `room`; workers take turns, one message each.

        `waiting` in the order of ringing; what is not placed goes on waiting.
        """
        self._begin(waiting, room)
        placed: list[Placed] = []
        while True:
            before = len(placed)
            for worker in sorted(self.workers, key=self._busyness):
                if self._room.get(worker.name, 0) > 0 and (jobs := self._pick(worker)):
                    placed.append(Placed(worker.name, tuple(jobs)))
                    self._take(placed[-1])
            if len(placed) == before:
                return placed

    def _busyness(self, worker: ReadyWorker) -> tuple[bool, int, int, int]:
        """Who has most room comes first; then who holds the fewest versions, and so has memory for another.

        Behind all others comes who claims nothing.

        Between equals chance decides for a job that is late: it may have come back from one that claims nothing.
        """
        held = worker.warm.union(self.held.get(worker.name, ()))
        toss = zlib.crc32(f"{self.now} {worker.name}".encode()) if self._is_late else 0
        return worker.name not in self._trusted_names, -self._room.get(worker.name, 0), len(held), toss

    def _begin(self, waiting: Sequence[WaitingJob], room: Mapping[str, int]) -> None:
        self._room = dict(room)
        self._turns = {project: share.turn for project, share in self.shares.items()}
        memory = [worker.memory_bytes or math.inf for worker in self.workers]
        self._least_memory, self._most_memory = min(memory, default=math.inf), max(memory, default=math.inf)
        self._trusted = [worker for worker in self.workers if not worker.is_silent] or self.workers
        self._trusted_names = frozenset(worker.name for worker in self._trusted)
        for worker in self._trusted:
            loading = set(self.held.get(worker.name, ())) - worker.warm
            for ref in worker.warm | loading:
                self._warm_at.setdefault(ref, set()).add(worker.name)
            for ref in loading:
                self._loading_at.setdefault(ref, set()).add(worker.name)
        self._keep_silent_ones_to_one()
        self._is_late = bool(waiting) and self._is_old(waiting[0])
        self._silent = {m.worker for m in self.out} - {m.worker for m in self.out if m.is_claimed}
        for message in self.out:
            self._num_out[message.line or message.project] += 1
            self._rung_at[message.worker] = max(message.rung_at, self._rung_at.get(message.worker, 0.0))
        for job in waiting:
            name, sort = _line_of(job), self._sort_of(job)
            self._lines.setdefault(name, []).append(job)
            self._sorts.setdefault(name, Counter())[sort] += 1
            self._examples.setdefault(sort, job)
            if job.model_ref is not None:
                self._tokens[job.model_ref] += job.estimated_tokens
                self._num_jobs[job.model_ref] += 1
                self._oldest.setdefault(job.model_ref, job.run_after)

    def _keep_silent_ones_to_one(self) -> None:
        """Who claims nothing has one message at a time, by which it may show that it does."""
        num_out = Counter(message.worker for message in self.out)
        for worker in self.workers:
            if worker.is_silent:
                self._room[worker.name] = min(self._room.get(worker.name, 0), max(0, 1 - num_out[worker.name]))

    def _pick(self, worker: ReadyWorker) -> list[WaitingJob]:
        """The next message of the worker: an overdue head, else what is warm there, else what it may load."""
        lines = sorted((line for line in self._lines.values() if line), key=self._turn)
        for i, line in enumerate(lines):
            if self._is_overdue(line[0]) and self._suits(line[0], worker):
                return self._cut(lines[i:], lambda job, ref=line[0].model_ref: job.model_ref == ref)  # type: ignore[misc]  # bound at definition
        warm = {ref for ref, names in self._warm_at.items() if worker.name in names}
        is_warm = self._once_a_sort(lambda job: self._is_warm(job, warm) and self._suits(job, worker))
        for i, line in enumerate(lines):
            if self._has(line, is_warm):
                return self._cut(lines[i:], is_warm)
        may_load = self._once_a_sort(lambda job: self._may_load(job) and self._suits(job, worker))
        for i, line in enumerate(lines):
            if self._has(line, may_load):
                head = next(filter(may_load, line))
                return self._cut(lines[i:], lambda job, ref=head.model_ref: job.model_ref == ref)  # type: ignore[misc]  # bound at definition
        return []

    def _once_a_sort(self, is_for: Callable[[WaitingJob], bool]) -> Callable[[WaitingJob], bool]:
        """The same question, asked once of jobs between which it cannot tell; for as long as nothing is placed."""
        known: dict[_Sort, bool] = {}

        def answer(job: WaitingJob) -> bool:
            sort = self._sort_of(job)
            found = known.get(sort)
            if found is None:
                found = known[sort] = is_for(job)
            return found

        return answer

    def _has(self, line: Sequence[WaitingJob], is_for: Callable[[WaitingJob], bool]) -> bool:
        """Whether there is such a job in the line, without a look at each."""
        return any(is_for(self._examples[sort]) for sort in self._sorts[_line_of(line[0])])

    def _sort_of(self, job: WaitingJob) -> _Sort:
        return job.model_ref, job.version_id, self._is_old(job)

    def _turn(self, line: Sequence[WaitingJob]) -> tuple[tuple[bool, float], int, float, str]:
        head = line[0]
        return self._turns.get(head.project_id, _ALONE), self._num_out[_line_of(head)], head.run_after, head.id

    def _is_warm(self, job: WaitingJob, warm: set[str]) -> bool:
        return job.model_ref is None or job.model_ref in warm or len(self.workers) == 1

    def _is_overdue(self, head: WaitingJob) -> bool:
        """Whether the head has waited too long for full windows that do not move, or for a worker to load it."""
        if head.model_ref is None or not self._is_old(head):
            return False
        names = self._holders(head, with_silent=True)
        if any(self._room.get(name, 0) > 0 for name in names):
            return False
        return all(self.now - self._rung_at.get(name, 0.0) >= PASS_OVER_S for name in names)

    def _is_old(self, job: WaitingJob) -> bool:
        return self.now - job.run_after >= PASS_OVER_S

    def _may_load(self, job: WaitingJob) -> bool:
        """Whether a worker that does not hold the version may be given it: one first, more while that one is full.

        Each worker that is loading must have a message's worth waiting for it before the next one begins.
        """
        ref = job.model_ref
        if ref is None:
            return True
        names = self._holders(job)
        if not names:
            return True
        if any(self._room.get(name, 0) > 0 for name in names):
            return False
        num_loading = len(self._loading_at.get(ref, ()))
        wanted = num_loading + 1
        if self._tokens[ref] >= wanted * self.size.max_tokens or self._num_jobs[ref] >= wanted * self.size.max_jobs:
            return True
        return num_loading == 0 and self.now - self._oldest[ref] >= COPY_AFTER_S

    def _suits(self, job: WaitingJob, worker: ReadyWorker) -> bool:
        """Whether it fits there; who claims nothing is given what no other worker has room for."""
        if not self._fits(job, worker):
            return False
        return worker.name in self._trusted_names or not any(
            self._room.get(other.name, 0) > 0 and self._fits(job, other) for other in self._trusted
        )

    def _fits(self, job: WaitingJob, worker: ReadyWorker) -> bool:
        """Whether the device is known to hold the files; where none is, the largest is to say so with its own sizes."""
        size_bytes = self.sizes.get(job.version_id or "")
        if size_bytes is None or worker.memory_bytes is None or size_bytes <= worker.memory_bytes:
            return True
        return self._most_memory < size_bytes and worker.memory_bytes == self._most_memory

    def _holders(self, job: WaitingJob, *, with_silent: bool = False) -> set[str]:
        """Names of the workers that hold the job's version, or may still load it, and may be given the job.

        For an old job without those that have messages out and have claimed none: it may have been theirs already.
        """
        names = self._warm_at.get(job.model_ref or "", set())
        if self._silent and not with_silent and self._is_old(job):
            names = names - self._silent
        if self.sizes.get(job.version_id or "", 0) <= self._least_memory:
            return names
        return {worker.name for worker in self.workers if worker.name in names and self._fits(job, worker)}

    def _cut(self, lines: Sequence[list[WaitingJob]], is_for: Callable[[WaitingJob], bool]) -> list[WaitingJob]:
        """What fits one message of what `is_for` it: one kind, within the size; who must be alone stays alone.

        It is of the first line; whole jobs are filled up with whole jobs of the projects whose turn is later.
        """
        first, *later = lines
        also = [line for line in later if line[0].parent_id is None] if first[0].parent_id is None else []
        max_jobs = min(self.size.max_jobs, self.even_jobs)
        taken = self._fill([], first, is_for, max_jobs)
        for line in also if taken else ():
            taken = self._fill(taken, line, is_for, max_jobs)
        return taken

    def _fill(
        self, taken: list[WaitingJob], line: Sequence[WaitingJob], is_for: Callable[[WaitingJob], bool], max_jobs: int
    ) -> list[WaitingJob]:
        """`taken` with what the line adds to it."""
        tokens = sum(job.estimated_tokens for job in taken)
        for job in filter(is_for, line):
            if taken and _stays_by_itself(taken[-1]):
                break
            is_over = len(taken) >= max_jobs or tokens + job.estimated_tokens > self.size.max_tokens
            if taken and (job.kind != taken[0].kind or job.is_alone or is_over):
                break
            taken.append(job)
            tokens += job.estimated_tokens
        return taken

    def _take(self, placed: Placed) -> None:
        by_line: dict[str, list[WaitingJob]] = {}
        for job in placed.jobs:
            by_line.setdefault(_line_of(job), []).append(job)
        for name, taken in by_line.items():
            self._leave(name, taken)
        self._room[placed.worker] -= 1
        self._num_out[placed.line or placed.project] += 1
        self._charge(placed)
        self._rung_at[placed.worker] = self.now
        for job in placed.jobs:
            if job.model_ref is not None:
                self._tokens[job.model_ref] -= job.estimated_tokens
                self._num_jobs[job.model_ref] -= 1
        is_holder = placed.worker in self._trusted_names
        for ref in placed.versions if is_holder else ():
            if placed.worker not in self._warm_at.setdefault(ref, set()):
                self._warm_at[ref].add(placed.worker)
                self._loading_at.setdefault(ref, set()).add(placed.worker)

    def _leave(self, name: str, taken: Sequence[WaitingJob]) -> None:
        """The jobs, in the order of their line, are no longer in it."""
        line = self._lines[name]
        if line[len(taken) - 1] is taken[-1]:  # the head of the line, as nearly always
            del line[: len(taken)]
        else:
            ids = {job.id for job in taken}
            self._lines[name] = [job for job in line if job.id not in ids]
        sorts = self._sorts[name]
        sorts.subtract(map(self._sort_of, taken))
        for sort in [sort for sort, num in sorts.items() if num == 0]:
            del sorts[sort]

    def _charge(self, placed: Placed) -> None:
        """Who was given something stands behind those who were given less, and no longer goes first for its age."""
        for job in placed.jobs if self._turns else ():
            share, (is_in_turn, served) = self.shares[job.project_id], self._turns[job.project_id]
            given = served if is_in_turn else share.served
            self._turns[job.project_id] = True, given + charge_of(job) / share.weight


def even_jobs(num_waiting: int, num_free: int) -> int:
    """How many jobs a message may have so that each of the workers with room gets one."""
    return max(MIN_SPREAD_JOBS, math.ceil(num_waiting / max(1, num_free)))


_ALONE = (True, 0.0)


def charge_of(job: WaitingJob) -> int:
    """What a job counts when its project's share is reckoned, in tokens; an import, which has none, counts one."""
    return max(1, job.estimated_tokens)


def _line_of(job: WaitingJob) -> str:
    """The name of the job's line: its sharded job's, or for whole jobs its project's."""
    return job.parent_id or job.project_id


def _stays_by_itself(job: WaitingJob) -> bool:
    return job.is_alone or job.kind == JobKind.IMPORT
