"""Dead letters for administrators: what `ondol dead-letters` and `ondol doctor` see and do, directly in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ondol.broker.dead_letters import MAX_LETTERS, DeadLetter, DeadLetters
from ondol.contract.errors import IllegalTransition, NotFound

__all__ = ["DeadLetter", "drop_letters", "get_letter", "list_letters", "requeue_letters"]


def list_letters(redis_url: str, *, limit: int = MAX_LETTERS) -> list[DeadLetter]:
    """Dead letters, the newest first. BrokerUnavailable if Redis is away, as all that follow."""
    with _opened(redis_url) as letters:
        return letters.newest(limit)


def get_letter(redis_url: str, letter_id: str) -> DeadLetter:
    """One letter; NotFound if it is not there (any more)."""
    with _opened(redis_url) as letters:
        return _known(letters, letter_id)


def requeue_letters(redis_url: str, ids: Sequence[str]) -> list[DeadLetter]:
    """Put letters back into their queues; all of them, or none: NotFound, IllegalTransition for what cannot be."""
    with _opened(redis_url) as letters:
        found = [_known(letters, each) for each in ids]
        for letter in found:
            if not letter.may_be_requeued:
                reason = "is of no use to anybody now" if letter.is_whole else "was too large to be kept whole"
                raise IllegalTransition(f"dead letter {letter.id} {reason} and cannot be put back; drop it")
        return [letter for letter in found if letters.requeue(letter)]


def drop_letters(redis_url: str, ids: Sequence[str] | None) -> int:
    """Delete these letters, or all that there are; how many. NotFound, and none is deleted, if one is not there."""
    with _opened(redis_url) as letters:
        if ids is None:
            return letters.drop([letter.id for letter in letters.newest()])
        return letters.drop([_known(letters, each).id for each in ids])


def _known(letters: DeadLetters, letter_id: str) -> DeadLetter:
    letter = letters.find(letter_id)
    if letter is None:
        raise NotFound(f"there is no dead letter {letter_id}; `ondol dead-letters ls` lists those that there are")
    return letter


@contextmanager
def _opened(redis_url: str) -> Iterator[DeadLetters]:
    letters = DeadLetters(redis_url)
    try:
        yield letters
    finally:
        letters.close()
