"""What a channel is: one way in which an intervention acts on a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from detoxbench.model.model import Model

Params = Mapping[str, Any]


def below(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The tensors that are saved under `place`, by what is left of their names."""
    return {k.removeprefix(f"{place}."): v for k, v in tensors.items() if k.startswith(f"{place}.")}


class Channel(ABC):
    """A part of an intervention: tensors and names, never code.

    To add a channel, subclass this as a frozen dataclass and give `Intervention` a field of it: saving, digests, checks
    for NaN, costs, composing and putting on read the table of fields.
    """

    adds: ClassVar[bool] = True
    """Its tensors are numbers that come on top of the model's own (a cost)."""
    compilable: ClassVar[bool] = False
    """It works on a compiled model too, since it acts outside of the model's modules."""
    by_row: ClassVar[bool] = False
    """It can differ from row to row of one batch (`routing`)."""
    described: ClassVar[bool] = True
    """It has more to save than its tensors. Of a channel that has not, a file holds only the number of its parts."""

    optional: ClassVar[bool] = False
    """A file and a digest name it only where it has parts. So do channels that were added when there were digests."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What it acts on, as errors name it."""

    @abstractmethod
    def named_tensors(self) -> Mapping[str, Tensor]:
        """Its tensors by name."""

    def as_json(self) -> dict[str, Any]:
        """All of it that is no tensor."""
        return {}

    @classmethod
    @abstractmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The part again, made from its `as_json` and `named_tensors`."""

    @classmethod
    @abstractmethod
    def put_on(cls, lm: Model, parts: Sequence[Self], undo: ExitStack) -> None:
        """Have all parts of this channel act on `lm` until `undo` is closed, which leaves it as found, bit for bit.

        Raises DetoxbenchError where a part names something that is not there, or would not take effect.
        """

    def settings(self) -> Params:
        """Numbers that are not in its tensors, and must be finite too."""
        return {}
