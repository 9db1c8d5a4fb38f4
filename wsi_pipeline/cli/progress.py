"""Progress of a run: bars on a terminal, one line per stage in a log."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..engine import Job, Result

_UNITS = {"tile": "patches", "embed": "patches", "explain": "patches", "heatmap": "cells"}
_JOBS = {"train": "folds", "explain": "maps"}


class Bars:
    """An ``Observer`` that draws on ``console``: jobs done, rate, time left; and a summary line per stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._stage = ""
        self._clear()

    def _clear(self) -> None:
        self._begin = time.monotonic()
        self._done = self._units = self._failed = self._current = 0
        self._worked_s = self._waited_s = 0.0

    def started(self, stage: str, total: int, current: int) -> None:
        """A stage may have several batches (folds, then the cohort): its numbers add up until another stage begins."""
        if stage != self._stage:
            self.close()
            self._clear()
            self._stage = stage
        self._current += current
        if total > current and self._console.is_terminal:
            self._open(total - current)

    def _open(self, todo: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(self._stage, total=todo, rate="")

    def advanced(self, stage: str, job: Job, result: Result) -> None:
        """One job ended; a failure is printed at once."""
        if result.done_elsewhere:
            self._current += 1
            self._step()
            return
        self._done += 1
        self._units += result.units
        self._worked_s += result.worked_s
        self._waited_s += result.waited_s
        if result.error:
            self._failed += 1
            self._console.print(
                f"[yellow]{stage}: {escape(job.name)} failed:[/] {escape(result.message)}",
                highlight=False,
                soft_wrap=True,
            )
        self._step()

    def _step(self) -> None:
        if self._progress is not None:
            self._progress.update(self._task, advance=1, rate=self._rate() if self._done else "")

    def waiting(self, stage: str, why: str) -> None:
        """Print a line with the reason."""
        self._console.print(f"{stage}: {escape(why)}", highlight=False, soft_wrap=True)

    def finished(self) -> None:
        """Remove the bar; the summary line is printed when the next stage begins."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        """Print the summary line of the last stage. Also called at the end of a run."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if not self._stage:
            return
        parts = [f"{self._done - self._failed} done", f"{self._current} up to date"]
        if self._failed:
            parts.append(f"[yellow]{self._failed} failed[/]")
        rate = f" in {self._seconds():.1f} s, {self._rate()}" if self._done else ""
        self._console.print(f"[bold]{self._stage:>9}[/]  {', '.join(parts)}{rate}", highlight=False)
        self._stage = ""

    def _seconds(self) -> float:
        return max(time.monotonic() - self._begin, 1e-6)

    def _rate(self) -> str:
        seconds = self._seconds()
        rate = self._done / seconds
        text = f"{f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'} {_JOBS.get(self._stage, 'slides')}/s"
        if self._units and self._stage in _UNITS:
            text += f", {self._units / seconds:,.0f} {_UNITS[self._stage]}/s"
        if self._worked_s:
            text += f", the device waited {self._waited_s / self._worked_s:.0%} of the time"
        return text
