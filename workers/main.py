"""A worker's program: `python -m workers.main`. It listens for signals before it imports what takes a second."""

from __future__ import annotations

import sys

from workers.stopping import StopRequest


def main() -> int:
    """Run until SIGTERM or SIGINT."""
    stop = StopRequest.listen()
    from ondol.settings import WorkerSettings, load_settings
    from workers.worker_process import run_worker

    return run_worker(load_settings(WorkerSettings), stop)


if __name__ == "__main__":
    sys.exit(main())
