"""The door to the terminal: whatever is printed, by whomever, is text there and no command to it.

Names, errors and texts come from packs, checkpoints and models that strangers made. In a terminal some characters are
commands: escape sequences (ESC and the C1 codes), a carriage return, marks that reverse the direction of reading.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_COMMANDS = [
    *(c for c in range(0x20) if chr(c) not in "\n\t"),
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # directions of reading
    *(0x2028, 0x2029),  # line breaks of their own
    *range(0xD800, 0xE000),  # halves of characters, which no encoding has
]
_SHOWN = dict.fromkeys(_COMMANDS, "�")


def harmless(text: str) -> str:
    """The text with a � for every character that is a command to a terminal; line breaks and tabs stay."""
    return text.replace("\r\n", "\n").translate(_SHOWN)


class Guarded:
    """A text stream to which everything is written `harmless`; what else it can is the stream's."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        """As the stream's."""
        return self.unguarded.write(harmless(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """As the stream's."""
        self.unguarded.writelines(map(harmless, lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


@contextmanager
def guarded() -> Iterator[None]:
    """stdout and stderr are `Guarded` meanwhile."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Guarded(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def console(*, stderr: bool = False, **settings: Any) -> Console:
    """Rich's console, whose own commands (colours, bars) reach the terminal, and those in texts do not."""
    from rich.console import Console
    from rich.segment import Segment

    class Harmless(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **kwargs):
                yield segment if segment.control else Segment(harmless(segment.text), segment.style)

    stream = sys.stderr if stderr else sys.stdout
    return Harmless(file=getattr(stream, "unguarded", stream), **settings)
