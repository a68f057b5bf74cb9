"""How much memory this process holds, and how much it could have."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CPU_SHARE = 0.5
"""The rest is for batches, workers, and everything else on the host."""
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def resident_bytes() -> int:
    """Resident set size of this process in bytes, from `/proc/self/statm`."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


def cpu_pool_bytes(num_devices: int) -> int:
    """Bytes that the warm models of one of so many CPU devices may take: together half of what the host has."""
    return int(usable_bytes() * _CPU_SHARE) // num_devices


def usable_bytes(own_cgroups: Path = _OWN_CGROUPS, cgroups: Path = _CGROUPS) -> int:
    """The host's memory, or the least that a control group (v1 or v2) around this process allows, as a container's."""
    limits = [os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES]
    for file in _limit_files(own_cgroups, cgroups):
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:  # a group above ours that is not shown in here, or a root group, which has no limit
            continue
        if text.isdecimal():  # else "max": no limit
            limits.append(int(text))
    return min(limits)


def _limit_files(own_cgroups: Path, cgroups: Path) -> list[Path]:
    """Where the limits of this process's groups and of those around them would stand."""
    try:
        lines = own_cgroups.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # a system without control groups
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.strip("/")
        found += [folder / name for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return found
