"""What this host has: CPU cores this process may use, NVIDIA GPUs, free loopback ports. Imports no torch."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from ondol.contract.errors import Conflict

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
_NVIDIA_SMI_LIMIT_S = 10
_GPU_MODEL = re.compile(r"^Model:(?P<name>.+)$", re.MULTILINE)


class PortTaken(Conflict):
    """Another server has the port that one of ours was to bind."""

    code = "port_taken"


def usable_cores() -> tuple[int, ...]:
    """The CPU cores this process may run on, in order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def count_gpus() -> int:
    """How many NVIDIA GPUs a child process would see; `CUDA_VISIBLE_DEVICES` is obeyed. Blocks for seconds at most."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = _count_present_gpus()
    if visible is None:
        return present
    named = [part for part in visible.split(",") if part.strip() and part.strip() != "-1"]
    return min(present, len(named))


def gpu_names() -> tuple[str, ...]:
    """What the NVIDIA GPUs of this host are called, in the driver's order; () where the driver does not say."""
    stated = sorted(_NVIDIA_GPUS.glob("*/information")) if _NVIDIA_GPUS.is_dir() else []
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in stated)
    return tuple(found["name"].strip() for text in texts if (found := _GPU_MODEL.search(text)) is not None)


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could bind this address now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Servers bind with it too; without it a connection in TIME_WAIT would look like a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago; the caller binds it at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def http_address(host: str, port: int) -> str:
    """The URL at which this host reaches a server that binds `host`."""
    reachable = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _count_present_gpus() -> int:
    if _NVIDIA_GPUS.is_dir():
        return len(list(_NVIDIA_GPUS.iterdir()))
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return 0
    try:
        done = subprocess.run(
            [nvidia_smi, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):  # a driver that does not answer has no GPU to offer
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0
