"""What an operation on next-token logits may look at, and how it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detoxbench.errors import DetoxbenchError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN, LOGLIKELIHOOD, AFTER = "hidden", "loglikelihood", "after"
ASKED = (HIDDEN, LOGLIKELIHOOD, AFTER)
"""What an operation has to ask for before, because it is costly or has to be gathered on the way."""


@dataclass(frozen=True)
class Under:
    """What is known of the rows under one of the interventions that an operation carries."""

    logits: Tensor
    """[rows, vocabulary], float32."""
    loglikelihood: Tensor | None
    """[rows], float32; None where it was not asked for."""


@dataclass(frozen=True)
class LogitState:
    """The rows whose logits, [rows, vocabulary], an operation is given: `op(logits, state) -> logits`.

    A row is a place in one text: the next token of a text that is generated, or any token of one that is read. What an
    operation gives for a row must depend on that row alone.
    """

    tensors: Mapping[str, Tensor]
    """The operation's own, on the device of the logits."""
    params: Mapping[str, Any]
    length: Tensor
    """Tokens of the text so far, behind its prompt, [rows], on the device of the logits."""
    keys: Sequence[int] | None
    """The noise key of every row's sample; None where texts are read."""
    tokens: Callable[[], list[list[int]]]
    """Makes the token ids of every row: its prompt as the model got it, then the text so far."""
    hidden: Tensor | None
    """The last hidden state, as the head gets it, [rows, width]; for operations that ask for "hidden"."""
    loglikelihood_of_row: Tensor | None
    """log p of the text so far, in nats, [rows], without this operation; for those that ask for "loglikelihood"."""
    top_p: Callable[[Tensor, float], Tensor]
    """`top_p(logits, p)`: which tokens top-p leaves of logits [rows, vocabulary], [rows, vocabulary] of bool. Where
    that hangs on rounding, the operation is asked twice, for the most and for the fewest tokens that may be left; if
    another token is chosen then, the row is computed again alone."""
    near: float = 0.0
    """Logits closer than this may change their order by rounding."""
    carried: Mapping[str, Under] = field(default_factory=dict)
    states_after: Callable[[Tensor], Tensor] | None = None
    """`after`, for operations that ask for "after"."""
    contested: list[Tensor] = field(default_factory=list)
    """What `contest` was told, each [rows]."""

    def under(self, name: str) -> Tensor:
        """The next-token logits, [rows, vocabulary], of the same model under the carried intervention `name`.

        Raises DetoxbenchError for a name that the operation does not carry.
        """
        return self._carried(name).logits

    def loglikelihood(self, name: str) -> Tensor:
        """log p of the text so far, in nats, under the carried intervention `name`, [rows].

        Raises DetoxbenchError as `under`, and where the operation has not asked for "loglikelihood".
        """
        found = self._carried(name).loglikelihood
        if found is None:
            raise DetoxbenchError("this operation on the logits looks at likelihoods: say LogitOp(asks=...)")
        return found

    def after(self, ids: Tensor) -> Tensor:
        """The last hidden state, as the head gets it, after each of the candidates `ids` for the next token: from
        [rows, candidates] to [rows, candidates, width], float32. A candidate of -1 is none: it is not read, and its
        state is zero, so that rows may have different numbers of them.

        Each is one more token of its row, read on a copy of the row's cache: what it costs is counted in
        `forward_passes_per_token`. Raises DetoxbenchError where the operation has not asked for "after".
        """
        if self.states_after is None:
            raise DetoxbenchError(
                "this operation on the logits looks behind candidates: say LogitOp(asks=...), and generate texts; "
                "those that are given are not read that way"
            )
        return self.states_after(ids)

    def contest(self, rows: Tensor) -> None:
        """Say in which rows, [rows] of bool, a choice of the operation could fall otherwise if logits that are `near`
        changed places. Such rows are computed again alone, so that no sample depends on its neighbours."""
        self.contested.append(rows)

    def _carried(self, name: str) -> Under:
        if name not in self.carried:
            known = ", ".join(self.carried) or "none"
            raise DetoxbenchError(
                f"an operation on the logits asks for '{name}'{did_you_mean(name, self.carried)}; it carries: {known}"
            )
        return self.carried[name]


@dataclass(frozen=True)
class LogitFunction:
    """An operation in force."""

    function: Callable[[Tensor, LogitState], Tensor]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    companions: Mapping[str, int] = field(default_factory=dict)
    """Name of a carried intervention -> its number among all that are in force (`InForce.companions`), from 1."""
    asks: frozenset[str] = frozenset()
    sensitivity: float = 1.0
    """How many times an error of the logits may grow in what the function gives."""
    variant: int | None = None
    """Only for rows of this variant (`Model.variant`); None for all."""
