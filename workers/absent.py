"""Libraries that transformers imports where they are installed, and that running or reading a model never uses."""

from __future__ import annotations

import sys
from typing import Any

UNUSED = ("accelerate", "scipy", "sklearn")
"""Half a second and 40 MB of a process that loads a model; only training needs them."""


def leave_out(*names: str) -> None:
    """From now on these libraries count as not installed in this process, but for those that are imported already."""
    modules: dict[str, Any] = sys.modules
    for name in names:
        modules.setdefault(name, None)  # the language's own way to say so: an import raises ModuleNotFoundError
