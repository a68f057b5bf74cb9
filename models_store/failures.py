"""The one place where errors of filesystems become errors of the model store."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ondol.contract.errors import ModelStoreError, StorageFull, StoreUnavailable

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Optional drivers, looked up only when they are loaded: their connection errors are no OSError.
_DRIVER_ERRORS = (
    ("botocore.exceptions", ("BotoCoreError", "ClientError")),
    ("aiohttp", ("ClientError",)),
    ("gcsfs.retry", ("HttpError",)),
)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Run the block; StoreUnavailable (retryable) when the filesystem fails, StorageFull when it is full.

    A missing file is ModelStoreError with code `file_missing`: trying again does not bring it back.
    """
    try:
        yield
    except FileNotFoundError as exc:
        raise ModelStoreError(f"{what}: {exc}", code="file_missing") from exc
    except OSError as exc:
        if exc.errno in _FULL:
            raise StorageFull(f"{what}: no space left on the storage") from exc
        raise StoreUnavailable(f"{what}: {exc}") from exc
    except Exception as exc:
        if not isinstance(exc, _driver_errors()):
            raise
        raise StoreUnavailable(f"{what}: {exc}") from exc


def _driver_errors() -> tuple[type[Exception], ...]:
    found = []
    for module, names in _DRIVER_ERRORS:
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in names if hasattr(sys.modules[module], name)]
    return tuple(found)
