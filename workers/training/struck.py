"""Hints that a fine-tune was cancelled or is to be paused, handed to whoever runs it here."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class StruckJobs:
    """Thread-safe; a hint for a job that does not run here is dropped, SQL knows better."""

    def __init__(self) -> None:
        self._watched: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def strike(self, ids: Sequence[str]) -> None:
        """Tell those who run these jobs to look at SQL."""
        with self._lock:
            for job_id in ids:
                event = self._watched.get(job_id)
                if event is not None:
                    event.set()

    @contextmanager
    def watching(self, job_id: str) -> Iterator[threading.Event]:
        """An event that is set by every hint for the job."""
        event = threading.Event()
        with self._lock:
            self._watched[job_id] = event
        try:
            yield event
        finally:
            with self._lock:
                if self._watched.get(job_id) is event:
                    del self._watched[job_id]
