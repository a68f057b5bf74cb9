"""What a device process is told of its worker's environment: nothing that opens a database, a Redis or a store."""

from __future__ import annotations

import sys

import psutil
import pytest

from ondol.settings import LogSettings
from tests.device_child import device_options
from workers.child_environment import log_environment
from workers.device_keeper import DeviceKeeper, DeviceProgram

pytestmark = pytest.mark.integration

START_LIMIT_S = 60.0
SECRETS = {
    "ONDOL_REDIS_URL": "redis://:hunter2@127.0.0.1:6379/0",
    "ONDOL_DATABASE_URL": "postgresql+psycopg://ondol:hunter2@127.0.0.1/ondol",
    "ONDOL_REDIS_PASSWORD": "hunter2",
    "ONDOL_DATABASE_PASSWORD": "hunter2",
    "ONDOL_API_KEY": "hunter2",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "PGPASSWORD": "hunter2",
    "ONDOL_SECRETS_DIR": "/hunter2",
}
TUNING = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "CUDA_VISIBLE_DEVICES": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}


def test_a_device_process_gets_no_secret_and_all_tuning_of_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SECRETS | TUNING).items():
        monkeypatch.setenv(name, value)
    pids: list[int] = []
    log_as = log_environment(LogSettings(log_level="warning", log_format="json"))
    argv = (sys.executable, "-m", "tests.device_programs", *device_options(0)[2:])
    keeper = DeviceKeeper(
        DeviceProgram(argv, log_as),
        forward_limit_s=20,
        on_up=lambda ready: pids.append(int(ready["pid"])),
        on_down=lambda: None,
    )
    keeper.start()
    try:
        assert keeper.wait_up(START_LIMIT_S)
        given = psutil.Process(pids[0]).environ()
    finally:
        keeper.stop()
    assert "hunter2" not in str(given)
    assert given.items() >= TUNING.items()
    ours = {name: value for name, value in given.items() if name.startswith("ONDOL_")}
    assert ours == {"ONDOL_LOG_LEVEL": "warning", "ONDOL_LOG_FORMAT": "json"}
