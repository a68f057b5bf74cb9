"""Reads one file of training data into rows whose texts and labels are strings, exactly as they are written."""

from __future__ import annotations

from pathlib import Path

from ondol.contract.fine_tune import FineTuneOptions
from workers.training.data.columns import task_of
from workers.training.data.examples import TOKEN_TASK, Examples, Source
from workers.training.data.problems import Problems, file_error
from workers.training.data.tables import open_table
from workers.training.data.text_rows import read_text_rows
from workers.training.data.token_rows import read_token_rows


def read_examples(
    path: Path,
    *,
    filename: str,
    options: FineTuneOptions,
    task: str | None = None,
    problem_type: str | None = None,
    param: str = "options.train_file",
) -> Examples:
    """All rows of the file at `path`, which its owner calls `filename`; its suffix says the format.

    `task` and `problem_type` are what another file of the same training settled; None: by the options and the file.
    InvalidPayload names file, row, line and column of what cannot be used, and what to do; `param` goes with it.
    """
    source = Source(filename, param)
    problems = Problems(source)
    rows: Examples
    with open_table(path, source, problems) as table:
        if (task or task_of(table.columns, options, source)) == TOKEN_TASK:
            rows = read_token_rows(table, options, source, problems)
        else:
            rows = read_text_rows(table, options, source, problems, problem_type=problem_type)
    problems.raise_if_any()
    if not len(rows):
        raise file_error(source, "has a header, but no rows; add some")
    return rows
