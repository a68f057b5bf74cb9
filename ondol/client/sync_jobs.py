"""`client.jobs` and `Job`, blocking."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from ondol.client import job_flows, training_flows
from ondol.client.errors import ItemError, ItemErrors, JobFailed
from ondol.client.event_stream import EventStream
from ondol.client.progress import ProgressReport
from ondol.client.records import JobEvent, JobFields, JobRequest, JobResult, parse_job
from ondol.client.training_flows import Checkpoint
from ondol.client.training_report import TrainingReport
from ondol.client.vectors import Vectors
from ondol.contract.kinds import JobKind

if TYPE_CHECKING:
    from ondol.client.sync_client import Ondol


class Job(JobFields):
    """A job as last seen (`refresh` looks again), and what can be done with it."""

    def __init__(self, client: Ondol, seen: JobFields) -> None:
        self._client = client
        self._take(seen)

    def refresh(self) -> Job:
        """This job, brought up to date."""
        return self._take(self._client.run(job_flows.get_job(self.id, self._client.policy)))

    def wait(self, *, timeout_s: float | None = None, progress: bool = False) -> Job:
        """This job once it has ended, however it ended (look at `status`); WaitTimedOut after `timeout_s`.

        With `progress` stderr shows how it goes: a bar on a terminal, lines elsewhere. A paused job has not ended.
        """
        policy = self._client.policy
        if not progress:
            return self._take(self._client.run(job_flows.wait_for_job(self.id, policy, timeout_s=timeout_s)))
        if self.kind == JobKind.FINE_TUNE:
            with TrainingReport(self) as training:
                watching = training_flows.wait_with_events(self.id, policy, training, timeout_s=timeout_s)
                return self._take(self._client.run(watching))
        with ProgressReport(f"{self.kind} {self.id}") as report:
            flow = job_flows.wait_for_job(self.id, policy, timeout_s=timeout_s, on_update=report.update_job)
            return self._take(self._client.run(flow))

    def events(self, *, after_seq: int = 0) -> Iterator[JobEvent]:
        """Events as they happen, from the one after `after_seq` until the job ends; survives lost connections."""
        return self._client.jobs.events(self.id, after_seq=after_seq)

    def result(self) -> JobResult:
        """The result; waits for it, and while a fine-tune is paused. JobFailed if the job failed or was cancelled."""
        return self._client.jobs.result(self._succeeded().id)

    def vectors(self) -> Vectors:
        """Float32 [N, H] of an embedding job; waits for it. ItemErrors (with NaN rows) if inputs failed."""
        return self._client.jobs.vectors(self._succeeded().id)

    def cancel(self) -> Job:
        """This job, cancelled; StateConflict if it had ended before."""
        return self._take(self._client.run(job_flows.cancel_job(self.id, self._client.policy)))

    def pause(self) -> Job:
        """This fine-tune, asked to stop at its next checkpoint and free the device; StateConflict unless it trains.

        It is `paused` once the checkpoint is committed; until then `pause_requested_at` says that it was asked.
        """
        return self._take(self._client.run(training_flows.pause_job(self.id, self._client.policy)))

    def resume(self) -> Job:
        """This paused fine-tune, queued again to go on from its last checkpoint; StateConflict if it is not paused."""
        return self._take(self._client.run(training_flows.resume_job(self.id, self._client.policy)))

    def checkpoints(self) -> list[Checkpoint]:
        """Committed checkpoints of a fine-tune, newest first; empty for other kinds."""
        return self._client.run(training_flows.list_checkpoints(self.id, self._client.policy))

    def retry(self) -> Job:
        """This failed job, queued again with its history; StateConflict if it has not failed."""
        return self._take(self._client.run(job_flows.retry_job(self.id, self._client.policy)))

    def _succeeded(self) -> Job:
        if not self.has_ended:
            self.wait()
        if self.status != "succeeded":
            raise JobFailed(self)
        return self

    def _take(self, seen: JobFields) -> Job:
        for spec in fields(JobFields):
            setattr(self, spec.name, getattr(seen, spec.name))
        return self


class Jobs:
    """Jobs of this project."""

    def __init__(self, client: Ondol) -> None:
        self._client = client

    def create(
        self,
        kind: str,
        *,
        input: object,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        priority: str | None = None,
        deadline_s: float | None = None,
        not_before: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """The accepted job. Every try carries one Idempotency-Key (a fresh one by default), so it is accepted once."""
        request = JobRequest(kind, input, model, options or {}, priority, deadline_s, not_before, metadata)
        return self.submit(request, idempotency_key=idempotency_key)

    def submit(self, request: JobRequest, *, idempotency_key: str | None = None) -> Job:
        """Like `create`, for a request made before."""
        flow = job_flows.submit_job(request, self._client.policy, idempotency_key=idempotency_key)
        return Job(self._client, self._client.run(flow))

    def create_many(
        self, requests: Sequence[JobRequest], *, errors: Literal["raise", "return"] = "raise"
    ) -> list[Job | ItemError]:
        """One outcome a request, in order. Refused ones raise ItemErrors, or come back with `errors="return"`."""
        seen = self._client.run(job_flows.submit_jobs(requests, self._client.policy))
        outcomes = [item if isinstance(item, ItemError) else Job(self._client, item) for item in seen]
        refused = {index: item for index, item in enumerate(outcomes) if isinstance(item, ItemError)}
        if refused and errors == "raise":
            raise ItemErrors(refused, partial=[None if isinstance(item, ItemError) else item for item in outcomes])
        return outcomes

    def get(self, job_id: str) -> Job:
        """The job as it is now; NoSuchThing if this project has none with that id."""
        return Job(self._client, self._client.run(job_flows.get_job(job_id, self._client.policy)))

    def list(self, *, limit: int | None = None, **filters: str | int | float) -> Iterator[Job]:
        """Jobs, newest first, fetched page by page; `limit` in all. Filters: kind, status, model, created_after."""
        left, after = limit, None
        while left is None or left > 0:
            page_filters = {**filters, "limit": job_flows.page_limit(left)}
            page = self._client.run(job_flows.list_jobs(self._client.policy, filters=page_filters, after=after))
            for raw in page.data:
                yield Job(self._client, parse_job(raw))
            if not page.has_more or not page.data:
                return
            after = page.data[-1]["id"]
            left = None if left is None else left - len(page.data)

    def result(self, job_id: str) -> JobResult:
        """The result of an ended job; JobFailed if it failed or was cancelled."""
        return self._client.run(job_flows.get_result(job_id, self._client.policy))

    def vectors(self, job_id: str) -> Vectors:
        """Float32 [N, H] of an ended embedding job; ItemErrors (with NaN rows) if inputs failed."""
        vectors, failed = self._client.run(job_flows.get_vectors(job_id, self._client.policy))
        if failed:
            raise ItemErrors(failed, partial=vectors)
        return vectors

    def events(self, job_id: str, *, after_seq: int = 0) -> Iterator[JobEvent]:
        """Events as they happen, from the one after `after_seq` until the job ends; survives lost connections."""
        return self._client.follow(EventStream(job_id, self._client.policy, after_seq=after_seq))

    def past_events(self, job_id: str) -> builtins.list[JobEvent]:
        """The events so far; does not wait for more."""
        return self._client.run(job_flows.list_events(job_id, self._client.policy))

    def cancel(self, job_id: str) -> Job:
        """The job, cancelled; StateConflict if it had ended before."""
        return Job(self._client, self._client.run(job_flows.cancel_job(job_id, self._client.policy)))

    def pause(self, job_id: str) -> Job:
        """The fine-tune, asked to stop at its next checkpoint; StateConflict unless it trains."""
        return Job(self._client, self._client.run(training_flows.pause_job(job_id, self._client.policy)))

    def resume(self, job_id: str) -> Job:
        """The paused fine-tune, queued again; StateConflict if it is not paused."""
        return Job(self._client, self._client.run(training_flows.resume_job(job_id, self._client.policy)))

    def checkpoints(self, job_id: str) -> builtins.list[Checkpoint]:
        """Committed checkpoints of a fine-tune, newest first."""
        return self._client.run(training_flows.list_checkpoints(job_id, self._client.policy))

    def retry(self, job_id: str) -> Job:
        """The failed job, queued again with its history; StateConflict if it has not failed."""
        return Job(self._client, self._client.run(job_flows.retry_job(job_id, self._client.policy)))

    def delete(self, job_id: str) -> None:
        """Remove the job with its inputs, result and events."""
        self._client.run(job_flows.delete_job(job_id, self._client.policy))

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended, however it ended; WaitTimedOut after `timeout_s`."""
        flow = job_flows.wait_for_job(job_id, self._client.policy, timeout_s=timeout_s)
        return Job(self._client, self._client.run(flow))

    def wait_many(self, job_ids: Sequence[str], *, timeout_s: float | None = None) -> builtins.list[Job]:
        """All jobs once all have ended, in the order given; WaitTimedOut after `timeout_s` in all."""
        flow = job_flows.wait_for_jobs(job_ids, self._client.policy, timeout_s=timeout_s)
        return [Job(self._client, seen) for seen in self._client.run(flow)]
