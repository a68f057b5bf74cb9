"""What this worker is at: works of jobs and calls by id, so that cancelled ones can be struck out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from ondol.contract.ids import parent_of
from ondol.contract.states import Priority
from workers.rows import Work
from workers.serving_gate import ServingGate


class InFlight:
    """Thread-safe register of works and plans; `gate` is told how many of them are interactive."""

    def __init__(self, gate: ServingGate) -> None:
        self._gate = gate
        self._works: dict[str, Work] = {}
        self._plans: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def add(self, works: Iterable[Work]) -> None:
        """Register works."""
        added = {work.id: work for work in works}
        with self._lock:
            # A job that came back to this worker while its lost attempt still ends here: that one is left now.
            replaced = [self._works[work_id] for work_id in added if work_id in self._works]
            self._works.update(added)
        self._gate.enter(_num_interactive(added.values()) - _num_interactive(replaced))

    def remove(self, works: Iterable[Work]) -> None:
        """Forget works."""
        removed = []
        with self._lock:
            for work in works:
                if self._works.get(work.id) is work:
                    removed.append(self._works.pop(work.id))
        self._gate.leave(_num_interactive(removed))

    def is_using(self, manifest_digest: str) -> bool:
        """Whether a work is open whose rows go through these files, in whatever dtype."""
        with self._lock:
            return any(work.key.model.key.startswith(f"{manifest_digest}:") for work in self._works.values())

    @contextmanager
    def planning(self, job_id: str) -> Iterator[Callable[[], bool]]:
        """Inside the block the job's file is read here; what it gives says whether the job was struck out meanwhile."""
        struck = threading.Event()
        with self._lock:
            self._plans[job_id] = struck
        try:
            yield struck.is_set
        finally:
            with self._lock:
                if self._plans.get(job_id) is struck:
                    del self._plans[job_id]

    def strike(self, ids: Sequence[str]) -> None:
        """Strike out those of the ids that are here; a sharded job's id stands for its plan and all its shards."""
        wanted = set(ids)
        with self._lock:
            works = [work for key, work in self._works.items() if key in wanted or parent_of(key) in wanted]
            plans = [plan for job_id, plan in self._plans.items() if job_id in wanted]
        _strike_all(works, plans)

    def strike_leased(self) -> None:
        """Strike out what belongs to claimed jobs (the lease is lost). Calls need no lease: they are answered."""
        with self._lock:
            works = [work for work in self._works.values() if work.needs_lease]
            plans = list(self._plans.values())
        _strike_all(works, plans)


def _strike_all(works: Iterable[Work], plans: Iterable[threading.Event]) -> None:
    for work in works:
        work.strike()
    for plan in plans:
        plan.set()


def _num_interactive(works: Iterable[Work]) -> int:
    return sum(work.priority is Priority.INTERACTIVE for work in works)
