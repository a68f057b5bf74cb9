"""The append-only history of a chaos run: every client call, every fault, as lines of JSON and in memory."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any


class Kind(StrEnum):
    """What a line says. A call is one `invoke` and then one of `ok`, `fail` (surely no effect) and `unknown`."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"
    FAULT = "fault"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: its place, seconds since the run began, the number of the call that it belongs to, and its data."""

    n: int
    at_s: float
    kind: Kind
    op: str
    call: int
    data: dict[str, Any] = field(default_factory=dict)


class History:
    """Thread-safe; a line is written before the call it announces is made, and after its answer is known."""

    def __init__(self, path: Path | None = None) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1) if path is not None else None
        self._lock = threading.Lock()
        self._calls = itertools.count(1)
        self._began_at = time.monotonic()
        self.entries: list[Entry] = []

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def invoke(self, op: str, **data: Any) -> int:
        """Announce a call; its number."""
        return self._add(Kind.INVOKE, op, next(self._calls), data)

    def end(self, kind: Kind, op: str, call: int, **data: Any) -> None:
        """How the call ended: `ok`, `fail` or `unknown`."""
        self._add(kind, op, call, data)

    def fault(self, op: str, **data: Any) -> None:
        """Something was broken, or mended again (`phase`: begin, end, skipped)."""
        self._add(Kind.FAULT, op, 0, data)

    def note(self, op: str, **data: Any) -> None:
        """Something that was observed."""
        self._add(Kind.NOTE, op, 0, data)

    def of(self, kind: Kind, *ops: str) -> list[Entry]:
        """Entries of a kind, all or those of these operations, in order."""
        return [entry for entry in list(self.entries) if entry.kind is kind and (not ops or entry.op in ops)]

    def _add(self, kind: Kind, op: str, call: int, data: dict[str, Any]) -> int:
        with self._lock:
            at_s = round(time.monotonic() - self._began_at, 4)
            entry = Entry(len(self.entries), at_s, kind, op, call, data)
            self.entries.append(entry)
            if self._file is not None:
                line = {"n": entry.n, "at_s": at_s, "type": kind, "op": op, "call": call, **data}
                self._file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        return call
