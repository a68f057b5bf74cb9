"""From the lines of OpenAI's batch format to inputs: `{"custom_id", "method", "url", "body": {"model", "input"}}`.

A line that cannot be run fails alone, under its custom_id or `line:N`; the inputs of a line stay together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from ondol.contract.errors import ContractError, InvalidPayload
from ondol.contract.jobs import InputLimits, parse_inputs
from workers.sharding.cutter import PlannedInput, refused
from workers.sharding.plan import BatchFormat, CutPlan
from workers.training.data.examples import Source
from workers.training.data.problems import CellProblem, file_error, shown
from workers.training.data.table import check_surrogates
from workers.training.data.text_lines import LineProblem, decoded_lines

_LEFT_OUT = ("input", "user")
"""Fields of a body that may differ from line to line."""


class BatchLines:
    """The lines of one file; remembers a digest of each custom_id."""

    def __init__(self, batch: BatchFormat, plan: CutPlan, source: Source) -> None:
        self._plan = plan
        self._source = source
        self._endpoint = batch.endpoint
        self._body = _comparable(batch.body)
        self._seen: set[bytes] = set()
        self._limits = InputLimits(max_inputs=plan.max_inputs, max_text_bytes=plan.max_text_bytes)

    def groups(self, file: BinaryIO) -> Iterator[list[PlannedInput]]:
        """The inputs of each line, or the one place of a line that is refused; blank lines are none.

        InvalidPayload where the file cannot be read any further.
        """
        try:
            for number, line in enumerate(decoded_lines(file), start=1):
                if line.strip():
                    yield self._group(line, number)
        except LineProblem as exc:
            raise file_error(self._source, f"is not readable: line {exc.line:,}: {exc.message}") from exc

    def _group(self, line: str, number: int) -> list[PlannedInput]:
        name = f"line:{number}"
        try:
            request = _object(line, number)
            name = self._custom_id(request, number)
            return self._inputs(request, name)
        except ContractError as exc:
            return [refused(exc, id=name)]

    def _custom_id(self, request: dict[str, Any], number: int) -> str:
        name = request.get("custom_id")
        if not isinstance(name, str) or not name:
            raise InvalidPayload(f"line {number:,} has no custom_id; give each line its own", code="missing_custom_id")
        return name

    def _inputs(self, request: dict[str, Any], name: str) -> list[PlannedInput]:
        self._check_new(name)
        method, url, body = request.get("method"), request.get("url"), request.get("body")
        if method != "POST":
            raise InvalidPayload(f"method is {shown(method)}; it must be 'POST'", code="invalid_method")
        if url != self._endpoint:
            raise InvalidPayload(f"url is {shown(url)}; the batch is for {self._endpoint!r}", code="mismatched_url")
        if not isinstance(body, dict):
            raise InvalidPayload("body is not an object")
        self._check_body(body)
        inputs, _ = parse_inputs(body.get("input"), self._limits, param="body.input", kind=self._plan.kind)
        return [PlannedInput(value, self._num_tokens(value), name) for value in inputs]

    def _check_new(self, name: str) -> None:
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        if digest in self._seen:
            raise InvalidPayload(f"custom_id {shown(name)} stands in an earlier line too", code="duplicate_custom_id")
        self._seen.add(digest)

    def _check_body(self, body: dict[str, Any]) -> None:
        fields = _comparable(body)
        if fields == self._body:
            return
        differ = sorted(key for key in fields.keys() | self._body.keys() if fields.get(key) != self._body.get(key))
        raise InvalidPayload(
            f"body differs from the first line's in {', '.join(map(shown, differ))}; one batch has one model and one"
            " set of options",
            code="mismatched_body",
        )

    def _num_tokens(self, value: Any) -> int:
        if isinstance(value, list):
            return len(value)
        texts = value.values() if isinstance(value, dict) else (value,)
        return self._plan.estimate.of_text(sum(len(text.encode()) for text in texts))


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        value = _DECODER.decode(line)
        check_surrogates(line)
    except (ValueError, RecursionError) as exc:
        raise InvalidPayload(f"line {number:,} is not JSON: {exc}", code="invalid_json_line") from exc
    except CellProblem as exc:
        raise InvalidPayload(f"line {number:,} {exc.message}", code="invalid_json_line") from exc
    if not isinstance(value, dict):
        raise InvalidPayload(f"line {number:,} is not a JSON object", code="invalid_json_line")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _comparable(body: dict[str, Any]) -> dict[str, str]:
    """Each field that must be the same in all lines, as JSON (where 1 and true differ)."""
    return {key: json.dumps(value, sort_keys=True) for key, value in body.items() if key not in _LEFT_OUT}
