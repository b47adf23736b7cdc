"""How the demo is shown: colours and bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tidelog.cli.session import screen

_REFRESHES_PER_S = 12


class Stage:
    """A screen that acts are played on."""

    def __init__(self) -> None:
        self._console = screen()
        self._act = 0

    def title(self, title: str, below: str) -> None:
        """Show what is played."""
        self.line()
        self._write(title, "bold cyan")
        self._write(below, "dim")

    def act(self, title: str) -> None:
        """Begin an act."""
        self._act += 1
        self.line()
        self._write(f"{self._act}  {title}", "bold")

    def line(self, text: str = "") -> None:
        """Say something."""
        self._write(f"   {text}" if text else "", "")

    def fact(self, name: str, value: str, remark: str = "") -> None:
        """Show something that was measured."""
        from rich.text import Text

        self._console.print(Text.assemble("   ", (f"{name:<22}", "dim"), (value, "bold"), f"  {remark}" if remark else ""))

    def good(self, text: str) -> None:
        """Show something that was checked, and holds."""
        from rich.text import Text

        self._console.print(Text.assemble("   ", ("✓ ", "bold green"), text))

    def command(self, command: str, does: str) -> None:
        """Show a command to try."""
        from rich.text import Text

        self._console.print(Text.assemble("   ", ("$ ", "dim"), (f"{command:<56}", "cyan"), (f"  {does}", "dim")))

    def _write(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))

    @contextmanager
    def bar(self, doing: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how far something is, on a terminal; gives what is told of every step."""
        if not self._console.is_terminal:
            yield lambda _: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("   {task.description:<9}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, refresh_per_second=_REFRESHES_PER_S) as progress:
            task = progress.add_task(doing, total=total)
            yield lambda done: progress.update(task, advance=done)
