"""`client.jobs` and `Job`, blocking."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ondol.client import job_flows, training_flows, webhook_flows
from ondol.client.errors import ItemError, ItemErrors, JobFailed
from ondol.client.event_stream import EventStream
from ondol.client.file_job_flow import submit_file_job
from ondol.client.file_transfer import appearing_file, local_path
from ondol.client.progress import ProgressReport, reporting
from ondol.client.records import JobEvent, JobFields, JobRequest, JobResult, parse_job
from ondol.client.training_flows import Checkpoint
from ondol.client.training_report import TrainingReport
from ondol.client.vectors import Vectors
from ondol.client.webhook_flows import JobNotice
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
        with ProgressReport(self.kind) as report:
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

    def download(self, path: str | Path, format: str | None = None) -> Path:
        """The result in the local file `path`, which appears whole or not at all; waits for it.

        `format`: parquet, npy (embeddings without item errors), jsonl or json; by default what the name ends in. It is
        streamed, of any size. Of a cancelled bulk job it is what was done.
        """
        wanted = job_flows.format_of(path, format)
        if not self.has_ended:
            self.wait()
        return self._client.jobs.download(self.id, path, wanted)

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

    def delete(self) -> None:
        """Remove this job with its inputs, result and events; StateConflict while it has not ended."""
        self._client.jobs.delete(self.id)

    def notices(self) -> list[JobNotice]:
        """Who is told of this job's ends, and how that goes; oldest end first."""
        return self._client.jobs.notices(self.id)

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
        input: object = None,
        input_file: str | Path | None = None,
        input_columns: Mapping[str, str] | None = None,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        priority: str | None = None,
        deadline_s: float | None = None,
        not_before: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """The accepted job. Every try carries one Idempotency-Key (a fresh one by default), so it is accepted once.

        `input_file`, in place of `input`, is the id of an uploaded file or a local path (.csv, .tsv, .jsonl, .json,
        .parquet, or .txt with one text a line), which is uploaded and kept for a week; `input_columns` says which of
        its columns are `text`, `text_pair` and `id`. `webhook` is a URL that is told, by a signed POST, how the job
        ended.
        """
        request = JobRequest(
            kind,
            input,
            model,
            options or {},
            priority,
            deadline_s,
            not_before,
            metadata,
            webhook,
            input_columns=input_columns,
        )
        flow = submit_file_job(request, input_file, self._client.policy, idempotency_key=idempotency_key)
        return Job(self._client, self._client.run(flow))

    def submit(self, request: JobRequest, *, idempotency_key: str | None = None) -> Job:
        """Like `create`, for a request made before."""
        flow = job_flows.submit_job(request, self._client.policy, idempotency_key=idempotency_key)
        return Job(self._client, self._client.run(flow))

    @overload
    def create_many(
        self,
        requests: Sequence[JobRequest],
        *,
        errors: Literal["raise"] = "raise",
        idempotency_key: str | None = None,
    ) -> builtins.list[Job]: ...

    @overload
    def create_many(
        self, requests: Sequence[JobRequest], *, errors: Literal["return"], idempotency_key: str | None = None
    ) -> builtins.list[Job | ItemError]: ...

    def create_many(
        self,
        requests: Sequence[JobRequest],
        *,
        errors: Literal["raise", "return"] = "raise",
        idempotency_key: str | None = None,
    ) -> Sequence[Job | ItemError]:
        """One job a request, in order; any number, in slices of at most 1,000 that are accepted whole or not at all.

        Refused ones raise ItemErrors, or come back as ItemError with `errors="return"`. Where a slice fails (no server,
        a full queue), those before it are accepted; the same call with the same `idempotency_key` goes on from there.
        """
        flow = job_flows.submit_jobs(requests, self._client.policy, idempotency_key=idempotency_key)
        seen = self._client.run(flow)
        outcomes = [item if isinstance(item, ItemError) else Job(self._client, item) for item in seen]
        refused = {index: item for index, item in enumerate(outcomes) if isinstance(item, ItemError)}
        if refused and errors == "raise":
            raise ItemErrors(refused, partial=[None if isinstance(item, ItemError) else item for item in outcomes])
        return outcomes

    def get(self, job_id: str) -> Job:
        """The job as it is now; NoSuchThing if this project has none with that id."""
        return Job(self._client, self._client.run(job_flows.get_job(job_id, self._client.policy)))

    def list(
        self,
        *,
        kind: str | None = None,
        status: str | None = None,
        model: str | None = None,
        created_after: float | datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first, fetched page by page; `limit` in all. `created_after`: Unix seconds, or an aware time."""
        filters = job_flows.job_filters(kind=kind, status=status, model=model, created_after=created_after)
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

    def download(self, job_id: str, path: str | Path, format: str | None = None) -> Path:
        """The result of an ended job in the local file `path`, streamed; formats as for `Job.download`."""
        wanted = job_flows.format_of(path, format)
        with appearing_file(path) as sink:
            self._client.run(job_flows.save_result(job_id, wanted, sink, self._client.policy))
        return local_path(path)

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

    def notices(self, job_id: str) -> builtins.list[JobNotice]:
        """Who is told of the job's ends, and how that goes; oldest end first."""
        return builtins.list(self._client.run(webhook_flows.list_notices(job_id, self._client.policy)))

    def redeliver(self, job_id: str, notice_id: str) -> JobNotice:
        """The notice, due again now, also if it was accepted or given up; NoSuchThing if the job has no such notice."""
        return self._client.run(webhook_flows.redeliver(job_id, notice_id, self._client.policy))

    def delete(self, job_id: str) -> None:
        """Remove the job with its inputs, result and events."""
        self._client.run(job_flows.delete_job(job_id, self._client.policy))

    def wait(self, job_id: str, *, timeout_s: float | None = None, progress: bool = False) -> Job:
        """The job once it has ended, however it ended; WaitTimedOut after `timeout_s`. `progress` as for a job."""
        if progress:
            return self.get(job_id).wait(timeout_s=timeout_s, progress=True)
        flow = job_flows.wait_for_job(job_id, self._client.policy, timeout_s=timeout_s)
        return Job(self._client, self._client.run(flow))

    def wait_many(
        self, jobs: Sequence[str | JobFields], *, timeout_s: float | None = None, progress: bool = False
    ) -> builtins.list[Job]:
        """All jobs (or ids) once all have ended, however they ended, in the order given.

        WaitTimedOut after `timeout_s` in all. With `progress` stderr shows how many have ended.
        """
        ids = [job if isinstance(job, str) else job.id for job in jobs]
        policy = self._client.policy
        with reporting(f"{len(ids)} jobs" if progress else None) as on_progress:
            flow = job_flows.wait_for_jobs(ids, policy, timeout_s=timeout_s, on_progress=on_progress)
            return [Job(self._client, seen) for seen in self._client.run(flow)]
