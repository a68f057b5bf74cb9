"""What the dashboard may know of tasks and nodes: names, ids, times and counts. Arguments, results and errors stay out.

Nodes of ours blank what they announce. But other applications announce their own tasks, and a node that is asked for
its reserved tasks tells their arguments in full: so everything passes here before the dashboard remembers it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ondol.broker.celery_app import RUN_TASK
from ondol.broker.shown_jobs import jobs_shown, show_jobs

HIDDEN = "(not shown)"
_NO_ARGUMENTS: tuple[Any, ...] = (None, "", "()", "[]", "{}", (), [], {})
_KEPT_OF_EVENT = frozenset(
    {
        *("type", "uuid", "name", "hostname", "timestamp", "local_received", "utcoffset", "pid", "clock"),
        *("root_id", "parent_id", "retries", "queue", "exchange", "routing_key", "runtime"),
        *("terminated", "signum", "expired", "requeue"),
        *("freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys"),
    }
)
_KEPT_OF_TASK = frozenset({"id", "name", "type", "hostname", "time_start", "acknowledged", "worker_pid"})
_ERROR_NAME = re.compile(r"[A-Za-z_][\w.]{0,99}")
_LONGEST = 256


def event_without_texts(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """The event as it may be remembered; None if it is none of Celery's."""
    kept = {name: _short(value) for name, value in event.items() if name in _KEPT_OF_EVENT}
    if not all(isinstance(kept.get(name), str) for name in ("type", "hostname")):
        return None
    if kept["type"].startswith("task-") and not isinstance(kept.get("uuid"), str):
        return None
    if kept.get("name") == RUN_TASK:
        # Only the sender's own event says so; the node's says `ondol.<kind>`, and whichever came last would be shown.
        del kept["name"]
    for name in ("args", "kwargs"):
        if name in event:
            kept[name] = _shown_arguments(event[name])
    if "exception" in event:
        kept["exception"] = _error_name(event["exception"])
    return kept


def report_without_texts(method: str, answer: Any) -> Any:
    """A node's answer to the inspection `method`, as it may be remembered."""
    if method in ("active", "reserved"):
        return [_task_without_texts(task) for task in answer]
    if method == "scheduled":
        return [
            {"eta": one.get("eta"), "priority": one.get("priority"), "request": _task_without_texts(one["request"])}
            for one in answer
        ]
    return answer


def _task_without_texts(task: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: _short(value) for name, value in task.items() if name in _KEPT_OF_TASK}
    return kept | {name: _shown_arguments(task.get(name)) for name in ("args", "kwargs")}


def _shown_arguments(value: Any) -> str:
    if value in _NO_ARGUMENTS:
        return ""
    if isinstance(value, dict):  # of a reserved message of ours: its own arguments, not what stands for them
        value = _stands_for(value.get("jobs"))
    return str(value) if jobs_shown(value) else HIDDEN


def _stands_for(pairs: Any) -> str | None:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and pair for pair in pairs):
        return None
    return show_jobs([str(pair[0]) for pair in pairs])


def _error_name(shown: Any) -> str:
    match = _ERROR_NAME.match(shown) if isinstance(shown, str) else None
    return f"{match[0] if match else 'an error'} (its message is in the node's log)"


def _short(value: Any) -> Any:
    return value[:_LONGEST] if isinstance(value, str) else value
