"""The command line of a device process, the same for every program that speaks the protocol."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

ENGINES = ("auto", "torch", "openvino")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DeviceArguments:
    """What the worker says at the start: the socket's descriptor, the device, and the share of the host it may use."""

    fd: int
    device: str
    """`cpu:0`, `cuda:0`: the name of the device on this host, before `CUDA_VISIBLE_DEVICES` hides the others."""
    cores: tuple[int, ...]
    threads: int
    memory_bytes: int | None
    """Bound of the warm pool; None: the device process measures it on the GPU."""
    batch_tokens: int
    measures_budget: bool = False
    """Whether `batch_tokens` is only what holds until each model's own budget is measured."""
    engine: str = "torch"
    """`auto`, `torch` or `openvino`."""
    engine_cache: Path | None = None
    """Where converted models are kept; none is converted without."""

    @property
    def cuda_index(self) -> int | None:
        """The GPU's index on this host, None on a CPU."""
        kind, _, index = self.device.partition(":")
        return int(index or 0) if kind == "cuda" else None


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that the worker passes to every device program."""
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the inherited socket")
    parser.add_argument("--device", required=True, type=_device_name, help="cpu:0 or cuda:0")
    parser.add_argument("--cores", required=True, type=_core_list, help="CPU cores to run on, as 0,1")
    parser.add_argument("--threads", type=_positive, required=True, help="compute threads")
    parser.add_argument("--memory-mb", type=_positive, help="bound of the warm pool in MiB; a GPU's is measured")
    parser.add_argument("--batch-tokens", type=_positive, required=True, help="tokens a forward pass")
    parser.add_argument("--measure-budget", action="store_true", help="measure each model's tokens a pass at load")
    parser.add_argument("--engine", choices=ENGINES, default="torch", help="what runs models")
    parser.add_argument("--engine-cache", type=Path, help="folder for models converted to another engine")


def device_arguments(parsed: argparse.Namespace) -> DeviceArguments:
    """The typed arguments in what argparse has read."""
    return DeviceArguments(
        fd=parsed.fd,
        device=parsed.device,
        cores=parsed.cores,
        threads=parsed.threads,
        memory_bytes=None if parsed.memory_mb is None else parsed.memory_mb * _MIB,
        batch_tokens=parsed.batch_tokens,
        measures_budget=parsed.measure_budget,
        engine=parsed.engine,
        engine_cache=parsed.engine_cache,
    )


def _device_name(text: str) -> str:
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or not index.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; use cpu:0 or cuda:0")
    return text


def _core_list(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of cores; use 0,1")
    return tuple(int(part) for part in parts)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
