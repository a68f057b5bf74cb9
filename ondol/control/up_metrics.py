"""Ports for the `/metrics` of what `ondol up` starts: the api has its own, the others take theirs in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ondol.contract.devices import DeviceSpec
from ondol.contract.errors import Conflict, InvalidPayload
from ondol.control.host import is_port_free
from ondol.control.supervise import Program
from ondol.settings import PREFIX, UpSettings

_MAX_PORT = 65_535


def metrics_ports(first: int, devices: Sequence[DeviceSpec]) -> dict[str, int]:
    """Ports by program: reconciler, intake, then worker and trainer of each device.

    A program that is not started keeps its place, so that no other one's port moves. InvalidPayload if they run out.
    """
    names = ["reconciler", "intake"]
    for device in devices:
        names += [f"worker-{device.slug}", f"trainer-{device.slug}"]
    if first + len(names) - 1 > _MAX_PORT:
        raise InvalidPayload(f"{PREFIX}METRICS_PORT: {len(names)} ports are needed from {first} on; take a lower one")
    return {name: first + i for i, name in enumerate(names)}


def with_metrics_ports(
    programs: Sequence[Program], settings: UpSettings, devices: Sequence[DeviceSpec]
) -> list[Program]:
    """The programs, each with its port if the settings ask for any; Conflict if somebody else has it."""
    if settings.metrics_port is None:
        return list(programs)
    ports = metrics_ports(settings.metrics_port, devices)
    return [
        _with_port(program, ports[program.name], settings) if program.name in ports else program for program in programs
    ]


def _with_port(program: Program, port: int, settings: UpSettings) -> Program:
    if not is_port_free(settings.metrics_host, port):
        raise Conflict(
            f"port {port}, for the metrics of the {program.name}, is taken; choose another first port "
            f"with --metrics-port or {PREFIX}METRICS_PORT"
        )
    return replace(program, environment={**program.environment, f"{PREFIX}METRICS_PORT": str(port)})
