"""Metrics of a run: JSON lines always, TensorBoard when asked.

A line is a flat object with `step` and `tokens`. When a run resumes at a step, lines after it are
taken back, so that an interrupted run leaves the same lines as one that was not (times aside).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


class Lines:
    """Appends JSON objects, each with a `step`, to a file."""

    def __init__(self, path: Path, step: int) -> None:
        """Opens the lines of a run that continues after step `step`, and takes back those after it; -1: all."""
        kept = [line for line in read(path) if line["step"] <= step] if path.exists() else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
        self._file = path.open("a")

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()


class Metrics:
    """Appends metrics to `folder/metrics.jsonl` and, with `tensorboard`, to `folder/tensorboard`."""

    def __init__(self, folder: Path, step: int, backends: Sequence[str] = ()) -> None:
        """Opens the metrics of a run that continues after step `step`; -1: that starts afresh."""
        self._lines = Lines(folder / "metrics.jsonl", step)
        self._board = (
            SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
            if "tensorboard" in backends
            else None
        )

    def write(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """Appends a line; `tokens` counts the tokens trained on so far."""
        self._lines.write({"step": step, "tokens": tokens, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._lines.close()
        if self._board is not None:
            self._board.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file; a last line that a kill cut short is left out."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
