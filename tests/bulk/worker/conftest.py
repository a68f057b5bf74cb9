"""Plans of files that the tests write, and the shards that were cut of them as a worker will read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ondol.contract.errors import InvalidPayload
from ondol.contract.inference_checks import TokenEstimate
from ondol.contract.kinds import JobKind
from workers.sharding.cut import cut_file
from workers.sharding.plan import PAYLOADS_FILE, CutPlan, CutReport, CutShard, read_index

ESTIMATE = TokenEstimate(tokens_per_byte=1.0, max_tokens=None)

MakePlan = Callable[..., CutPlan]
Cut = Callable[..., "CutFile"]


@dataclass(frozen=True, slots=True)
class CutFile:
    """What one cut left: its report, its index, and the payloads, parsed and in order."""

    report: CutReport
    index: list[CutShard]
    payloads: list[Any]

    @property
    def inputs(self) -> list[Any]:
        """All inputs, shard after shard; at the place of a refused one whatever stands there."""
        return [one for payload in self.payloads for one in (payload["inputs"] if is_named(payload) else payload)]

    @property
    def ids(self) -> list[Any]:
        """All ids, shard after shard."""
        return [one for payload in self.payloads for one in payload["ids"]]

    @property
    def errors(self) -> dict[int, tuple[str, str]]:
        """Code and message of refused inputs, by their place among all inputs."""
        return {
            shard.first_input + int(place): (error["code"], error["message"])
            for shard, payload in zip(self.index, self.payloads, strict=True)
            if is_named(payload)
            for place, error in payload.get("errors", {}).items()
        }


def is_named(payload: Any) -> bool:
    """Whether a payload says more than its inputs."""
    return isinstance(payload, dict)


def read_cut(plan: CutPlan, report: CutReport) -> CutFile:
    """What the cut of `plan` left, with every digest checked."""
    index = read_index(plan.work_dir)
    data = (plan.work_dir / PAYLOADS_FILE).read_bytes()
    pieces = [data[one.offset : one.offset + one.size] for one in index]
    assert b"".join(pieces) == data, "the payloads lie end to end"
    assert [hashlib.sha256(piece).hexdigest() for piece in pieces] == [one.sha256 for one in index]
    return CutFile(report, index, [json.loads(piece) for piece in pieces])


@pytest.fixture
def make_plan(tmp_path: Path) -> MakePlan:
    """A plan for a file of that name and content; fields of `CutPlan` by name."""

    def make(name: str, content: str | bytes, **fields: Any) -> CutPlan:
        path = tmp_path / "file"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        given: dict[str, Any] = {"kind": JobKind.EMBEDDING, "estimate": ESTIMATE, "max_tokens": 1_000} | fields
        return CutPlan(path=path, filename=name, work_dir=tmp_path, **given)

    return make


@pytest.fixture
def cut(make_plan: MakePlan) -> Cut:
    """The shards of a file of that name and content."""

    def cut_one(name: str, content: str | bytes, **fields: Any) -> CutFile:
        plan = make_plan(name, content, **fields)
        return read_cut(plan, cut_file(plan))

    return cut_one


def refusal(cut: Cut, name: str, content: str | bytes, **fields: Any) -> InvalidPayload:
    """The error of a file that cannot be cut."""
    with pytest.raises(InvalidPayload) as caught:
        cut(name, content, **fields)
    return caught.value


def json_lines(*rows: object) -> str:
    """Rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
