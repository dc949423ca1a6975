"""Hooks: functions on a module's input or output, which is what activation steering is made of.

A hook, or an operation on the logits, may carry other interventions (an expert, a prompt that invites toxicity, ...)
and look at the same model under each. They are computed as more rows of the same batch, each with its own cache, and
never as second models: the weights are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from detoxbench.errors import DetoxbenchError, UsageError, did_you_mean
from detoxbench.interventions.channels.base import Channel, Params, below
from detoxbench.interventions.channels.prompts import Prompt
from detoxbench.interventions.channels.weights import Weight, edits, require_eager
from detoxbench.interventions.operations import bound, found, on_device
from detoxbench.interventions.per_row import per_row_weights
from detoxbench.model.devices import computes_on
from detoxbench.model.in_force import Companion

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from detoxbench.model.model import Model

Positions = Literal["all", "generated", "predicting"]


@dataclass(frozen=True)
class Hook(Channel):
    """A function on a module's input ("pre") or output ("post"): `op(x, tensors, params) -> x`, x of any batch shape.

    Where the module takes or gives a tuple, x is its first element. `positions` generated leaves the prompt's positions
    as they are while texts are generated or read; predicting changes the last one of the prompt, too, which predicts
    the first token of the text. Where there is no prompt, all positions count as new.

    `under` are the interventions that it carries, by the names it asks for. It is then `op(x, state) -> x`, see
    `HookState`, with x [rows, positions, width], and acts on the rows' own sequences alone: sequences under what is
    carried, by it or by others, are without it. Prompts differ in length, so it cannot act at all positions.
    """

    module: str
    when: Literal["pre", "post"]
    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    params: Params = field(default_factory=dict)
    positions: Positions = "all"
    under: Mapping[str, Carried] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.when not in ("pre", "post"):
            raise UsageError(f"the hook on '{self.module}' has when={self.when!r}: choose pre or post")
        if self.positions not in get_args(Positions):
            raise UsageError(
                f"the hook on '{self.module}' has positions={self.positions!r}: choose {', '.join(get_args(Positions))}"
            )
        if self.under and self.positions == "all":
            raise UsageError(
                f"the hook on '{self.module}' compares sequences with different prompts, whose positions do not "
                "correspond: choose positions=predicting"
            )

    @property
    def place(self) -> str:
        return self.module

    def named_tensors(self) -> Mapping[str, Tensor]:
        return with_carried(self.tensors, self.under)

    def as_json(self) -> dict[str, Any]:
        document = {
            "module": self.module,
            "when": self.when,
            "op": self.op,
            "params": dict(self.params),
            "positions": self.positions,
        }
        under = {name: carried.as_json() for name, carried in self.under.items()}
        return document | ({"under": under} if under else {})  # left out, as before there was any

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Hook:
        d = document
        own, under = without_carried(d, tensors)
        return cls(d["module"], d["when"], d["op"], own, d["params"], d.get("positions", "all"), under)

    def settings(self) -> Params:
        return {self.op: self.params, **carried_settings(self.under)}

    @classmethod
    def put_on(cls, lm: Model, parts: Sequence[Hook], undo: ExitStack) -> None:
        beside: list[tuple[Carried, int]] = []
        for hook in parts:
            numbers = {name: _number(lm, carried, beside, undo) for name, carried in hook.under.items()}
            undo.callback(register(lm, hook, companions=numbers).remove)


def _number(lm: Model, carried: Carried, beside: list[tuple[Carried, int]], undo: ExitStack) -> int:
    """The number of the companion that it is. Hooks on many modules that carry the same one share its rows: those that
    are `beside` already."""
    for other, number in beside:
        if carried.equals(other):
            return number
    number = carried.put_beside(lm, undo)
    beside.append((carried, number))
    lm.in_force.compared.append(number)
    undo.callback(lm.in_force.compared.pop)
    return number


@dataclass(frozen=True)
class HookState:
    """What a hook that carries interventions may look at: `op(x, state) -> x`, with x [rows, positions, width].

    What it gives for a row and a position must depend on those alone.
    """

    tensors: Mapping[str, Tensor]
    """The hook's own, on the device of the model."""
    params: Params
    carried: Mapping[str, Tensor]

    def beside(self, name: str) -> Tensor:
        """What stands in x's place in the same rows under the carried intervention `name`, at the same positions
        counted from the end of the prompt, [rows, positions, width].

        Raises DetoxbenchError for a name that the hook does not carry.
        """
        if name not in self.carried:
            known = ", ".join(self.carried)
            raise DetoxbenchError(f"a hook asks for '{name}'{did_you_mean(name, self.carried)}; it carries: {known}")
        return self.carried[name]


