"""`python -m workers.device`: pin the process, then build the engine and serve the worker's socket until it closes."""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
from typing import TYPE_CHECKING

from ondol.contract.frames import Header
from ondol.logs import configure_logging
from ondol.settings import LogSettings, load_settings
from workers.absent import UNUSED, leave_out
from workers.device.arguments import DeviceArguments, add_device_arguments, device_arguments
from workers.device.lifeline import bind_to_parent, lead_process_group
from workers.device.pinning import pin

if TYPE_CHECKING:
    from workers.device.engine import Engine
    from workers.device.openvino_switch import OpenVinoSwitch


def main(argv: list[str]) -> int:
    """Serve until the worker closes the socket, then 0; an unusable device ends in a traceback and 1."""
    parent_pid = os.getppid()
    parser = argparse.ArgumentParser(prog="workers.device", description="Owns one device and its warm pool.")
    add_device_arguments(parser)
    arguments = device_arguments(parser.parse_args(argv))
    bind_to_parent(parent_pid)
    lead_process_group()
    pin(arguments)
    settings = load_settings(LogSettings)
    configure_logging(settings.log_level, settings.log_format, process=f"device-{arguments.device.replace(':', '')}")
    from workers.device.serve import serve  # numpy's thread pool starts at its import: only after pinning

    with socket.socket(fileno=arguments.fd) as sock:
        sock.set_inheritable(False)
        engine, ready = _compose(arguments)
        serve(sock, engine, ready)
    return 0


def _compose(arguments: DeviceArguments) -> tuple[Engine, Header]:
    """The engine, and what is said of it when it is ready; imports torch, so pinning must have happened."""
    leave_out(*UNUSED)
    gc.disable()  # imports make half a million objects that stay: looking at them again and again costs a second
    import torch

    from workers.device.device_kinds import device_kind, native_dtypes
    from workers.device.pool_limit import pool_bytes
    from workers.device.torch_engine import TorchEngine

    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    # The one GPU that is visible is number 0 in here, whatever it is on the host.
    device = torch.device("cpu") if arguments.cuda_index is None else torch.device("cuda", 0)
    memory_bytes = arguments.memory_bytes or pool_bytes(device)
    engine = TorchEngine(
        device,
        memory_bytes=memory_bytes,
        batch_tokens=arguments.batch_tokens,
        measures_budget=arguments.measures_budget,
        switch=_switch(arguments, device_kind(device)),
    )
    ready: Header = {
        "device": arguments.device,
        "device_kind": device_kind(device),
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes,
        "dtypes": list(native_dtypes(device)),
    }
    gc.freeze()  # what is here now stays: no later collection has to walk through it
    gc.enable()
    return engine, ready


def _switch(arguments: DeviceArguments, kind: str) -> OpenVinoSwitch | None:
    """What brings models over to OpenVINO, where that is wanted and installed."""
    from workers.device.openvino_cache import ConversionCache, openvino_version

    installed = openvino_version()
    root = arguments.engine_cache
    if arguments.engine == "torch" or arguments.cuda_index is not None or installed is None or root is None:
        return None
    from workers.device.openvino_switch import OpenVinoSwitch

    cache = ConversionCache(root, device_kind=kind, openvino=installed)
    return OpenVinoSwitch(root, cache, threads=arguments.threads, is_forced=arguments.engine == "openvino")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
