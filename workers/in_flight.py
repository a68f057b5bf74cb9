"""What this worker is at: works of jobs and calls by id, so that cancelled ones can be struck out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from workers.rows import Work


class InFlight:
    """Thread-safe register of works."""

    def __init__(self) -> None:
        self._works: dict[str, Work] = {}
        self._lock = threading.Lock()

    def add(self, works: Iterable[Work]) -> None:
        """Register works."""
        with self._lock:
            self._works.update({work.id: work for work in works})

    def remove(self, works: Iterable[Work]) -> None:
        """Forget works."""
        with self._lock:
            for work in works:
                if self._works.get(work.id) is work:
                    del self._works[work.id]

    def strike(self, ids: Sequence[str]) -> None:
        """Strike out those of the ids that are here."""
        with self._lock:
            struck = [self._works[found] for found in ids if found in self._works]
        for work in struck:
            work.strike()

    def strike_leased(self) -> None:
        """Strike out the works of claimed jobs (the lease is lost). Calls need no lease: they are answered."""
        with self._lock:
            works = [work for work in self._works.values() if work.needs_lease]
        for work in works:
            work.strike()
