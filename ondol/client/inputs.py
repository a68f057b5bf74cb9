"""Inputs of a request: held where they are few, read while they are sent where they are many."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from ondol.contract.errors import InvalidPayload

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Inputs whose JSON is larger go as a file, not in the body of a request."""

Input = str | dict[str, str]
"""A text, or `{"text", "text_pair"}`."""
Check = Callable[[object, int], Input]
"""The input that stands for an item of this index; InvalidPayload if it cannot be one."""


class Inputs:
    """Inputs in order. A list is checked and held whole; an iterator only as far as the body of a request may hold.

    `held` are those that were read, of `num_bytes` as JSON; `is_whole` says that there are no others.
    """

    def __init__(self, source: Iterable[object], check: Check) -> None:
        checked = (check(item, index) for index, item in enumerate(source))
        self.num_bytes = 0
        self.held: tuple[Input, ...] = ()
        self._rest: Iterator[Input] | None = None
        if isinstance(source, Iterator):
            self._read_some(checked)
        else:
            self.held = tuple(checked)
            self.num_bytes = _size_up_to(self.held, MAX_BODY_BYTES)
        self.is_whole = self._rest is None

    @property
    def fits_body(self) -> bool:
        """Whether one request may carry them."""
        return self.is_whole and self.num_bytes <= MAX_BODY_BYTES

    @property
    def has_pairs(self) -> bool:
        """Whether the first input is a pair; in a file all or none are."""
        return bool(self.held) and isinstance(self.held[0], dict)

    def lines(self) -> Iterator[bytes]:
        """One JSON object an input with `text` and, of pairs, `text_pair`; InvalidPayload for a mixture.

        Those of an iterator can be read once.
        """
        rest: Iterator[Input] = iter(())
        if not self.is_whole:
            if self._rest is None:
                raise InvalidPayload(
                    "the inputs came from an iterator, which can be read once; run it again with a list"
                )
            rest, self._rest = self._rest, None
        for index, item in enumerate(chain(self.held, rest)):
            yield self._line(item, index)

    def _line(self, item: Input, index: int) -> bytes:
        if isinstance(item, dict) is not self.has_pairs:
            raise InvalidPayload(
                "so many inputs travel as a file, where all or none are pairs; send texts and pairs apart",
                param=f"input[{index}]",
            )
        return to_json({"text": item} if isinstance(item, str) else item, index) + b"\n"

    def _read_some(self, checked: Iterator[Input]) -> None:
        held: list[Input] = []
        for item in checked:
            held.append(item)
            self.num_bytes += len(to_json(item, len(held) - 1)) + 1
            if self.num_bytes > MAX_BODY_BYTES:
                self._rest = checked
                break
        self.held = tuple(held)


def to_json(value: object, index: int) -> bytes:
    """An input as JSON; InvalidPayload names one that is no Unicode text."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as exc:
        raise InvalidPayload("the text has a lone surrogate, which is no character", param=f"input[{index}]") from exc


def _size_up_to(held: tuple[Input, ...], limit: int) -> int:
    """Bytes of all as JSON; over `limit`, at least that many."""
    size = 0
    for index, item in enumerate(held):
        size += len(to_json(item, index)) + 1
        if size > limit:
            break
    return size
