"""A process of its own that publishes or materialises: the tests end it at bad moments.

`publish STORE FOLDER` stops before the manifest when `--hold` is given; `fill STORE CACHE DIGEST` stops before the
cached folder appears when `--hold` is given, and before a version that it evicts is gone when `--hold-removal` is. All
print a line when they stop, and then wait to be ended.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from models_store.cache import LocalCache
from models_store.manifest import Manifest
from models_store.store import ModelStore


def _hold() -> None:
    sys.stdout.write("held\n")
    sys.stdout.flush()
    signal.pause()


class HeldStore(ModelStore):
    """Never gets to write a manifest."""

    def _write_bytes(self, path: str, data: bytes) -> None:
        _hold()
        super()._write_bytes(path, data)


class HeldCache(LocalCache):
    """Copies everything and never shows it."""

    def _stage(self, store: ModelStore, manifest: Manifest, staging: Path, ref: str) -> None:
        super()._stage(store, manifest, staging, ref)
        _hold()


def _hold_removal(*_: Any, **__: Any) -> None:
    _hold()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["publish", "fill", "pin"])
    parser.add_argument("store")
    parser.add_argument("path", type=Path)
    parser.add_argument("digest", nargs="?", default="")
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--hold-removal", action="store_true")
    parser.add_argument("--max-bytes", type=int, default=50_000)
    arguments = parser.parse_args()
    if arguments.hold_removal:
        shutil.rmtree = _hold_removal  # type: ignore[assignment]  # this process is killed inside of it
    if arguments.action == "publish":
        store = HeldStore(arguments.store) if arguments.hold else ModelStore(arguments.store)
        sys.stdout.write(store.publish_folder(arguments.path, "m:1").digest + "\n")
        return
    cache = (HeldCache if arguments.hold else LocalCache)(arguments.path, arguments.max_bytes)
    folder = cache.materialise(ModelStore(arguments.store), arguments.digest, "m:1", pin=arguments.action == "pin")
    if arguments.action == "pin":
        _hold()
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
