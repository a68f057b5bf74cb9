"""Quality of a fine-tune: our training child beside a plain Trainer script, with the same settings and data.

`python -m bench.quality [--data FOLDER] [--only NAME] [--seeds 3] [--quick]`: both train on the same rows, and both
models are judged on the test file by the same code. By default chance is the same for both: one seed, the library's
random order of rows, no dropout; what is left of a difference is ours. With `--seeds N` each trains N times as jobs do
by default, rows of like length together and with dropout, and the means are compared. Prints a table, writes
`bench/results/quality.json` (or `quality-seeds.json`), gates nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ondol.contract.fine_tune import FineTuneOptions
from workers.importing.importer import import_model
from workers.offline_models import offline_model_folders
from workers.training.data.dataset import load_dataset
from workers.training.plan import BaseVersion, DataFile, DataFiles, TrainPlan, dump_plan

RESULTS = Path(__file__).parent / "results"
SCRIPT = Path(__file__).with_name("quality_script.py")
DEV_ROWS, JUDGED_ROWS = 200, 600
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
"""Of BERT, which both bases are."""
QUICK_ROWS = {"train": 240, "dev": 60, "test": 150}
TEXT, TOKENS = "text-classification", "token-classification"


@dataclass(frozen=True, slots=True)
class Trial:
    """One data set, its base and its settings."""

    name: str
    task: str
    base: str
    suffix: str
    epochs: float
    learning_rate: float
    has_dev: bool = True
    freeze_word_embeddings: bool = False
    max_length: int = 128
    batch_size: int = 16
    rows: int = 1_000
    """Training rows that are used: as many as leave an hour for everything with three seeds, on two cores."""


TRIALS = (
    Trial("banking77", TEXT, "all-minilm-l6-v2", ".csv", 5, 3e-4, has_dev=False, max_length=64),
    Trial("nsmc", TEXT, "multilingual-e5-small", ".csv", 2, 1e-4, freeze_word_embeddings=True, rows=600),
    Trial("wnut17", TOKENS, "all-minilm-l6-v2", ".jsonl", 3, 3e-4),
    Trial("klue-ner", TOKENS, "multilingual-e5-small", ".jsonl", 6, 3e-4, freeze_word_embeddings=True, rows=600),
)
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One training of a trial; `is_paired`: without dropout, and in the order of rows that the library draws."""

    trial: Trial
    files: dict[str, Path]
    base: Path
    threads: int
    seed: int
    is_paired: bool

    @property
    def order(self) -> str:
        """The Trainer's name for the order of rows."""
        return "random" if self.is_paired else "group_by_length"