def register(
    lm: Model,
    hook: Hook,
    rows: Callable[[], Tensor | None] | None = None,
    companions: Mapping[str, int] | None = None,
) -> RemovableHandle:
    """Have the hook act on `lm`: on all rows, or on those whose indices `rows()` gives, [rows under it]; None: none.
    `companions` are the numbers of the interventions that it carries; then it acts on the rows' own sequences."""
    module = lm.architecture.module(hook.module)
    device = computes_on(module, lm.device)
    change = _comparing(lm, hook, device, companions) if companions else _steering(lm, hook, device)

    def on_first(value: Any) -> Any:
        return (chosen(value[0]), *value[1:]) if isinstance(value, tuple) else chosen(value)

    def chosen(x: Tensor) -> Tensor:
        x = x.to(device)  # where a model is spread, what comes in may be on the device before
        if rows is None:
            return change(x, lm.in_force.prompt_positions[0])
        indices = rows()
        if indices is None:
            return x
        indices = indices.to(device)
        batch = x.reshape(lm.in_force.prompt_positions[0], -1, x.shape[-1])  # as below
        part = change(batch.index_select(0, indices), len(indices))
        return batch.index_copy(0, indices, part).reshape(x.shape)

    if hook.when == "pre":
        return module.register_forward_pre_hook(lambda _, args: on_first(args))
    return module.register_forward_hook(lambda _, __, output: on_first(output))


def _left_alone(lm: Model, hook: Hook, positions: int) -> int:
    """How many leading positions of a forward pass of so many the hook leaves as they are."""
    prompt = lm.in_force.prompt_positions[1]
    return min({"all": 0, "generated": prompt, "predicting": max(prompt - 1, 0)}[hook.positions], positions)


def _steering(lm: Model, hook: Hook, device: torch.device) -> Callable[[Tensor, int], Tensor]:
    """change(x, rows): the hook's function at the positions where it acts."""
    import torch

    function = bound(hook.op, hook.tensors, hook.params, device)

    def change(x: Tensor, rows: int) -> Tensor:
        if hook.positions == "all" or not lm.in_force.prompt_positions[1]:
            return function(x)
        tokens = x.reshape(rows, -1, x.shape[-1])  # some modules (OPT's MLP) are given all rows as one
        left = _left_alone(lm, hook, tokens.shape[1])
        if left == tokens.shape[1]:
            return x
        return torch.cat([tokens[:, :left], function(tokens[:, left:])], 1).reshape(x.shape)

    return change


def _comparing(
    lm: Model, hook: Hook, device: torch.device, companions: Mapping[str, int]
) -> Callable[[Tensor, int], Tensor]:
    """change(x, rows): the hook's function of the rows' own sequences and of those of its `companions` beside them."""
    function, tensors, on = found(hook.op), on_device(hook.tensors, device), lm.in_force

    def change(x: Tensor, rows: int) -> Tensor:
        # 1. The positions where it acts, [streams, positions, width]: they end alike in all streams.
        streams = x.reshape(rows, -1, x.shape[-1])
        left = _left_alone(lm, hook, streams.shape[1])
        if left == streams.shape[1]:
            return x
        if not on.beside:
            raise DetoxbenchError(
                f"'{hook.op}' on '{hook.module}' compares rows with rows beside them, which only generation and the "
                "reading of likelihoods have: look at other measures, and in a composition put its method last"
            )
        new = streams[:, left:]
        # 2. What becomes of the rows' own, [rows, positions, width].
        own = on.beside[0].to(device)
        carried = {name: new[on.beside[n].to(device)] for name, n in companions.items()}
        changed = function(new[own], HookState(tensors, hook.params, carried))
        # 3. All streams again.
        result = streams.clone()
        result[own, left:] = changed.to(x.dtype)
        return result.reshape(x.shape)

    return change


# ------------------------------------------------------------------------------------------- what is carried


