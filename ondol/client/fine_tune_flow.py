"""The flow behind `fine_tune`: upload what is a local file, then submit the job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondol.client.errors import OndolAPIError
from ondol.client.file_flows import DEFAULT_PURPOSE, delete_file, put_file
from ondol.client.file_transfer import FileUpload
from ondol.client.flow import INTERRUPTIONS, Flow
from ondol.client.job_flows import submit_job
from ondol.client.records import JobFields, JobRequest
from ondol.client.retry import RetryPolicy
from ondol.contract.errors import InvalidPayload, OndolError
from ondol.contract.files import check_suffix
from ondol.contract.fine_tune import Columns, Hyperparameters
from ondol.contract.model_ref import NAME_PATTERN, parse_model_ref

Source = str | Path
"""A local path, or the id of an uploaded file (`file_…`, as a str)."""

SHORT_NAMES: dict[str, tuple[str, str]] = {
    **{f"{part}_column": ("columns", part) for part in Columns.model_fields},
    "epochs": ("hyperparameters", "num_train_epochs"),
    "batch_size": ("hyperparameters", "per_device_train_batch_size"),
}
"""Our own short names, and the place of each among the job's options."""

FILE_LIFE_S = 30 * 86_400
"""When the server forgets a file that `fine_tune` has uploaded; never before the jobs that need it have ended."""
_FILE_ID = re.compile(r"file_[0-9a-z]{26}")
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What any job may carry beside its options; None leaves it to the server's default."""

    priority: str | None = None
    metadata: Mapping[str, Any] | None = None
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class FineTune:
    """A checked request: files as ids or ready for upload, and the job's options without them."""

    train: FileUpload | str
    validation: FileUpload | str | None
    model: str
    options: Mapping[str, Any]
    envelope: Envelope


def fine_tune_request(
    data: Source,
    validation: Source | None,
    *,
    model: str,
    name: str,
    options: Mapping[str, Any],
    envelope: Envelope,
) -> FineTune:
    """The request; InvalidPayload for a file that cannot be read, a wrong name, or an option that is given twice.

    What else is wrong with the options, unknown names included, the server says.
    """
    parse_model_ref(model)
    if _NAME.fullmatch(name) is None:
        raise InvalidPayload(
            f"{name[:120]!r} is not a name for a model; use lower-case letters, digits, '.', '_' and '-'",
            param="name",
        )
    placed = place_options(options)
    taken = {"output_name", "train_file"} | ({"validation_file"} if validation is not None else set())
    for option in sorted(taken & placed.keys()):
        raise _given_twice(option, (option,))
    train = _source(data)
    checked = None if validation is None else _source(validation)
    return FineTune(train, checked, model, {"output_name": name, **placed}, envelope)


def place_options(named: Mapping[str, Any]) -> dict[str, Any]:
    """The job's options from names: those of options, short names, hyperparameters, and `early_stopping.patience`.

    None leaves an option to its default. InvalidPayload if one is given twice.
    """
    placed: dict[str, Any] = {}
    for name, value in named.items():
        if value is None:
            continue
        path = _place_of(name)
        if isinstance(value, Mapping) and len(path) == 1:
            _group(placed, path[0], name)
            for part, item in value.items():
                _put(placed, (path[0], str(part)), item, f"{name}.{part}")
        else:
            _put(placed, path, value, name)
    return placed


def fine_tune(request: FineTune, policy: RetryPolicy) -> Flow[JobFields]:
    """The accepted job. A file that stands for both data is sent once.

    When an upload breaks or the job is refused, none is left behind; where nobody knows whether the job was accepted,
    they stay until they expire.
    """
    uploaded: dict[Path, str] = {}
    try:
        files = {"train_file": (yield from _file_id(request.train, uploaded, policy))}
        if request.validation is not None:
            files["validation_file"] = yield from _file_id(request.validation, uploaded, policy)
    except (OndolError, *INTERRUPTIONS):
        yield from _delete_all(uploaded.values(), policy)
        raise
    about = request.envelope
    job = JobRequest(
        "fine-tune",
        None,
        request.model,
        {**request.options, **files},
        priority=about.priority,
        metadata=about.metadata,
        webhook=about.webhook,
    )
    try:
        return (yield from submit_job(job, policy))
    except (OndolAPIError, *INTERRUPTIONS):
        yield from _delete_all(uploaded.values(), policy)
        raise


def _source(value: Source) -> FileUpload | str:
    if isinstance(value, str) and _FILE_ID.fullmatch(value):
        return value
    upload = FileUpload(value, DEFAULT_PURPOSE, expires_after_s=FILE_LIFE_S)
    check_suffix(upload.filename, DEFAULT_PURPOSE)
    return upload


def _file_id(source: FileUpload | str, uploaded: dict[Path, str], policy: RetryPolicy) -> Flow[str]:
    if isinstance(source, str):
        return source
    place = source.path.resolve()
    if place not in uploaded:
        uploaded[place] = (yield from put_file(source, policy)).id
    return uploaded[place]


def _delete_all(file_ids: Iterable[str], policy: RetryPolicy) -> Flow[None]:
    for file_id in file_ids:
        try:
            yield from delete_file(file_id, policy)
        except OndolError:  # the server keeps a file that a job names; the first error is the one to report
            continue


def _place_of(name: str) -> tuple[str, ...]:
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if name in Hyperparameters.model_fields:
        return ("hyperparameters", name)
    return tuple(name.split(".", 1))


def _put(placed: dict[str, Any], path: tuple[str, ...], value: Any, name: str) -> None:
    if value is None:
        return
    group = placed if len(path) == 1 else _group(placed, path[0], name)
    if path[-1] in group:
        raise _given_twice(name, path)
    group[path[-1]] = value


def _group(placed: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    group = placed.setdefault(key, {})
    if not isinstance(group, dict):
        raise _given_twice(name, (key,))
    return group


def _given_twice(name: str, path: tuple[str, ...]) -> InvalidPayload:
    full = ".".join(path)
    known_as = "" if full == name else f" ({full})"
    return InvalidPayload(f"{name}{known_as} is given twice", param=f"options.{full}")
