"""Ondol: a job system for transformer models. This import is light; the client is loaded when it is first named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ondol.client.async_client import AsyncOndol
    from ondol.client.async_jobs import AsyncJob
    from ondol.client.embed_flow import PartialVectors
    from ondol.client.errors import (
        AnswerTimedOut,
        AuthenticationFailed,
        ConnectionFailed,
        ItemError,
        ItemErrors,
        JobFailed,
        NoSuchThing,
        OndolAPIError,
        PermissionRefused,
        RequestRefused,
        ServerBusy,
        ServerFailed,
        StateConflict,
        WaitTimedOut,
    )
    from ondol.client.file_flows import FileInfo
    from ondol.client.labels import Entity, LabelScore, PartialResults
    from ondol.client.records import JobEvent, JobRequest, JobResult, ModelInfo, Progress, ResultItem
    from ondol.client.sync_client import Ondol
    from ondol.client.sync_jobs import Job
    from ondol.client.training_flows import Checkpoint
    from ondol.client.webhook_flows import JobNotice
    from ondol.contract.errors import InvalidWebhook, OndolError
    from ondol.contract.webhook_signature import verify_webhook

_HOMES = {
    "AsyncJob": "ondol.client.async_jobs",
    "AsyncOndol": "ondol.client.async_client",
    "AnswerTimedOut": "ondol.client.errors",
    "AuthenticationFailed": "ondol.client.errors",
    "Checkpoint": "ondol.client.training_flows",
    "ConnectionFailed": "ondol.client.errors",
    "Entity": "ondol.client.labels",
    "ItemError": "ondol.client.errors",
    "ItemErrors": "ondol.client.errors",
    "FileInfo": "ondol.client.file_flows",
    "InvalidWebhook": "ondol.contract.errors",
    "Job": "ondol.client.sync_jobs",
    "JobEvent": "ondol.client.records",
    "JobFailed": "ondol.client.errors",
    "JobNotice": "ondol.client.webhook_flows",
    "JobRequest": "ondol.client.records",
    "JobResult": "ondol.client.records",
    "LabelScore": "ondol.client.labels",
    "ModelInfo": "ondol.client.records",
    "NoSuchThing": "ondol.client.errors",
    "Ondol": "ondol.client.sync_client",
    "OndolAPIError": "ondol.client.errors",
    "OndolError": "ondol.contract.errors",
    "PartialResults": "ondol.client.labels",
    "PartialVectors": "ondol.client.embed_flow",
    "PermissionRefused": "ondol.client.errors",
    "Progress": "ondol.client.records",
    "RequestRefused": "ondol.client.errors",
    "ResultItem": "ondol.client.records",
    "ServerBusy": "ondol.client.errors",
    "ServerFailed": "ondol.client.errors",
    "StateConflict": "ondol.client.errors",
    "WaitTimedOut": "ondol.client.errors",
    "verify_webhook": "ondol.contract.webhook_signature",
}

__all__ = [
    "AnswerTimedOut",
    "AsyncJob",
    "AsyncOndol",
    "AuthenticationFailed",
    "Checkpoint",
    "ConnectionFailed",
    "Entity",
    "FileInfo",
    "InvalidWebhook",
    "ItemError",
    "ItemErrors",
    "Job",
    "JobEvent",
    "JobFailed",
    "JobNotice",
    "JobRequest",
    "JobResult",
    "LabelScore",
    "ModelInfo",
    "NoSuchThing",
    "Ondol",
    "OndolAPIError",
    "OndolError",
    "PartialResults",
    "PartialVectors",
    "PermissionRefused",
    "Progress",
    "RequestRefused",
    "ResultItem",
    "ServerBusy",
    "ServerFailed",
    "StateConflict",
    "WaitTimedOut",
    "verify_webhook",
]


def __getattr__(name: str) -> object:
    """The public names, loaded from their modules at first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
