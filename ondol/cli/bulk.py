"""Jobs on the rows of a file: upload it, watch the job, bring the result to a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ondol.cli import exits
from ondol.cli.options import BINARY, ResultFormat
from ondol.cli.output import check_writable, npy_bytes, write_bytes
from ondol.cli.texts import STDIN, report_errors
from ondol.cli.watching import report_end
from ondol.client import job_flows
from ondol.client.bulk_flow import FILE_LIFE_S
from ondol.client.errors import ConnectionFailed, ItemErrors, OndolAPIError, ServerFailed
from ondol.client.file_job_flow import PURPOSE
from ondol.client.file_transfer import HashedSink, appearing_file
from ondol.client.records import JobRequest
from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job
from ondol.contract.errors import InvalidPayload, OndolError
from ondol.contract.files import DATA_SUFFIXES

LARGE_FILE_BYTES = 16 * 1024 * 1024
"""Text files over this are not read here, but sent."""
_NOT_ACCEPTABLE = 406
_ERROR_KEY = b',"error":{'
"""Begins the error of an item, and stands nowhere else in a result: within a text its quotes are escaped."""

TextColumn = Annotated[
    str | None, typer.Option("--text-column", help="Column of the texts; `text` by default.", show_default=False)
]
PairColumn = Annotated[
    str | None, typer.Option("--text-pair-column", help="Column of the second texts of pairs.", show_default=False)
]
IdColumn = Annotated[
    str | None,
    typer.Option("--id-column", help="Column whose values name the results; `id` if there is one.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns were named."""

    text: str | None = None
    id: str | None = None
    text_pair: str | None = None

    def as_input(self) -> dict[str, str] | None:
        """As a job takes them; None: the default ones."""
        named = {"text": self.text, "id": self.id, "text_pair": self.text_pair}
        return {name: column for name, column in named.items() if column is not None} or None


def is_table(file: Path, columns: Columns) -> bool:
    """Whether the server is to read the file: it has columns, or is large. InvalidPayload for columns of others."""
    is_stdin = str(file) == STDIN
    has_columns = not is_stdin and file.suffix.lower() in DATA_SUFFIXES
    if columns.as_input() and not has_columns:
        raise InvalidPayload(f"columns are those of a --file that ends in {', '.join(DATA_SUFFIXES)}", param="--file")
    return has_columns or (not is_stdin and _size_of(file) > LARGE_FILE_BYTES)


def run_table(client: Ondol, request: JobRequest, file: Path, output: Path | None, result_format: ResultFormat) -> int:
    """The exit code of a job on the rows of the file, whose result is written; Ctrl-C cancels the job."""
    check_output(output, result_format)
    name = file.name if file.suffix.lower() in DATA_SUFFIXES else f"{file.stem}.txt"
    uploaded = client.files.put(file, PURPOSE, filename=name, expires_after_s=FILE_LIFE_S)
    try:
        return run_watched(client, replace(request, input_file=uploaded.id), output, result_format)
    finally:
        with suppress(OndolError):  # it expires by itself
            client.files.delete(uploaded.id)


def run_watched(client: Ondol, request: JobRequest, output: Path | None, result_format: ResultFormat) -> int:
    """The exit code of the job, which is watched until its end and whose result is written; Ctrl-C cancels it.

    Its id stands on stderr at once. ConnectionFailed and ServerFailed carry it: the job goes on without this command.
    """
    check_output(output, result_format)
    job = client.jobs.submit(request)
    sys.stderr.write(f"{job.id}\n")
    try:
        job.wait(progress=True)
        code = report_end(job)
        return code if code != exits.DONE else write_result(client, job, output, result_format)
    except KeyboardInterrupt:
        with suppress(OndolError):  # it may have ended meanwhile
            job.cancel()
        said = f"job {job.id} is {job.status}; `ondol jobs result {job.id}` gives what was done"
        return exits.fail(said, exits.INTERRUPTED)
    except (ConnectionFailed, ServerFailed) as error:
        error.job_id = job.id
        raise


def write_result(client: Ondol, job: Job, output: Path | None, result_format: ResultFormat) -> int:
    """Bring a result, of any size, to the output; the exit code says whether inputs failed, as far as that is seen.

    An npy file has NaN in the rows of inputs that failed.
    """
    check_output(output, result_format)
    try:
        num_errors = _save(client, job.id, output, result_format)
    except OndolAPIError as error:
        if error.status != _NOT_ACCEPTABLE or result_format is not ResultFormat.NPY:
            raise
        return _write_vectors(client, job.id, output)
    if num_errors:
        return exits.fail(f"{num_errors} inputs failed; each has its error in the result", exits.JOB_FAILED)
    return exits.DONE


def check_output(output: Path | None, result_format: ResultFormat, *, by_replacing: bool = True) -> None:
    """Return unless the file cannot be written, or binary output would go to a terminal (InvalidPayload)."""
    check_writable(output, by_replacing=by_replacing)
    if output is None and result_format in BINARY and sys.stdout.isatty():
        raise InvalidPayload("binary output does not go to a terminal; name a file with --output or use a pipe")


def file_request(kind: str, model: str, options: Mapping[str, Any], columns: Columns) -> JobRequest:
    """The job without its file; options that are None are left to the server."""
    given = {name: value for name, value in options.items() if value is not None}
    return JobRequest(kind, model=model, options=given, input_columns=columns.as_input())


class _ErrorCounter:
    """Counts items with errors in a JSON result that passes by."""

    def __init__(self) -> None:
        self.num_errors = 0
        self._tail = b""

    def begin(self) -> None:
        """Forget what a broken answer brought."""
        self.num_errors, self._tail = 0, b""

    def count(self, data: bytes) -> None:
        """Look at the next piece."""
        seen = self._tail + data
        self.num_errors += seen.count(_ERROR_KEY)
        self._tail = seen[-len(_ERROR_KEY) + 1 :]


class _CountedSink:
    """A sink that has the counter look at what it takes."""

    def __init__(self, sink: HashedSink, counter: _ErrorCounter) -> None:
        self._sink = sink
        self._counter = counter

    def begin(self) -> None:
        """Begin anew."""
        self._sink.begin()
        self._counter.begin()

    def write(self, data: bytes, /) -> None:
        """Take the next piece."""
        self._sink.write(data)
        self._counter.count(data)


def _save(client: Ondol, job_id: str, output: Path | None, result_format: ResultFormat) -> int:
    """How many inputs failed: what the server says of a job that succeeded, else what is seen in JSON."""
    counter = _ErrorCounter()
    with nullcontext(HashedSink(sys.stdout.buffer)) if output is None else appearing_file(output) as file:
        sink = file if result_format in BINARY else _CountedSink(file, counter)
        told = client.run(job_flows.save_result(job_id, result_format.value, sink, client.policy))
    return counter.num_errors if told is None else told


def _write_vectors(client: Ondol, job_id: str, output: Path | None) -> int:
    try:
        vectors = client.jobs.vectors(job_id)
    except ItemErrors as error:
        write_bytes(npy_bytes(error.partial), output)
        return report_errors(error.errors)
    write_bytes(npy_bytes(vectors), output)
    return exits.DONE


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as exc:
        raise InvalidPayload(f"cannot read {file}: {exc.strerror}", param="--file") from exc
