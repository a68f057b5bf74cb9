"""How long a request to the device process may take before the process is taken for hung.

A pass whose model's speed is known is given twenty times what it should take; any other the configured limit. A model
may have been let go meanwhile: the time of loading it again is allowed for.
"""

from __future__ import annotations

from dataclasses import dataclass

from ondol.contract.frames import Header

_PATIENCE = 20.0
_LOAD_PATIENCE = 10.0
_LOAD_LIMIT_S = 600.0
_SLOWEST_KEPT = 0.9
"""How much of the slowest pace seen is believed after each faster pass: a hiccup is forgotten in some dozen passes."""


@dataclass(slots=True)
class _Known:
    s_per_token: float = 0.0
    load_s: float = 0.0


class ForwardLimits:
    """Learns from answers. `longest_s` for a model that has not run yet; never less than `least_s` for any."""

    def __init__(self, *, longest_s: float, least_s: float) -> None:
        self._longest_s = longest_s
        self._least_s = min(least_s, longest_s)
        self._known: dict[str, _Known] = {}

    def limit_s(self, request: Header) -> float:
        """Seconds for this request, from when the device process could begin with it."""
        if request["op"] != "run":
            return _LOAD_LIMIT_S
        known = self._known.get(request["model"]["key"])
        if known is None or not known.s_per_token:
            return self._longest_s
        expected_s = known.s_per_token * sum(request["lengths"])
        wanted_s = max(self._least_s, _PATIENCE * expected_s) + _LOAD_PATIENCE * known.load_s
        return min(self._longest_s, wanted_s)

    def learn(self, request: Header, answer: Header) -> None:
        """Take over what an answered request shows."""
        if request["op"] not in ("run", "load") or "load_s" not in answer:
            return
        known = self._known.setdefault(request["model"]["key"], _Known())
        known.load_s = max(known.load_s, float(answer["load_s"]))
        if request["op"] == "run":
            pace = float(answer["forward_s"]) / max(1, sum(request["lengths"]))
            known.s_per_token = max(pace, known.s_per_token * _SLOWEST_KEPT)
