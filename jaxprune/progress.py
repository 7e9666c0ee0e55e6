"""What a person sees while a long command works: messages, and bars with rate and time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_console = Console(stderr=True, highlight=False, soft_wrap=True)
_LINE_EVERY_S = 10.0  # between lines where there is no terminal to redraw


def say(message: str) -> None:
    """Prints one line; square brackets are printed as they are."""
    _console.print(message, markup=False)


def mute() -> None:
    """Shows nothing from here on: another process speaks."""
    _console.quiet = True


def unmute() -> None:
    """Shows everything again."""
    _console.quiet = False


class Meter:
    """Counts work done. On a terminal a bar; elsewhere (logs, CI) a line every ten seconds."""

    def __init__(self, title: str, total: float | None, unit: str, bar: Progress, task: TaskID) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0.0
        self._bar, self._task = bar, task
        self._last_line = time.monotonic()
        self._begin: float | None = None  # when the first work was done: what is before it is compilation
        self._before = 0.0  # done by then, which does not count towards the rate

    def skip(self, amount: float) -> None:
        """Work that an earlier, interrupted call has done: it counts, but not towards the rate."""
        self.done += amount
        self._before += amount
        self._bar.update(self._task, advance=amount)

    def tell(self, note: str) -> None:
        """Shows what is done before the first work is; later it says nothing."""
        if self._begin is not None:
            return
        self._bar.update(self._task, note=note)
        if not _console.is_terminal:
            say(f"{self.title}: {note}")

    def add(self, amount: float, note: str = "") -> None:
        """`amount` more is done; `note` is shown behind it."""
        self.done += amount
        now = time.monotonic()
        if self._begin is None:
            self._begin, self._before = now, self.done
        elapsed = now - self._begin
        rate = (self.done - self._before) / elapsed if elapsed > 0 else 0.0
        shown = f"{_short(rate)} {self.unit}/s" if rate else ""
        self._bar.update(self._task, advance=amount, rate=shown, note=note)
        if not _console.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            say(f"{self.title}: {self._state(rate)}{'  ' + note if note else ''}")

    def _state(self, rate: float) -> str:
        share = (
            "" if self.total is None else f"{self.done / max(self.total, 1e-9):.0%} of {_short(self.total)}"
        )
        state = f"{share or _short(self.done)} {self.unit}"
        if not rate:
            return state
        left = "" if self.total is None else f", {max(self.total - self.done, 0) / rate:.0f} s left"
        return f"{state}, {_short(rate)} {self.unit}/s{left}"


@contextmanager
def meter(title: str, total: float | None, unit: str) -> Iterator[Meter]:
    """Shows work of `total` units (None: not known) while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_console, disable=not _console.is_terminal) as bar:
        task = bar.add_task(title, total=total, rate="", note="")
        begin = time.monotonic()
        made = Meter(title, total, unit, bar, task)
        yield made
    if not _console.is_terminal:
        say(f"{title}: {_short(made.done)} {unit} in {time.monotonic() - begin:.0f} s")


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Shows that the block runs and for how long: of work that cannot be counted."""
    if not _console.is_terminal:
        say(title)
        yield
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=_console) as bar:
        bar.add_task(title, total=None)
        yield


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
