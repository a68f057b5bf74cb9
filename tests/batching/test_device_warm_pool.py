"""The warm pool stays within its bytes: least recently used out first, pinned never, too large refused with sizes."""

from __future__ import annotations

import pytest

from ondol.contract.errors import DeviceError
from workers.device.warm_pool import WarmPool

pytestmark = pytest.mark.unit


def _pool(*keys: str, size: int = 30, limit: int = 100) -> WarmPool[str]:
    pool: WarmPool[str] = WarmPool(limit)
    for key in keys:
        pool.add(key, key.upper(), size_bytes=size, is_pinned=False, ref=key)
    return pool


def test_least_recently_used_model_goes_first() -> None:
    pool = _pool("a", "b", "c")
    assert pool.use("a") == "A"
    assert pool.add("d", "D", size_bytes=30, is_pinned=False, ref="d") == ("b",)
    assert pool.keys == ("c", "a", "d")
    assert pool.use("b") is None


def test_several_go_when_a_large_one_comes() -> None:
    pool = _pool("a", "b", "c")
    assert pool.make_room(70, ref="d") == ("a", "b")
    assert pool.used_bytes == 30


def test_pinned_model_is_never_evicted() -> None:
    pool = _pool("a", "b", "c")
    pool.pin("a")
    assert pool.make_room(70, ref="d") == ("b", "c")
    assert pool.keys == ("a",)


def test_model_too_large_is_refused_with_sizes_and_nothing_goes() -> None:
    pool = _pool("a", "b", limit=100 * 1024**2)
    pool.pin("a")
    with pytest.raises(DeviceError, match=r"big:1 needs 200\.0 MiB; .* has 100\.0 MiB") as caught:
        pool.make_room(200 * 1024**2, ref="big:1")
    assert caught.value.code == "model_too_large"
    assert pool.keys == ("a", "b")


def test_unloaded_model_gives_its_bytes_back() -> None:
    pool = _pool("a")
    pool.pin("a")
    assert pool.remove("a")
    assert not pool.remove("a")
    assert pool.used_bytes == 0
