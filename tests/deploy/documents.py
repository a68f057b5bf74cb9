"""The fenced blocks of the repository's pages, and running those that are shell commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.compose_file import ROOT

README = "README.md"
DEPLOY = "docs/deploy.md"
RUN_LIMIT_S = 120
# A `#` comment inside of a block is no heading: blocks and headings are found in one pass.
_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$|^#+ (?P<heading>[^\n]*)$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; `number` counts within its heading, from 1."""

    document: str
    heading: str
    number: int
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What a table of blocks names it by."""
        return (self.document, self.heading, self.number)


def read_blocks(document: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    heading = ""
    for match in _BLOCK.finditer(read(document)):
        if match["heading"] is not None:
            heading = match["heading"]
            continue
        number = 1 + sum(block.heading == heading for block in found)
        found.append(Block(document, heading, number, match["language"], match["text"]))
    return found


def find_block(document: str, heading: str, number: int) -> Block:
    """The block that a page has there; StopIteration if it has none."""
    return next(block for block in read_blocks(document) if block.key == (document, heading, number))


def inline_commands(document: str, program: str) -> list[str]:
    """Commands of a program that stand within sentences."""
    prose = re.sub(r"^```.*?^```$", "", read(document), flags=re.DOTALL | re.MULTILINE)
    return [text for text in _INLINE.findall(prose) if text.startswith(f"{program} ")]


def read(document: str) -> str:
    """A file of the repository."""
    return (ROOT / document).read_text(encoding="utf-8")


def run_shell(script: str, *, folder: Path, environment: Mapping[str, str]) -> str:
    """What a script prints that a person types in `folder`; AssertionError with its errors if a line of it fails.

    `ondol` is the one of these tests; a folder `bin` in `folder` comes before everything else on PATH.
    """
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}{done.stdout}"
    return done.stdout
