"""What is deleted because its time is over: rows by the acting reconciler, files of the store by the apis."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

PURGED = ("events", "inputs", "results", "jobs", "files", "sessions", "traces")


class PurgeMetrics:
    """The reconciler's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._purged = Counter(
            "ondol_purged_total",
            "Deleted because its time is over: jobs' events, inputs and results (counted in jobs), jobs, files, "
            "sessions, traces of what is gone.",
            ("what",),
            registry=registry,
        )
        for what in PURGED:
            self._purged.labels(what)

    def purged(self, what: str, num: int) -> None:
        """So many are gone (count after the commit)."""
        self._purged.labels(what).inc(num)


class SweepMetrics:
    """The api's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.deleted = Counter(
            "ondol_store_files_deleted_total",
            "Files and folders of the store that were deleted after the rows that named them.",
            registry=registry,
        )
        self._collections = Counter(
            "ondol_store_collections_total",
            "Collections of what nothing in the store needs: done, refused (its log line says why), failed.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("done", "refused", "failed"):
            self._collections.labels(outcome)

    def collected(self, outcome: str) -> None:
        """A collection has ended."""
        self._collections.labels(outcome).inc()
