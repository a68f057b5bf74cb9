"""What the server says about jobs, events, results and models, as typed records; `raw` keeps fields it adds later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ondol.client.errors import BadAnswer, ItemError
from ondol.client.flow import Json
from ondol.contract.states import TERMINAL

_TERMINAL = frozenset(str(state) for state in TERMINAL)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job to submit; None leaves a field to the server's default."""

    kind: str
    input: object = None
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    priority: str | None = None
    deadline_s: float | None = None
    not_before: float | None = None
    metadata: Mapping[str, Any] | None = None
    webhook: str | None = None
    input_file: str | None = None
    """The id of an uploaded file whose rows are the inputs, in place of `input`."""
    input_columns: Mapping[str, str] | None = None
    """Which of its columns hold `text`, `text_pair` and `id`."""

    def body(self) -> Json:
        """The request as `POST /v1/jobs` takes it."""
        optional = {
            "input_file": self.input_file,
            "input_columns": None if self.input_columns is None else dict(self.input_columns),
            "model": self.model,
            "priority": self.priority,
            "deadline_s": self.deadline_s,
            "not_before": self.not_before,
            "metadata": self.metadata,
            "webhook": self.webhook,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        source = {"input": self.input} if self.input_file is None or self.input is not None else {}
        return {"kind": self.kind, **source, "options": dict(self.options), **given}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: `done` of `total` (None: not known yet) in `unit`."""

    done: int
    total: int | None
    unit: str


@dataclass(slots=True)
class JobFields:
    """A job as the server last described it; times are aware and in UTC, `raw` is the JSON itself.

    Only fine-tunes have the three behind `raw`: what the check of the files `resolved`, when a pause was asked for that
    has not come about yet, and since when a cancelled one's device is free.
    """

    id: str
    kind: str
    status: str
    model: str | None
    priority: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    worker: str | None
    progress: Progress | None
    usage: Mapping[str, Any]
    timings: Mapping[str, float]
    error: ItemError | None
    metadata: Mapping[str, Any]
    raw: Json
    resolved: Mapping[str, Any] | None = None
    pause_requested_at: datetime | None = None
    device_released_at: datetime | None = None
    webhook: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job succeeded, failed or was cancelled."""
        return self.status in _TERMINAL

    @property
    def run_s(self) -> float | None:
        """Seconds from start to end; None while either is missing."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job; `seq` counts from 1 without a gap."""

    seq: int
    type: str
    created_at: datetime
    data: Mapping[str, Any]
    raw: Json


@dataclass(frozen=True, slots=True)
class ResultItem:
    """What became of one input: `output`, or `error`; `tokens` and `truncated` say what the model read."""

    index: int
    output: Any
    error: ItemError | None
    tokens: int | None
    truncated: bool


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job's result; `items` are in input order and empty for kinds without inputs (see `raw`).

    For an inference `model` is the version that ran, for a fine-tune the one that was published (`name:3`; None if its
    files were only validated), for which `metrics` are those of its best step.
    """

    items: tuple[ResultItem, ...]
    model: str | None
    usage: Mapping[str, Any]
    raw: Json

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of a fine-tune's published version on its validation rows; empty for other kinds."""
        return self.raw.get("metrics") or {}

    @property
    def errors(self) -> dict[int, ItemError]:
        """The inputs that failed."""
        return {item.index: item.error for item in self.items if item.error is not None}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that can be named in requests; all that the server says of it is in `raw`."""

    id: str
    created_at: datetime | None
    owned_by: str | None
    raw: Json


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list and whether more follows after its last id."""

    data: Sequence[Json]
    has_more: bool


def parse_job(raw: Json) -> JobFields:
    """The job in a JSON object; BadAnswer if it is none."""
    try:
        return JobFields(
            id=raw["id"],
            kind=raw["kind"],
            status=raw["status"],
            model=raw.get("model"),
            priority=raw.get("priority") or "normal",
            created_at=_required_time(raw["created_at"]),
            started_at=_time(raw.get("started_at")),
            finished_at=_time(raw.get("finished_at")),
            attempt=raw.get("attempt") or 0,
            worker=raw.get("worker"),
            progress=_progress(raw.get("progress")),
            usage=raw.get("usage") or {},
            timings=raw.get("timings") or {},
            error=parse_item_error(raw.get("error")),
            metadata=raw.get("metadata") or {},
            raw=raw,
            resolved=raw.get("resolved"),
            pause_requested_at=_time(raw.get("pause_requested_at")),
            device_released_at=_time(raw.get("device_released_at")),
            webhook=raw.get("webhook"),
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise BadAnswer(f"this is not a job: {str(raw)[:200]}") from exc


def parse_event(raw: Json) -> JobEvent:
    """The event in a JSON object; BadAnswer if it is none."""
    try:
        return JobEvent(raw["seq"], raw["type"], _required_time(raw["created_at"]), raw.get("data") or {}, raw)
    except (KeyError, TypeError) as exc:
        raise BadAnswer(f"this is not a job event: {str(raw)[:200]}") from exc


def parse_result(raw: Json) -> JobResult:
    """The result in a JSON object; BadAnswer if its items are not items."""
    try:
        items = tuple(_item(item) for item in raw.get("data") or ())
    except (KeyError, TypeError, AttributeError) as exc:
        raise BadAnswer(f"this is not a result: {str(raw)[:200]}") from exc
    return JobResult(items, raw.get("model"), raw.get("usage") or {}, raw)


def parse_model(raw: Json) -> ModelInfo:
    """The model in a JSON object; BadAnswer if it is none."""
    try:
        return ModelInfo(raw["id"], _time(raw.get("created")), raw.get("owned_by"), raw)
    except (KeyError, TypeError) as exc:
        raise BadAnswer(f"this is not a model: {str(raw)[:200]}") from exc


def parse_page(raw: Json) -> Page:
    """A list answer; BadAnswer if it has no `data` list."""
    data = raw.get("data")
    if not isinstance(data, list):
        raise BadAnswer(f"this is not a list: {str(raw)[:200]}")
    return Page(data, bool(raw.get("has_more", False)))


def parse_item_error(raw: Mapping[str, Any] | None) -> ItemError | None:
    """The error of a job or an item, if there is one."""
    if raw is None:
        return None
    return ItemError(str(raw.get("code") or "unknown"), str(raw.get("message") or ""), raw.get("param"))


def _item(raw: Mapping[str, Any]) -> ResultItem:
    error = parse_item_error(raw.get("error"))
    return ResultItem(raw["index"], raw.get("output"), error, raw.get("tokens"), bool(raw.get("truncated", False)))


def _progress(raw: Mapping[str, Any] | None) -> Progress | None:
    return Progress(raw["done"], raw.get("total"), raw.get("unit") or "inputs") if raw else None


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else _required_time(seconds)


def _required_time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
