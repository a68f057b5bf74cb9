"""Where people reach Flower, as far as this process knows."""

from __future__ import annotations

import time
from pathlib import Path

_LOOK_EVERY_S = 2.0


class FlowerAddress:
    """The configured address, else the one that a Flower on the same data folder says it has. One thread at a time."""

    def __init__(self, configured: str | None, url_file: Path) -> None:
        self._configured = configured.rstrip("/") if configured else None
        self._file = url_file
        self._found: str | None = None
        self._look_again_at = 0.0

    def url(self) -> str | None:
        """The address, at most two seconds old; None while there is no Flower. It comes and goes without the api."""
        if self._configured is not None:
            return self._configured
        now = time.monotonic()
        if now >= self._look_again_at:
            self._found, self._look_again_at = self._read(), now + _LOOK_EVERY_S
        return self._found

    def _read(self) -> str | None:
        try:
            return self._file.read_text(encoding="utf-8").strip() or None
        except OSError:  # no file is the rule where Flower runs elsewhere; one that cannot be read is no address either
            return None
