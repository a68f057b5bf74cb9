"""Device lists as people write them: `auto`, `cuda:0,cuda:1`, `cpu:2x1`. No I/O: what the host has is passed in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ondol.contract.errors import InvalidPayload

_CPU = re.compile(r"cpu:(?P<count>[1-9][0-9]?)x(?P<cores>[1-9][0-9]{0,2})")
_CUDA = re.compile(r"cuda:(?P<index>[0-9]{1,2})")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device: `name` is `cuda:0` or `cpu:0`; `cores` are the CPU cores its processes are pinned to."""

    name: str
    cores: tuple[int, ...]

    @property
    def slug(self) -> str:
        """The name as worker and queue names use it: `cuda0`, `cpu0`."""
        return self.name.replace(":", "")

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.name.startswith("cuda:")


def parse_devices(text: str, *, cores: tuple[int, ...], num_gpus: int) -> tuple[DeviceSpec, ...]:
    """The devices that `text` names on a host with these cores and GPUs; InvalidPayload says what is wrong.

    `auto`: every GPU, each with an equal share of the cores; without a GPU one CPU device of all cores.
    `cpu:NxM`: N devices of M cores each. Devices may not share cores with another CPU device.
    """
    text = text.strip()
    if text == "auto":
        if num_gpus == 0:
            return (DeviceSpec("cpu:0", cores),)
        return tuple(DeviceSpec(f"cuda:{i}", _share(cores, i, num_gpus)) for i in range(num_gpus))
    if text == "cpu":
        return (DeviceSpec("cpu:0", cores),)
    match = _CPU.fullmatch(text)
    if match:
        return _cpu_devices(int(match["count"]), int(match["cores"]), cores)
    names = [part.strip() for part in text.split(",")]
    for name in names:
        match = _CUDA.fullmatch(name)
        if match is None:
            raise InvalidPayload(f"{name!r} is not a device; use auto, cpu:2x1 or cuda:0,cuda:1", param="DEVICES")
        if int(match["index"]) >= num_gpus:
            raise InvalidPayload(f"{name} is not on this host, which has {num_gpus} GPUs", param="DEVICES")
    if len(set(names)) != len(names):
        raise InvalidPayload(f"a device is named twice in {text!r}", param="DEVICES")
    return tuple(DeviceSpec(name, _share(cores, i, len(names))) for i, name in enumerate(names))


def count_cpu_devices(text: str) -> int:
    """How many CPU devices `text` names, all of one host; 1 where it names none, or leaves it open."""
    match = _CPU.fullmatch(text.strip())
    return int(match["count"]) if match else 1


def _cpu_devices(count: int, each: int, cores: tuple[int, ...]) -> tuple[DeviceSpec, ...]:
    if count * each > len(cores):
        raise InvalidPayload(
            f"cpu:{count}x{each} needs {count * each} cores, this host has {len(cores)}", param="DEVICES"
        )
    return tuple(DeviceSpec(f"cpu:{i}", cores[i * each : (i + 1) * each]) for i in range(count))


def _share(cores: tuple[int, ...], index: int, count: int) -> tuple[int, ...]:
    return cores[index::count] or cores