@dataclass(frozen=True)
class Carried:
    """An intervention that a hook or an operation on the logits carries. It acts on rows of its own, on top of all else
    that is in force (but for hooks that compare); its low-rank changes are side paths, whatever the model's type."""

    weights: tuple[Weight, ...] = ()
    hooks: tuple[Hook, ...] = ()
    prompts: tuple[Prompt, ...] = ()

    def __post_init__(self) -> None:
        if carrying := next((hook for hook in self.hooks if hook.under), None):
            raise UsageError(
                f"the hook on '{carrying.module}' carries interventions, and cannot be carried itself: what is carried "
                "has no rows beside its own"
            )

    @classmethod
    def channels(cls) -> dict[str, type[Channel]]:
        """Field name -> channel."""
        return {"weights": Weight, "hooks": Hook, "prompts": Prompt}

    def parts(self) -> Iterator[tuple[str, Channel]]:
        """(name in the saved tensors, part) of every part."""
        for name in self.channels():
            yield from ((f"{name}.{i}", part) for i, part in enumerate(getattr(self, name)))

    def named_tensors(self) -> dict[str, Tensor]:
        """All tensors by part and name."""
        return {f"{place}.{name}": t for place, part in self.parts() for name, t in part.named_tensors().items()}

    def as_json(self) -> dict[str, Any]:
        """All that is no tensor."""
        return {f.name: [part.as_json() for part in getattr(self, f.name)] for f in fields(self)}

    @classmethod
    def of(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Carried:
        """The same again, from `as_json` and `named_tensors`."""
        parts: dict[str, Any] = {
            name: tuple(kind.of(d, below(tensors, f"{name}.{i}")) for i, d in enumerate(document[name]))
            for name, kind in cls.channels().items()
        }
        return cls(**parts)

    def equals(self, other: Carried) -> bool:
        """Whether both do the same."""
        one, two = self.named_tensors(), other.named_tensors()
        same = self is other or (self.as_json() == other.as_json() and one.keys() == two.keys())
        return same and all(t is two[name] or t.equal(two[name]) for name, t in one.items())

    def put_beside(self, lm: Model, undo: ExitStack) -> int:
        """Have it act on the rows that are announced as under it, until `undo` is closed: its number among the
        companions in force. Raises as `applied`."""
        under: list[Tensor | None] = [None]  # the indices of the rows under it; None: there are none
        set_variants = None
        if self.weights or self.hooks:
            require_eager(lm)
        if self.weights:
            changes = list(edits(lm, self.weights, "side_path"))
            values = {e.parameter: e.value for e in changes if e.value is not None}
            beside = {e.parameter: e.side_path for e in changes if e.side_path is not None}
            if values and lm.in_force.route is not None:
                raise DetoxbenchError(
                    f"'{min(values)}' is changed by an intervention that an operation on the logits carries, and that "
                    "is no low-rank change of a linear map: it cannot stand on top of changes that differ by record"
                )
            set_variants = undo.enter_context(per_row_weights(lm, [values], [beside], must_announce=False))
        for hook in self.hooks:
            undo.callback(register(lm, hook, lambda: under[0]).remove)

        def set_rows(is_under: Sequence[bool]) -> None:
            import torch

            if set_variants is not None:
                set_variants([0 if yes else -1 for yes in is_under])
            indices = [i for i, yes in enumerate(is_under) if yes]
            under[0] = torch.tensor(indices, device=lm.device) if self.hooks and indices else None

        companions = lm.in_force.companions
        companions.append(Companion(self.prompts, set_rows if self.weights or self.hooks else None))
        undo.callback(companions.pop)
        return len(companions)


def with_carried(own: Mapping[str, Tensor], under: Mapping[str, Carried]) -> dict[str, Tensor]:
    """A part's own tensors and those of what it carries, by the names that they are saved under."""
    carried = {f"under.{name}.{k}": t for name, c in under.items() for k, t in c.named_tensors().items()}
    return {**own, **carried}


def without_carried(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Carried]]:
    """Of what `with_carried` gave the part's own tensors, and what it carries as its `document` says."""
    under = {name: Carried.of(d, below(tensors, f"under.{name}")) for name, d in document.get("under", {}).items()}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("under.")}, under


def carried_settings(under: Mapping[str, Carried]) -> dict[str, Any]:
    """Numbers that are not in the tensors of what is carried."""
    return {f"{name}: {part.place}": part.settings() for name, c in under.items() for _, part in c.parts()}
