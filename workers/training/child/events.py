"""What the child tells its supervisor: one JSON object a line on an inherited descriptor."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from ondol.contract.errors import OndolError


class EventWriter:
    """Writes events to `descriptor`; a supervisor that is gone raises BrokenPipeError. One thread only."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor

    def send(self, event: str, **fields: Any) -> None:
        """Write one event; numbers that JSON does not know become null."""
        line = json.dumps({"event": event, **_finite(fields)}, ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def send_failed(self, error: OndolError) -> None:
        """Write the last event of a run that failed."""
        self.send("failed", error=error.as_dict())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
