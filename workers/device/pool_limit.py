"""How much of a device the warm pool may take where no setting says it."""

from __future__ import annotations

import torch

from workers.memory import cpu_pool_bytes

GPU_SHARE = 0.7
"""Of a GPU's memory, with what other processes hold there counted in; the rest is for batches and the allocator."""


def pool_bytes(device: torch.device) -> int:
    """Bytes that the models on this device may take together.

    On a GPU what others hold now is taken off, a trainer or another server; what they leave later is not added.
    """
    if device.type != "cuda":
        return cpu_pool_bytes(1)
    free, total = torch.cuda.mem_get_info(device)
    return gpu_pool_bytes(free, total)


def gpu_pool_bytes(free: int, total: int) -> int:
    """The bound on a GPU of `total` bytes of which `free` are left; beside a large neighbour half of what is left."""
    own_share = int(total * GPU_SHARE) - (total - free)
    return max(own_share, free // 2)
