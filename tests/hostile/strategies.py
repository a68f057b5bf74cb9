"""What nobody should send: JSON of every kind, good objects with one thing wrong, bytes that almost are a file."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st

DEEP = 100_000
"""Nested so deeply that a recursive parser runs out of stack."""

odd_texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "\x00", "../../etc/passwd", "\ud800", "a" * 5_000, "%00", "1e400", "NaN", "ｆｕｌｌ", "\u202e"]
    ),
)
odd_numbers = st.one_of(
    st.integers(-(10**30), 10**30),
    st.sampled_from([10**400, -1, 2**31, 2**63, 2**64, 1e308, -0.0]),
    st.floats(allow_nan=True, allow_infinity=True),
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | odd_numbers | odd_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_texts, inner, max_size=4),
    max_leaves=8,
)


def one_thing_wrong(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The object with a field replaced, removed or added."""
    replaced = st.tuples(st.sampled_from(sorted(good)), json_values).map(lambda change: good | dict([change]))
    removed = st.sampled_from(sorted(good)).map(lambda name: {k: v for k, v in good.items() if k != name})
    added = st.tuples(odd_texts, json_values).map(lambda change: good | dict([change]))
    return st.one_of(replaced, removed, added)


def torn(good: bytes) -> st.SearchStrategy[bytes]:
    """The bytes cut off, with some of them changed, or with more behind."""
    places = st.integers(0, max(0, len(good) - 1))
    cut = places.map(lambda place: good[:place])
    changed = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8).map(
        lambda changes: _with(good, changes)
    )
    longer = st.binary(min_size=1, max_size=64).map(lambda more: good + more)
    return st.one_of(cut, changed, longer, st.binary(max_size=256))


def deep_json(opening: str = "[", closing: str = "]") -> bytes:
    """Valid JSON that no stack is deep enough for."""
    return (opening * DEEP + closing * DEEP).encode()


def dump(value: Any) -> bytes:
    """JSON as a careless sender writes it: NaN, lone surrogates and all."""
    return json.dumps(value).encode()


def _with(good: bytes, changes: list[tuple[int, int]]) -> bytes:
    data = bytearray(good)
    for place, value in changes:
        if data:
            data[place] = value
    return bytes(data)
