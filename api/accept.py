"""Which of the formats on offer an Accept header prefers."""

from __future__ import annotations

from collections.abc import Sequence

from ondol.contract.errors import NotAcceptable


def choose_format(accept: str | None, offered: Sequence[str]) -> str:
    """The offered media type with the highest weight, the first of equals; NotAcceptable if none is accepted."""
    if not accept or not accept.strip():
        return offered[0]
    ranges = [_parse(part) for part in accept.split(",") if part.strip()]
    best, best_weight = "", 0.0
    for media_type in offered:
        weight = _weight(media_type, ranges)
        if weight > best_weight:
            best, best_weight = media_type, weight
    if not best:
        raise NotAcceptable(f"this comes as {', '.join(offered)}, not as {accept[:120]!r}", param="Accept")
    return best


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the most specific range that covers the type."""
    family = media_type.partition("/")[0] + "/*"
    for wanted in (media_type, family, "*/*"):
        found = [weight for name, weight in ranges if name == wanted]
        if found:
            return max(found)
    return 0.0


def _parse(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            return name.lower(), _quality(value)
    return name.lower(), 1.0


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return min(1.0, value) if value > 0 else 0.0  # NaN is not over 0
