"""A worker whose device process is the tests' own: `python -m tests.faulty_worker [fault arguments]`.

The product's composition root with another device program handed in; everything else is the product.
"""

from __future__ import annotations

import sys

from workers.stopping import StopRequest


def main(fault_arguments: list[str]) -> int:
    """Run until SIGTERM."""
    stop = StopRequest.listen()
    from ondol.settings import WorkerSettings, load_settings
    from workers.device_keeper import DeviceProgram
    from workers.worker_process import device_arguments, run_worker

    def program(settings: WorkerSettings, cores: tuple[int, ...]) -> DeviceProgram:
        argv = (sys.executable, "-m", "tests.device_programs", *fault_arguments, *device_arguments(settings, cores))
        return DeviceProgram(argv)

    return run_worker(load_settings(WorkerSettings), stop, program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
