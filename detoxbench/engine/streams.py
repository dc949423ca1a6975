"""The rows of a forward pass: those of the samples, and those that hooks and operations on the logits have beside
them.

A stream is one sequence that the model reads. Each row has one of its own, and one for every companion (a carried
intervention, `InForce.companions`) of what acts on it. The rows' own streams come first, in their order; behind them
those of the first companion, and so on, so that what differs by companion lies together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detoxbench.model.model import Model


@dataclass(frozen=True)
class Streams:
    """Which streams there are."""

    records: list[str]
    """The record of each row, [rows]."""
    row: list[int]
    """The row that each stream belongs to, [streams]."""
    companion: list[int]
    """The number of the companion that each stream is, 0 for a row's own, [streams]."""

    @classmethod
    def of(cls, lm: Model, records: Sequence[str]) -> Streams:
        """Those of rows of these records, with what is in force on `lm`."""
        beside = [lm.companions(record) for record in records]
        numbers = [0, *sorted({number for numbers in beside for number in numbers})]
        pairs = [(i, n) for n in numbers for i in range(len(records)) if n == 0 or n in beside[i]]
        return cls(list(records), [i for i, _ in pairs], [n for _, n in pairs])

    @cached_property
    def _where(self) -> dict[tuple[int, int], int]:
        return {pair: k for k, pair in enumerate(zip(self.row, self.companion, strict=True))}

    @property
    def of_record(self) -> list[str]:
        """The record of each stream, [streams]."""
        return [self.records[i] for i in self.row]

    def places(self, rows: Sequence[int], companion: int) -> list[int]:
        """Which streams are those of the `companion` beside these rows, by index."""
        return [self._where[i, companion] for i in rows]

    def beside(self, companions: Sequence[int]) -> dict[int, list[int]]:
        """Which streams are the rows' own (0), and which those of each of the `companions` beside them, each [rows];
        empty where there are no companions (`InForce.beside`)."""
        rows = range(len(self.records))
        return {n: self.places(rows, n) for n in (0, *companions)} if companions else {}

    def some(self, streams: Sequence[int]) -> Streams:
        """Some of the streams, each as that of a row of its own."""
        rows = range(len(streams))
        return Streams([self.of_record[k] for k in streams], list(rows), [self.companion[k] for k in streams])

    def kept(self, rows: Sequence[int]) -> tuple[Streams, list[int]]:
        """Those of some of the rows, which become rows 0, 1, ... in the order given, and which streams they are now."""
        new = {old: i for i, old in enumerate(rows)}
        stay = [k for k, i in enumerate(self.row) if i in new]
        streams = Streams(
            [self.records[i] for i in rows], [new[self.row[k]] for k in stay], [self.companion[k] for k in stay]
        )
        return streams, stay

    def repeated(self, times: int) -> Streams:
        """Each row `times` over, as many places in its text."""

        def over(values: list[int]) -> list[int]:
            return [value for value in values for _ in range(times)]

        records = [record for record in self.records for _ in range(times)]
        row = [i * times + place for i in self.row for place in range(times)]
        return Streams(records, row, over(self.companion))
