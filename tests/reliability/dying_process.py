"""A process of the product that ends itself by SIGKILL at one exact moment.

`python -m tests.reliability.dying_process before-publish|after-publish MODULE`: the module's own `main`, in which the
first message that is published is the last thing that happens, or the thing that does not happen any more.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from ondol.broker.publisher import Publisher


class _Last(Publisher):
    """Publishes, and dies."""

    def publish(self, *args: Any, **kwargs: Any) -> bool:
        super().publish(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("the process has ended")


class _Never(Publisher):
    """Dies before it publishes."""

    def publish(self, *_: Any, **__: Any) -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("the process has ended")


def main(moment: str, name: str) -> None:
    """Run the module's `main` with a publisher that dies."""
    module = importlib.import_module(name)
    module.Publisher = {"before-publish": _Never, "after-publish": _Last}[moment]  # type: ignore[attr-defined]  # the module's own name for it
    sys.exit(module.main())


if __name__ == "__main__":
    main(*sys.argv[1:])
