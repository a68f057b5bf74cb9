"""Puts inputs into shards as they come and writes each shard when it is full: one shard is in memory at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import BinaryIO, Self

from ondol.contract.cutting import MAX_JOB_SIZE
from ondol.contract.errors import InvalidPayload, OndolError
from ondol.contract.jobs import Pair
from workers.sharding.plan import INDEX_FILE, MAX_SHARD_BYTES, PAYLOADS_FILE, CutPlan, CutReport, CutShard

MAX_SHARDS = 999_999
"""As many as ids of six digits have room for."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_TEXT_PLACEHOLDER = b'""'
_IDS_PLACEHOLDER = b"[0]"


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """One input, or why there is none (`error`, and no `value`); `id` is the caller's name for it."""

    value: str | Pair | list[int] | None
    num_tokens: int
    id: str | int | float | None = None
    error: OndolError | None = None


def refused(error: OndolError, *, id: str | int | float | None = None) -> PlannedInput:
    """The place of an input that is reported with this error and never run."""
    return PlannedInput(None, 0, id, error)


@dataclass(slots=True)
class _OpenShard:
    """The shard that is being filled; `are_ids`: its inputs are token ids (None: nothing that is run is in it yet)."""

    values: list[bytes | None] = field(default_factory=list)
    ids: list[str | int | float | None] = field(default_factory=list)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    num_tokens: int = 0
    num_bytes: int = 0
    are_ids: bool | None = None

    def payload(self, *, has_ids: bool) -> bytes:
        placeholder = _IDS_PLACEHOLDER if self.are_ids else _TEXT_PLACEHOLDER
        inputs = b"[" + b",".join(placeholder if value is None else value for value in self.values) + b"]"
        if not has_ids and not self.errors:
            return inputs
        ids = b',"ids":' + _encode(self.ids).encode() if has_ids else b""
        errors = b',"errors":' + _encode(self.errors).encode() if self.errors else b""
        return b'{"inputs":' + inputs + ids + errors + b"}"


class ShardCutter:
    """Writes payloads and index into the plan's folder; for a `with` statement. `has_ids`: the inputs bear ids."""

    def __init__(self, plan: CutPlan, *, has_ids: bool) -> None:
        self._plan = plan
        self._has_ids = has_ids
        self._payloads: BinaryIO = (plan.work_dir / PAYLOADS_FILE).open("wb")
        self._index: BinaryIO = (plan.work_dir / INDEX_FILE).open("wb")
        self._shard = _OpenShard()
        self._offset = 0
        self._num_inputs = 0
        self._num_refused = 0
        self._num_tokens = 0
        self._num_shards = 0
        self._first_refusal: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._payloads.close()
        self._index.close()

    def add(self, group: Sequence[PlannedInput]) -> None:
        """The next inputs, which stay in one shard. InvalidPayload when there are too many shards, inputs or tokens."""
        values = [None if one.value is None else _encode(one.value).encode() for one in group]
        num_tokens = sum(one.num_tokens for one in group)
        num_bytes = sum(len(value) for value in values if value is not None)
        num_bytes += sum(len(one.id.encode()) for one in group if isinstance(one.id, str))
        kinds = {isinstance(one.value, list) for one in group if one.value is not None}
        are_ids = next(iter(kinds), None)
        if self._is_full_for(len(group), num_tokens, num_bytes, are_ids):
            self._close_shard()
        shard = self._shard
        for one, value in zip(group, values, strict=True):
            if one.error is not None:
                self._refuse(len(shard.values), one.error)
            shard.values.append(value)
            shard.ids.append(one.id)
        shard.num_tokens += num_tokens
        shard.num_bytes += num_bytes
        shard.are_ids = shard.are_ids if are_ids is None else are_ids

    def finish(self) -> CutReport:
        """Write the last shard; nothing may be added after it."""
        if self._shard.values:
            self._close_shard()
        self._payloads.flush()
        self._index.flush()
        return CutReport(
            num_inputs=self._num_inputs,
            num_refused=self._num_refused,
            estimated_tokens=self._num_tokens,
            num_shards=self._num_shards,
            first_refusal=self._first_refusal,
        )

    def _is_full_for(self, num_inputs: int, num_tokens: int, num_bytes: int, are_ids: bool | None) -> bool:
        shard = self._shard
        if not shard.values:
            return False
        is_other_kind = None not in (are_ids, shard.are_ids) and are_ids is not shard.are_ids
        return (
            is_other_kind
            or shard.num_tokens + num_tokens > self._plan.max_tokens
            or len(shard.values) + num_inputs > self._plan.max_inputs
            or shard.num_bytes + num_bytes > MAX_SHARD_BYTES
        )

    def _refuse(self, place: int, error: OndolError) -> None:
        self._shard.errors[str(place)] = {"code": error.code, "message": error.message}
        self._num_refused += 1
        self._first_refusal = self._first_refusal or error.message

    def _close_shard(self) -> None:
        if self._num_shards == MAX_SHARDS:
            message = f"{self._plan.filename} needs more than {MAX_SHARDS:,} shards; split it into several files"
            raise InvalidPayload(message, param="input_file")
        if max(self._num_inputs + len(self._shard.values), self._num_tokens + self._shard.num_tokens) > MAX_JOB_SIZE:
            message = f"{self._plan.filename} has more than {MAX_JOB_SIZE:,} inputs or estimated tokens; split the file"
            raise InvalidPayload(message, param="input_file")
        shard, self._shard = self._shard, _OpenShard()
        payload = shard.payload(has_ids=self._has_ids)
        num_inputs = len(shard.values)
        cut = CutShard(
            offset=self._offset,
            size=len(payload),
            sha256=hashlib.sha256(payload).hexdigest(),
            first_input=self._num_inputs,
            num_inputs=num_inputs,
            estimated_tokens=shard.num_tokens,
        )
        self._payloads.write(payload)
        self._index.write(json.dumps(asdict(cut)).encode() + b"\n")
        self._offset += len(payload)
        self._num_inputs += num_inputs
        self._num_tokens += shard.num_tokens
        self._num_shards += 1
