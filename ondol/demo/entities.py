"""Entities: personal data found in sentences by a packaged token classifier."""

from __future__ import annotations

from dataclasses import dataclass

from ondol.client.sync_client import Ondol
from ondol.demo.errors import DemoFailed

SENTENCES = (
    "My name is Anna Schmidt and my phone number is +49 30 901820.",
    "Please send the invoice to john.doe@example.com before Friday.",
    "I live at 221B Baker Street, London NW1 6XE.",
)


@dataclass(frozen=True, slots=True)
class FoundEntity:
    """An entity, where it stands in its sentence (code points), and how sure the model is."""

    sentence: str
    label: str
    text: str
    score: float


def find_entities(client: Ondol, model: str) -> list[FoundEntity]:
    """Entities of all sentences, as one call; DemoFailed if a sentence has none, or one is not where it says."""
    found = []
    for sentence, entities in zip(SENTENCES, client.tag(list(SENTENCES), model=model), strict=True):
        if not entities:
            raise DemoFailed(f"{model} found nothing in {sentence!r}")
        found += [FoundEntity(sentence, e.label, sentence[e.start : e.end], e.score) for e in entities]
    return found