def main(argv: list[str]) -> int:
    """Run the trials and print the table; 1 if data or models are missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="folder of the data sets")
    parser.add_argument("--only", action="append", choices=[trial.name for trial in TRIALS], help="these data sets")
    parser.add_argument("--seeds", type=int, default=0, help="train so often, with dropout and grouped rows")
    parser.add_argument("--quick", action="store_true", help="few rows: shows that it runs, not how good it is")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parsed = parser.parse_args(argv)
    trials = [trial for trial in TRIALS if parsed.only is None or trial.name in parsed.only]
    missing = _missing(trials, parsed.data)
    if missing:
        print(f"bench.quality: missing {', '.join(missing)}", file=sys.stderr)
        return 1
    figures = []
    with tempfile.TemporaryDirectory(prefix="ondol-quality-") as folder:
        for trial in trials:
            figures.append(_run_trial(trial, Path(folder) / trial.name, parsed))
            _print_table(figures[-1:], with_header=len(figures) == 1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / ("quality-seeds.json" if parsed.seeds else "quality.json")).write_text(
        json.dumps(figures, indent=1) + "\n", encoding="utf-8"
    )
    return 0


def _missing(trials: list[Trial], data: Path) -> list[str]:
    models = offline_model_folders()
    found = [f"the model {base}" for base in sorted({trial.base for trial in trials} - set(models))]
    for trial in trials:
        names = ("train", "dev", "test") if trial.has_dev else ("train", "test")
        files = [data / trial.name / f"{name}{trial.suffix}" for name in names]
        found += [str(file) for file in files if not file.is_file()]
    return found


def _run_trial(trial: Trial, folder: Path, parsed: argparse.Namespace) -> Figures:
    folder.mkdir(parents=True)
    files = _split_files(trial, parsed.data / trial.name, folder, is_quick=parsed.quick)
    base = folder / "base"
    base.mkdir()
    import_model(offline_model_folders()[trial.base], base, convert_bin=False)
    is_paired = not parsed.seeds
    ours, scripts, ours_s, scripts_s = [], [], 0.0, 0.0
    for seed in range(42, 42 + max(1, parsed.seeds)):
        run = Run(trial, files, base, parsed.threads, seed, is_paired)
        started = time.monotonic()
        model = _train_with_child(run, folder / f"child-{seed}")
        ours_s += time.monotonic() - started
        ours.append(_judge(trial, model, files["test"], parsed.threads))
        started = time.monotonic()
        model = _train_with_script(run, folder / f"script-{seed}")
        scripts_s += time.monotonic() - started
        scripts.append(_judge(trial, model, files["test"], parsed.threads))
    return {
        "data": trial.name,
        "base": trial.base,
        "rows": len(_read(files["train"])),
        "epochs": trial.epochs,
        "is_paired": is_paired,
        "ours": ours,
        "script": scripts,
        "ours_min": ours_s / 60,
        "script_min": scripts_s / 60,
        "is_quick": parsed.quick,
    }


def _split_files(trial: Trial, source: Path, folder: Path, *, is_quick: bool) -> dict[str, Path]:
    """Train, dev and test files; without a dev file, every tenth training row becomes one."""
    rows = {name: _read(source / f"{name}{trial.suffix}") for name in ("train", "test")}
    if trial.has_dev:
        rows["dev"] = _read(source / f"dev{trial.suffix}")
    else:
        rows["dev"] = rows["train"][::10]
        rows["train"] = [row for number, row in enumerate(rows["train"]) if number % 10]
    limits = QUICK_ROWS if is_quick else {"train": trial.rows, "dev": DEV_ROWS, "test": JUDGED_ROWS}
    rows = {name: _spread(found, limits[name]) for name, found in rows.items()}
    known = {row.get("label") for row in rows["train"]}
    rows |= {name: [row for row in rows[name] if row.get("label") in known] for name in ("dev", "test")}
    files = {}
    for name, found in rows.items():
        files[name] = folder / f"{name}{trial.suffix}"
        _write(files[name], found)
    return files


def _spread(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows, taken evenly from all of them: files may be sorted by label."""
    if len(rows) <= limit:
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=["text", "label"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _train_with_child(run: Run, folder: Path) -> Path:
    folder.mkdir()
    trial, files = run.trial, run.files
    options = FineTuneOptions.model_validate(
        {
            "output_name": trial.name,
            "train_file": f"file_{'0' * 26}",
            "validation_file": f"file_{'1' * 26}",
            "task": trial.task,
            "max_length": trial.max_length,
            "freeze_word_embeddings": trial.freeze_word_embeddings,
            "hyperparameters": {
                "num_train_epochs": trial.epochs,
                "learning_rate": trial.learning_rate,
                "per_device_train_batch_size": trial.batch_size,
                "train_sampling_strategy": run.order,
            },
            "config": dict.fromkeys(DROPOUTS, 0.0) if run.is_paired else {},
            "seed": run.seed,
        }
    )
    data = DataFiles(DataFile(files["train"], files["train"].name), DataFile(files["dev"], files["dev"].name))
    plan = TrainPlan(
        "job_bench", 1, BaseVersion(f"{trial.base}:1", run.base), data, options, folder, threads=run.threads
    )
    plan = replace(plan, report=load_dataset(plan).report)
    (folder / "plan.json").write_bytes(dump_plan(plan))
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "workers.training.child", "--plan", str(folder / "plan.json")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--events-fd", str(writing)], pass_fds=(writing,), stderr=log)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as lines:
        events = [json.loads(line) for line in lines]
    process.wait()
    if not events or events[-1]["event"] != "finished":
        raise RuntimeError(f"the child did not finish: {events[-1:]} {(folder / 'log').read_text()[-2000:]}")
    return Path(events[-1]["folder"])


def _train_with_script(run: Run, folder: Path) -> Path:
    folder.mkdir()
    trial, files = run.trial, run.files
    command = [sys.executable, str(SCRIPT), "--task", trial.task, "--base", str(run.base), "--out", str(folder)]
    command += ["--train", str(files["train"]), "--dev", str(files["dev"]), "--epochs", str(trial.epochs)]
    command += ["--learning-rate", str(trial.learning_rate), "--batch-size", str(trial.batch_size)]
    command += ["--max-length", str(trial.max_length), "--seed", str(run.seed), "--threads", str(run.threads)]
    command += ["--order", run.order]
    if run.is_paired:
        command.append("--no-dropout")
    if trial.freeze_word_embeddings:
        command.append("--freeze-word-embeddings")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(run.threads)}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"the script failed: {done.stderr.decode()[-2000:]}")
    return folder / "model"


def _judge(trial: Trial, folder: Path, test: Path, threads: int) -> dict[str, float]:
    """Test metrics of a model folder, by transformers alone, in a process of its own."""
    command = [sys.executable, "-m", "bench.quality_judge", "--task", trial.task, "--model", str(folder)]
    command += ["--test", str(test), "--max-length", str(trial.max_length), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the model cannot be judged: {done.stderr.decode()[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _print_table(figures: list[Figures], *, with_header: bool) -> None:
    columns = "{:11} {:22} {:>5} {:>6} {:>9} {:>15} {:>15} {:>8} {:>5} {:>7}"
    if with_header:
        print(columns.format("data", "base", "rows", "epochs", "metric", "ours", "script", "diff", "min", "script"))
    for figure in figures:
        for metric in figure["ours"][0]:
            ours, script = ([found[metric] for found in figure[side]] for side in ("ours", "script"))
            print(
                columns.format(
                    figure["data"], figure["base"], figure["rows"], figure["epochs"], metric,
                    _with_spread(ours), _with_spread(script), f"{_mean(ours) - _mean(script):+.4f}",
                    f"{figure['ours_min']:.1f}", f"{figure['script_min']:.1f}",
                ),
                flush=True,
            )  # fmt: skip


def _with_spread(values: list[float]) -> str:
    """The mean, and half the distance of the extremes."""
    spread = f" ±{(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return f"{_mean(values):.4f}{spread}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
