"""What workers, those who want to be some, and the supervisor leave for one another.

These are files in the supervisor's folder, which only this user can enter.

    process.1     which process of worker 1 runs: 0 for the first (the supervisor)
    asks.1.1.2    process 1 of worker 1 wants to enter, and says what it is; try 2
    answer.1.1.2  what the others have decided (each of them writes the same)
    entered.1.1   it is one of the workers now

Nothing in them is secret, and nothing in them need be true: who enters has to prove
that he has the job's token, as everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Asker(NamedTuple):
    """A process that wants to enter: of which worker, which one, and its try."""

    rank: int
    process: int
    attempt: int

    def __str__(self) -> str:
        return ".".join(map(str, self))


class Desk:
    """The files of one job.

    Args:
        folder: the supervisor's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, rank: int, process: int) -> None:
        """Say which process of a worker is started; the supervisor does."""
        self._write(f"process.{rank}", str(process), 0)

    def process(self, rank: int) -> int | None:
        """Return which process of a worker runs; None: nobody is started again."""
        text = self._read(f"process.{rank}")
        return None if text is None else int(text)

    def ask(self, who: Asker, text: str) -> None:
        """Want to enter; `text` is for the others to read."""
        self._write(f"asks.{who}", text, who.rank)

    def asking(self) -> list[Asker]:
        """Return who asks and has no answer, in order."""
        names = (path.name.split(".")[1:] for path in self._folder.glob("asks.*"))
        found = [Asker(*map(int, name)) for name in names]
        # Of a worker whose second process has died, too, only the last one counts.
        return sorted(
            who
            for who in found
            if self.answered(who) is None and self.process(who.rank) == who.process
        )

    def asked(self, who: Asker) -> str | None:
        """Return what a process that asks has said."""
        return self._read(f"asks.{who}")

    def answer(self, who: Asker, text: str, by: int) -> None:
        """Answer a process, in the name of worker `by`."""
        self._write(f"answer.{who}", text, by)

    def answered(self, who: Asker) -> str | None:
        """Return the answer to a process; None: there is none yet."""
        return self._read(f"answer.{who}")

    def enter(self, rank: int, process: int) -> None:
        """Say that this process is one of the workers now."""
        self._write(f"entered.{rank}.{process}", "", rank)

    def has_entered(self, rank: int, process: int) -> bool:
        """Return whether a process is one of the workers; the first one always is."""
        return process == 0 or self._read(f"entered.{rank}.{process}") is not None

    def _write(self, name: str, text: str, by: int) -> None:
        """Write it under another name first: it is there whole or not at all."""
        part = self._folder / f"part.{name}.by.{by}"
        part.write_text(text)
        part.rename(self._folder / name)

    def _read(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text()
        except FileNotFoundError:
            return None
