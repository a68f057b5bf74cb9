"""Structured logs on stderr: our events and the library loggers in one form, for machines or people. No payloads.

A line that cannot be written (a full disk, a reader that is gone) changes nothing of what a process does: the next line
that can says how many there were.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, cast

import structlog

from ondol.settings import LogFormat, LogLevel

# One variable for all fields: binding is done for every job of a message, and structlog's own, a variable a field with
# a look at all of them, costs twenty times as much.
_context: ContextVar[dict[str, object]] = ContextVar("ondol_log_context")


@contextmanager
def log_context(**fields: object) -> Iterator[None]:
    """Every line that this thread or task logs inside the block carries the fields: `job_id`, `attempt`, and the like.

    A new thread begins without them, unless it runs in a copy of this context.
    """
    token = _context.set({**_context.get({}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def configure_logging(level: LogLevel, form: LogFormat, *, process: str) -> None:
    """Set up structlog and the standard library's logging; called once, in a composition root."""
    number = logging.getLevelNamesMapping()[level.upper()]
    output = _Output(sys.stderr)
    shared: list[structlog.typing.Processor] = [
        _merge_context,
        _naming(process),
        output.tell_of_failed_lines,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # The default tracebacks of both forms show local variables: keys and texts would reach the log.
    renderer: list[structlog.typing.Processor] = (
        [_tracebacks_without_locals(), structlog.processors.JSONRenderer()] if form == "json" else [_console_renderer()]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, output)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))  # of libraries only what a person may act on


class _Output:
    """What loggers need of a stream, without its errors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._num_failed = 0

    def write(self, line: str) -> None:
        """Write the line through to the file, or count it."""
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError:
            self._num_failed += 1
        else:
            self._num_failed = 0

    def flush(self) -> None:
        """Nothing is held back."""

    def tell_of_failed_lines(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Processor: the number of lines before this one that could not be written, if there are any."""
        if self._num_failed:
            event["log_lines_failed"] = self._num_failed
        return event


def _merge_context(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**_context.get({}), **event}


def _naming(process: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("process", process)
        return event

    return add


def _tracebacks_without_locals() -> structlog.typing.Processor:
    return structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
    )


def _console_renderer() -> structlog.typing.Processor:
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
