"""A worker of a release that knows none of today's messages: `python -m tests.outages.old_worker [fault arguments]`."""

from __future__ import annotations

import sys

from tests import faulty_worker
from workers import consuming

LONG_AGO = 0


def main(fault_arguments: list[str]) -> int:
    """Run until SIGTERM."""
    vars(consuming)["READ_VERSIONS"] = frozenset({LONG_AGO})
    return faulty_worker.main(fault_arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
