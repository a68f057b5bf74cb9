"""Model references: `name`, `name:3`, `name@production`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ondol.contract.errors import InvalidPayload

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,95}"
DEFAULT_ALIAS = "default"
_NAME = re.compile(NAME_PATTERN)
_CHECKPOINT = re.compile(r"job_[0-9a-z]{26}:ckpt-step-[0-9]{1,9}")
_REF = re.compile(rf"(?P<name>{NAME_PATTERN})(?::(?P<number>[1-9][0-9]{{0,8}})|@(?P<alias>{NAME_PATTERN}))?")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parsed reference: at most one of `number` and `alias` is set; neither means the alias `default`."""

    name: str
    number: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.name}:{self.number}"
        return f"{self.name}@{self.alias}" if self.alias else self.name


def parse_model_ref(text: str, *, param: str = "model") -> ModelRef:
    """The reference that `text` states; InvalidPayload if it has another form (paths, upper case, spaces)."""
    match = _REF.fullmatch(text)
    if _CHECKPOINT.fullmatch(text) is not None:
        raise InvalidPayload(
            f"{text} is a checkpoint, of which no version is published: resume the job or let it finish, and use the "
            "version that it publishes",
            param=param,
            code="checkpoint_not_published",
        )
    if match is None:
        raise InvalidPayload(
            f"{text[:120]!r} is not a model reference; use name, name:3 or name@alias, with names of "
            "lower-case letters, digits, '.', '_' and '-'",
            param=param,
        )
    number = match["number"]
    return ModelRef(match["name"], int(number) if number else None, match["alias"])


def check_model_name(text: str, *, param: str) -> str:
    """`text` if it is a valid model or alias name, else InvalidPayload."""
    if _NAME.fullmatch(text) is None:
        raise InvalidPayload(
            f"{text[:120]!r} is not a valid name: at most 96 lower-case letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit",
            param=param,
        )
    return text
