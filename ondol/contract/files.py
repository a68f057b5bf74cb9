"""What an uploaded file may be: its purposes, which names go with them, how long it may be kept."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ondol.contract.errors import FileNotFound, InvalidPayload

DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
"""What files of labelled or unlabelled texts may be called; their content is judged when it is read."""
DATA_PURPOSES = ("fine-tune", "batch", "evals")
"""Purposes whose files are read by us."""
FILE_PURPOSES = (*DATA_PURPOSES, "user_data", "assistants", "vision")
"""OpenAI's names; files of the last three may be called anything."""
BATCH_OUTPUT = "batch_output"
"""The purpose of files that a batch has written; nobody uploads such."""
MAX_FILENAME_CHARS = 255
MIN_EXPIRY_S = 3_600
MAX_EXPIRY_S = 365 * 86_400

_FILE_ID = re.compile(r"file_[0-9a-z]{26}")


def check_file_id(file_id: str) -> str:
    """`file_id` if it has the form of one, else FileNotFound: ids are parts of paths in the store."""
    if _FILE_ID.fullmatch(file_id) is None:
        raise FileNotFound(f"there is no file {file_id[:80]!r} in this project", param="file_id")
    return file_id


def check_purpose(purpose: str, *, may_be_ours: bool = False) -> str:
    """`purpose` if it is one, else InvalidPayload; `may_be_ours`: also of files that only the server makes."""
    if purpose not in FILE_PURPOSES and not (may_be_ours and purpose == BATCH_OUTPUT):
        raise InvalidPayload(f"purpose is one of {', '.join(FILE_PURPOSES)}; not {purpose[:80]!r}", param="purpose")
    return purpose


def check_filename(filename: str) -> str:
    """`filename` if it is a plain name without a path, else InvalidPayload."""
    if not 0 < len(filename) <= MAX_FILENAME_CHARS:
        raise InvalidPayload(f"a file name has 1 to {MAX_FILENAME_CHARS} characters", param="file")
    if "/" in filename or "\\" in filename or filename in (".", ".."):
        raise InvalidPayload(f"send the file name without a path, not {filename[:120]!r}", param="file")
    if not filename.isprintable():
        raise InvalidPayload(f"the file name {filename[:120]!r} has characters that cannot be shown", param="file")
    return filename


def check_suffix(filename: str, purpose: str) -> None:
    """Return if a file of this name can be read for this purpose, else InvalidPayload."""
    if purpose in DATA_PURPOSES and PurePosixPath(filename).suffix.lower() not in DATA_SUFFIXES:
        raise InvalidPayload(
            f"a file for {purpose} ends in {', '.join(DATA_SUFFIXES)}; {filename[:120]!r} does not"
            " (purpose user_data takes any name)",
            param="file",
        )


def check_expiry(seconds: str) -> int:
    """Seconds after which a file is to expire, from a form field; InvalidPayload if out of bounds."""
    value = int(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 12 else 0
    if not MIN_EXPIRY_S <= value <= MAX_EXPIRY_S:
        raise InvalidPayload(
            f"expires_after[seconds] is a number from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}; not {seconds[:40]!r}",
            param="expires_after[seconds]",
        )
    return value
