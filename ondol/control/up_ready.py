"""When a stack that was just started is ready: the api admits work, and every device has a worker that can claim it."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from ondol.contract.devices import DeviceSpec
from ondol.contract.ids import new_id


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a stack. Session ids sort by time, so that workers of an earlier life are told from its own."""

    devices: tuple[DeviceSpec, ...]
    marker: str

    @classmethod
    def now(cls, devices: tuple[DeviceSpec, ...]) -> Start:
        """A start that begins now, before any of its processes does."""
        return cls(devices, _age(new_id("mark")))

    def what_is_missing(self, client: httpx.Client) -> str | None:
        """What is not ready yet, with the name of its log; None when everything is. Asks the api, at most twice."""
        try:
            if client.get("/readyz").status_code != httpx.codes.OK:
                return "the api is not ready (api.log)"
            listed = client.get("/v1/workers")
        except httpx.TransportError:
            return "the api does not answer (api.log)"
        if listed.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return None  # keys exist and `up` was given none: the api's own word has to do
        if listed.is_error:
            return f"the api answers {listed.status_code} (api.log)"
        sessions = listed.json()["data"]
        ready = {
            one["device"]
            for one in sessions
            if one["is_ready"] and one["role"] == "infer" and _age(one["id"]) > self.marker
        }
        missing = [device for device in self.devices if device.name not in ready]
        return f"no worker is ready on {missing[0].name} (worker-{missing[0].slug}.log)" if missing else None


def _age(identifier: str) -> str:
    return identifier.rsplit("_", 1)[-1]
