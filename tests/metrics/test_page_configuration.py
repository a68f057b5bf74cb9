"""The configuration for Prometheus in docs/metrics.md is whole YAML and names metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
TABLE = set(re.findall(r"^\| `(ondol_[a-z_]+)", PAGE, flags=re.MULTILINE))


def test_the_blocks_name_targets_and_metrics_that_there_are() -> None:
    scrape, rules = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
    targets = [one for each in scrape["scrape_configs"][0]["static_configs"] for one in each["targets"]]
    assert targets and all(re.fullmatch(r"127\.0\.0\.1:\d{4}", target) for target in targets)
    alerts = rules["groups"][0]["rules"]
    assert len(alerts) == 8
    for alert in alerts:
        named = set(re.findall(r"ondol_[a-z_]+", alert["expr"]))
        assert named and named <= TABLE, alert["alert"]
        assert alert["annotations"]["summary"]
