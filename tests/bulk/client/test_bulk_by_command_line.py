"""`ondol embed --file` and its like: a table goes up, a result with the table's ids comes down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondol import Ondol
from ondol.cli.main import run
from tests.bulk.client.conftest import CLASSIFIER, EMBEDDER
from tests.cluster import Cluster
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
NUM_ROWS = 2_000


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV file with ids and texts; one text has a line feed in it."""
    rows = [f'{number},"room {number}{chr(10) if number == 5 else " "}is warm"' for number in range(NUM_ROWS)]
    path = tmp_path / "rooms.csv"
    path.write_text("no,words\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def _num_files(client: Ondol, path: Path) -> int:
    """How many files of this name the server has."""
    return sum(file.filename == path.name for file in client.files.list())


def _ondol(cluster: Cluster, *arguments: object) -> int:
    return run(["--url", cluster.url, *map(str, arguments)])


def test_a_table_becomes_parquet_with_its_ids(cluster: Cluster, client: Ondol, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "vectors.parquet"
    columns = ("--text-column", "words", "--id-column", "no")
    num_before = _num_files(client, table)
    assert _ondol(cluster, "embed", "--file", table, "-m", EMBEDDER, *columns, "--output", output) == 0
    found = pq.read_table(output)
    assert found.column("id").to_pylist() == [str(number) for number in range(NUM_ROWS)]
    vector = np.array(found.column("embedding")[5].as_py(), dtype=np.float32)
    np.testing.assert_allclose(vector, client.embed("room 5\nis warm", model=EMBEDDER), atol=1e-5)
    assert _num_files(client, table) == num_before


def test_npy_has_nan_where_an_input_failed_and_the_exit_code_says_so(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "few.jsonl", tmp_path / "few.npy"
    source.write_text('{"text": "a"}\n{"text": ""}\n{"text": "b"}\n', encoding="utf-8")
    assert _ondol(cluster, "embed", "-f", source, "-m", EMBEDDER, "-o", output) == 1
    assert np.isnan(np.load(output)).any(axis=1).tolist() == [False, True, False]
    assert "input[1]: " in capsys.readouterr().err
    lines = tmp_path / "few-out.jsonl"
    assert _ondol(cluster, "embed", "-f", source, "-m", EMBEDDER, "-o", lines) == 1
    assert "1 inputs failed" in capsys.readouterr().err
    assert ["error" in json.loads(line) for line in lines.read_text().splitlines()] == [False, True, False]
    table = tmp_path / "few-out.parquet"
    assert _ondol(cluster, "embed", "-f", source, "-m", EMBEDDER, "-o", table) == 1
    assert "1 inputs failed" in capsys.readouterr().err
    assert pq.read_table(table).column("error").null_count == 2


def test_labels_of_a_parquet_file_go_to_a_pipe(
    cluster: Cluster, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    source = tmp_path / "some.parquet"
    pq.write_table(pa.table({"id": [7, 8], "text": ["warm", "cold"]}), source)
    assert _ondol(cluster, "classify", "--file", source, "--model", CLASSIFIER, "--top-k", 1) == 0
    items = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [(item["id"], len(item["output"])) for item in items] == [(7, 1), (8, 1)]


def test_a_small_text_file_is_read_here_and_its_vectors_can_be_parquet(cluster: Cluster, tmp_path: Path) -> None:
    source, output = tmp_path / "few.txt", tmp_path / "few.parquet"
    source.write_text("one\ntwo\n", encoding="utf-8")
    assert _ondol(cluster, "embed", "-f", source, "-m", EMBEDDER, "-o", output) == 0
    assert pq.read_table(output).num_rows == 2


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("rooms.csv", ("--text-column", "nothing"), "nothing"),
        ("few.txt", ("--text-column", "words"), "columns are those of a --file"),
        ("gone.csv", (), "cannot read"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_in_one_line(
    cluster: Cluster,
    table: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    (table.parent / "few.txt").write_text("one\n", encoding="utf-8")
    file = table.parent / name
    assert _ondol(cluster, "embed", "--file", file, "-m", EMBEDDER, *arguments) in (1, 2)
    assert said in capsys.readouterr().err


def test_the_result_of_a_job_is_saved_later(cluster: Cluster, client: Ondol, table: Path, tmp_path: Path) -> None:
    job = client.jobs.create("embedding", model=EMBEDDER, input_file=table, input_columns={"text": "words"}).wait()
    assert _ondol(cluster, "jobs", "result", job.id, "--output", tmp_path / "a.parquet") == 0
    assert _ondol(cluster, "jobs", "result", job.id, "--format", "jsonl", "--output", tmp_path / "a") == 0
    assert pq.read_table(tmp_path / "a.parquet").num_rows == NUM_ROWS
    assert len((tmp_path / "a").read_text(encoding="utf-8").splitlines()) == NUM_ROWS


def test_ctrl_c_cancels_the_job_and_takes_the_file_back(cluster: Cluster, client: Ondol, tmp_path: Path) -> None:
    source = tmp_path / "many.csv"
    source.write_text("text\n" + "".join(f"text {number}\n" for number in range(60_000)), encoding="utf-8")
    before = {job.id for job in client.jobs.list()}
    command = [sys.executable, "-m", "ondol.cli.main", "--url", cluster.url, "embed", "--file", str(source)]
    command += ["-m", EMBEDDER, "-o", str(tmp_path / "out.npy")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, preexec_fn=_take_ctrl_c) as process:  # noqa: PLW1509 - a signal's default and no more
        [job] = wait_until(
            lambda: [job for job in client.jobs.list() if job.id not in before and job.status == "running"],
            within_s=60,
            what="the job to run",
        )
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert f"job {job.id} is cancelled; `ondol jobs result {job.id}` gives what was done" in said.decode()
    assert client.jobs.get(job.id).status == "cancelled"
    assert _num_files(client, source) == 0 and not (tmp_path / "out.npy").exists()


def _take_ctrl_c() -> None:
    """A suite started in the background of a shell ignores it, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
