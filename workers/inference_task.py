"""What a job's attempt or a call of any kind becomes: inputs made into rows, and an answer made of their outputs.

One class a kind says what is its own; the handler and the call loop see only this one. `N` inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ondol.contract.errors import OndolError
from ondol.contract.jobs import Inputs
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from workers.model_library import ServedVersion
from workers.rows import BatchKey, DeviceModel, FloatArray, Row, Work
from workers.texts import Tokenized, TokenRow


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What is to be run, and how its rows stand in line.

    `id`: the job's or call's; `deadline_at`: seconds since the epoch; `is_alone`: nothing else may be on the device
    meanwhile; `num_losses`: device processes that each of its rows has already taken along; `input_errors`: inputs that
    are reported with these errors and never run, whatever stands in their place.
    """

    id: str
    kind: JobKind
    version_id: str
    options: dict[str, Any]
    inputs: Inputs
    priority: Priority
    deadline_at: float | None = None
    is_alone: bool = False
    num_losses: int = 0
    input_errors: dict[int, OndolError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to all inputs.

    `vectors`: an embedding's [N, D] (zeros where an item failed), or a list of [T_i, D] for `pooling: none`; a text
    classification's scores [N, C]; [N, 0] where the answer is in `outputs`, one JSON value an input.
    `about`: how to read them.
    """

    vectors: FloatArray | list[FloatArray]
    tokens: list[int]
    truncated: list[bool]
    errors: dict[int, OndolError]
    outputs: list[Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs that have an answer."""
        return sum(count for i, count in enumerate(self.tokens) if i not in self.errors)


class InferenceTask(ABC):
    """Tokenised inputs, the work that carries their rows, and what is needed to make an answer of its outputs."""

    def __init__(self, version: ServedVersion, model: DeviceModel, tokenized: Tokenized, *, num_inputs: int) -> None:
        self.model = model
        self.ref = version.record.ref
        self.tokenized = tokenized
        self.num_inputs = num_inputs
        self.tokenize_s = 0.0
        self.work: Work

    def begin(self, request: TaskRequest, *, load_s: float, tokenize_s: float) -> None:
        """Make the work; `load_s` was spent on bringing the model here."""
        self.tokenize_s = tokenize_s
        if request.input_errors:
            self.refuse(request.input_errors)
        self.work = Work(
            id=request.id,
            key=self.key(),
            priority=request.priority,
            deadline_at=request.deadline_at,
            is_alone=request.is_alone,
            load_s=load_s,
        )
        rows = self.tokenized.rows
        self.work.add_rows([_row(row, self.work, i, request.num_losses) for i, row in enumerate(rows)])

    def refuse(self, errors: dict[int, OndolError]) -> None:
        """Report these inputs with these errors; they have no rows from now on."""
        tokenized = self.tokenized
        tokenized.rows = [row for row in tokenized.rows if row.input_index not in errors]
        tokenized.errors.update(errors)
        for place in errors:
            tokenized.tokens[place] = 0
            tokenized.truncated[place] = False

    @abstractmethod
    def key(self) -> BatchKey:
        """With which rows of others these may share a batch."""

    @abstractmethod
    def answer(self) -> Answer:
        """The answer of a finished work; OndolError where there can be none at all."""

    @abstractmethod
    def how_to_read(self, found: Answer) -> dict[str, Any]:
        """What `data` holds: the fields of a stored result's summary that belong to this kind."""

    def summary(self, found: Answer) -> dict[str, Any]:
        """How the bytes of a stored result are to be read, and what is known of each input."""
        return self.how_to_read(found) | {
            "tokens": found.tokens,
            "truncated": [i for i, cut in enumerate(found.truncated) if cut],
            "errors": {str(i): error.as_dict() for i, error in found.errors.items()},
            "model": self.ref,
            "dtype": self.model.dtype,
            "engine": self.work.engine,
            "num_tokens": found.num_tokens,
        }

    def data(self, found: Answer) -> bytes:
        """The vectors or scores as little-endian float32 bytes."""
        if isinstance(found.vectors, list):
            return b"".join(np.ascontiguousarray(vectors, dtype="<f4").tobytes() for vectors in found.vectors)
        return np.ascontiguousarray(found.vectors, dtype="<f4").tobytes()

    def errors(self) -> dict[int, OndolError]:
        """Errors by input: its own, or the first of one of its rows."""
        found = dict(self.tokenized.errors)
        for row_index, error in self.work.errors.items():
            found.setdefault(self.tokenized.rows[row_index].input_index, error)
        return found


def present(output: FloatArray | None) -> FloatArray:
    """The output of a row whose input has no error."""
    assert output is not None, "a row of an input without an error has an output"
    return output


def _row(row: TokenRow, work: Work, index: int, num_losses: int) -> Row:
    return Row(row.ids, work, index, skip=row.skip, type_ids=row.type_ids, num_losses=num_losses)
