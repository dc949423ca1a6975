"""The shared training loop (transformers' Trainer, and PEFT for LoRAs), which leaves the model unchanged.

train_lora(lm, examples, ...)                 a LoRA on responses, with the model's own loss
optimise_lora(lm, rows, collate=, loss=, ...)  a LoRA on anything, with any loss: what train_lora is made of
train, optimise                               the same by a `TrainingConfig`, which may train parameters in full, too
optimise_tensors(lm, tensors, rows, ...)       tensors of one's own beside a frozen model
`token_losses` has what losses on whole texts are made of, `responses` what losses on responses are made of,
`quantization` how frozen layers are held in few bits, `parameters` how parameters are trained in full.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from detoxbench.config import Quantization, knob
from detoxbench.data.examples import Instruction
from detoxbench.errors import DetoxbenchError, NonFiniteError
from detoxbench.fitting.parameters import names_of, trainable
from detoxbench.fitting.quantization import quantized
from detoxbench.fitting.random_state import unchanged_random_state
from detoxbench.fitting.recomputation import recomputation, recomputed
from detoxbench.fitting.responses import Response, encode
from detoxbench.fitting.responses import collate as collate_responses
from detoxbench.fitting.shelf import Learned, once
from detoxbench.fitting.token_losses import Batch
from detoxbench.interventions.channels import Dense, LowRank, Weight
from detoxbench.interventions.channels.weights import require_eager, require_in_memory
from detoxbench.lm import LanguageModel
from detoxbench.model.architecture import without_numbers
from detoxbench.model.finite import require_finite
from detoxbench.progress import Advance, bar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

R = TypeVar("R")
Loss = Callable[[Any, Batch], "tuple[Tensor, Mapping[str, float]]"]
"""loss(model, batch) -> (its mean over the micro-batch, named measurements to record); model is the PEFT model."""


D = TypeVar("D", Dense, LowRank)

log = logging.getLogger("detoxbench")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Knobs of a LoRA fine-tuning; a method's Config inherits them. Defaults: Ext-Sub's recipe (train_peft.py)."""

    rank: int = knob(16, "rank of the LoRA matrices", source="train_peft.py:198", ge=1)
    lora_alpha: float = knob(32.0, "LoRA scaling is lora_alpha / rank", source="train_peft.py:198", gt=0)
    lora_dropout: float = knob(0.05, "dropout on the LoRA input", source="train_peft.py:198", ge=0, lt=1)
    target_modules: tuple[str, ...] | None = knob(
        None,
        "module names that get a LoRA, where all-linear is every linear layer but the language-model head, and lm_head "
        "is that head; null is PEFT's default for the architecture",
        source="train_peft.py:198-206",
    )
    learning_rate: float = knob(2e-5, "peak learning rate of AdamW", source="train_peft.sh", gt=0)
    epochs: int = knob(2, "passes over the data", source="train_peft.sh", ge=1)
    batch_size: int = knob(128, "examples an update", source="train_peft.sh: 4 x 16 x 2 GPUs", ge=1)
    micro_batch_size: int = knob(4, "examples a forward pass", source="train_peft.sh", ge=1)
    warmup_ratio: float = knob(0.03, "share of the updates with a rising rate", source="train_peft.sh", ge=0, le=1)
    weight_decay: float = knob(0.0, "weight decay of AdamW", source="train_peft.sh", ge=0)
    max_length: int = knob(1024, "tokens of an example at the most", source="train_peft.sh", ge=2)
    gradient_checkpointing: bool = recomputation()

    def __post_init__(self) -> None:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of micro_batch_size={self.micro_batch_size}: change one"
            )


LORA = ("lora",)
_RECORDED = ("losses", "gradient_norms", "measures", "cut_texts")
TRAINING_VERSION = 1
"""Raise it when the same training starts to give another LoRA: those that are kept are trained anew."""
Optimizer = Literal["adamw", "rmsprop"]
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LoraConfig):
    """Knobs of a training of a LoRA or of parameters in full; a method's Config inherits them."""

    parameters: tuple[str, ...] = knob(
        LORA,
        "what is trained: [lora], [all] parameters in full, or those whose dotted name holds one of these parts, such "
        "as [mlp.down_proj]; the knobs of LoRAs then mean nothing",
        source="ours: the published methods differ",
    )
    optimizer: Optimizer = knob("adamw", "AdamW or RMSprop", source="train_peft.sh: AdamW")
    schedule: Schedule = knob(
        "linear", "the rate behind the warm-up: falling to 0 in a line or a cosine, or constant", source="train_peft.sh"
    )
    end_token: bool = knob(True, "the token that ends a response is learnt with it", source="train_peft.py")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parameters or ("lora" in self.parameters and self.parameters != LORA):
            raise ValueError("parameters is [lora] or a list of parts of parameter names, without lora")


@dataclass(frozen=True)
class Recipe:
    """How a step is made of a gradient."""

    optimizer: Optimizer = "adamw"
    schedule: Schedule = "linear"


@dataclass(frozen=True)
class Adapter(Generic[D]):
    """A trained LoRA or other change: parameter -> delta with the scaling folded in; and a number for every update: its
    loss, the norm of its gradient (before clipping to 1), and the means of what the loss function measured."""

    deltas: Mapping[str, D]
    losses: Sequence[float]
    gradient_norms: Sequence[float] = ()
    measures: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cut_texts: int = 0
    """Texts that lost their end to `max_length` or to the model's context; one that lost all of its response is left
    out."""

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The deltas as parts of an intervention."""
        return tuple(Weight(parameter, delta) for parameter, delta in self.deltas.items())

    @property
    def record(self) -> dict[str, Any]:
        """What was seen while training, for the `info` of an intervention."""
        return {
            "losses": list(self.losses),
            "gradient_norms": list(self.gradient_norms),
            **{name: list(values) for name, values in self.measures.items()},
            "cut_texts": self.cut_texts,
        }


def train_lora(
    lm: LanguageModel, examples: Sequence[Instruction], config: LoraConfig, *, seed: int, description: str
) -> Adapter[LowRank]:
    """Fine-tune a LoRA on the responses (prompts carry no loss; the end token does): `optimise_lora` with the model's
    own loss, which is a mean over the tokens of an update. What was trained alike before is taken from the shelf, if
    there is one (`shelf.once`)."""
    usable, collate, cut = _responses(lm, examples, config.max_length)

    def trained() -> Adapter[LowRank]:
        adapter = optimise_lora(lm, lambda epoch: usable, config, collate=collate, seed=seed, description=description)
        return replace(adapter, cut_texts=cut)

    return _once(lm, usable, cut, config, Recipe(), seed, trained)


def train(
    lm: LanguageModel, examples: Sequence[Instruction], config: TrainingConfig, *, seed: int, description: str
) -> Adapter[Any]:
    """As `train_lora`, of what `config.parameters` says."""
    usable, collate, cut = _responses(lm, examples, config.max_length, end=config.end_token)

    def trained() -> Adapter[Any]:
        adapter = optimise(lm, lambda epoch: usable, config, collate=collate, seed=seed, description=description)
        return replace(adapter, cut_texts=cut)

    if config.parameters != LORA:
        return trained()
    return _once(lm, usable, cut, config, Recipe(config.optimizer, config.schedule), seed, trained)


def _once(
    lm: LanguageModel,
    examples: Sequence[Response],
    cut: int,
    config: LoraConfig,
    recipe: Recipe,
    seed: int,
    train: Callable[[], Adapter[LowRank]],
) -> Adapter[LowRank]:
    """From the shelf by all that the training reads: the tokens, the knobs of a LoRA and the seed."""
    knobs = {f.name: getattr(config, f.name) for f in fields(LoraConfig) if f.metadata["identity"]}
    reads = [TRAINING_VERSION, examples, cut, knobs, asdict(recipe), seed]
    return _adapter_of(once(lm, lambda: reads, lambda: _learned(train())))


def _learned(adapter: Adapter[LowRank]) -> Learned:
    """A LoRA as it is kept. The parameters stand in its info in their order, which tensors on disk do not keep."""
    tensors = {f"{name}.{key}": t for name, delta in adapter.deltas.items() for key, t in delta.tensors().items()}
    return Learned(tensors, {"parameters": list(adapter.deltas), **{f: getattr(adapter, f) for f in _RECORDED}})


def _adapter_of(learned: Learned) -> Adapter[LowRank]:
    tensors, info = learned
    deltas = {name: LowRank(tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in info["parameters"]}
    return Adapter(deltas, **{f: info[f] for f in _RECORDED})


def _responses(
    lm: LanguageModel, examples: Sequence[Instruction], max_length: int, *, end: bool = True
) -> tuple[list[Response], Callable[[Sequence[Response]], Batch], int]:
    """The responses that have a token left, what makes a batch of some, and how many were cut."""
    encoded = [encode(lm, example, max_length, end=end) for example in examples]
    pad = lm.tokenizer.pad_token_id or 0
    return [r for r in encoded if not r.empty], lambda batch: collate_responses(batch, pad), sum(r.cut for r in encoded)


def optimise(
    lm: LanguageModel,
    rows: Callable[[int], Sequence[R]],
    config: TrainingConfig,
    *,
    collate: Callable[[Sequence[R]], Batch],
    loss: Loss | None = None,
    seed: int,
    description: str,
) -> Adapter[Any]:
    """As `optimise_lora`, of what `config.parameters` says, by the config's optimizer and schedule."""
    recipe = Recipe(config.optimizer, config.schedule)
    if config.parameters == LORA:
        return optimise_lora(
            lm, rows, config, collate=collate, loss=loss, recipe=recipe, seed=seed, description=description
        )
    return _optimise_parameters(lm, rows, config, collate, loss, recipe, seed, description)


def _optimise_parameters(
    lm: LanguageModel,
    rows: Callable[[int], Sequence[R]],
    config: TrainingConfig,
    collate: Callable[[Sequence[R]], Batch],
    loss: Loss | None,
    recipe: Recipe,
    seed: int,
    description: str,
) -> Adapter[Dense]:
    import torch

    _require_updates(rows, config, description)
    require_eager(lm)
    names = names_of(lm, config.parameters)
    with unchanged_random_state(lm.model), warnings.catch_warnings(), _restored(lm), trainable(lm, names) as trained:
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        watch = _optimise(lm, lm.model, rows, config, recipe, collate, loss, seed, description)
        deltas = {name: Dense(delta.detach().clone()) for name, delta in trained.items()}
    return _adapter(deltas, watch, description)


def optimise_tensors(
    lm: LanguageModel,
    tensors: Mapping[str, Tensor],
    rows: Callable[[int], Sequence[R]],
    config: TrainingConfig,
    *,
    collate: Callable[[Sequence[R]], Batch],
    loss: Loss,
    seed: int,
    description: str,
) -> Adapter[Dense]:
    """Train tensors beside the model, which is frozen: copies of `tensors` in float32, by the config's optimizer and
    schedule. `loss(trained, batch)` gets them by name and puts them to use. What is given back has them, as they ended,
    for its deltas. Otherwise as `optimise_lora`.
    """
    import torch

    _require_updates(rows, config, description)
    require_eager(lm)
    with unchanged_random_state(lm.model), _restored(lm):
        lm.model.requires_grad_(False)
        torch.manual_seed(seed)
        started = {name: torch.nn.Parameter(t.detach().float().clone()) for name, t in tensors.items()}
        trained = torch.nn.ParameterDict(started).to(lm.device)
        recipe = Recipe(config.optimizer, config.schedule)
        watch = _optimise(lm, trained, rows, config, recipe, collate, loss, seed, description)
        ended = {name: Dense(tensor.detach().clone()) for name, tensor in trained.items()}
    return _adapter(ended, watch, description)


def _adapter(deltas: Mapping[str, D], watch: _Watch, description: str) -> Adapter[D]:
    """What was trained, on the CPU as what is read from files. Raises NonFiniteError where it is not finite."""
    deltas = {name: delta.cpu() for name, delta in deltas.items()}
    trained = ((f"{name}: {k}", t) for name, delta in deltas.items() for k, t in delta.tensors().items())
    require_finite(trained, f"the training of '{description}' diverged", "lower method.learning_rate")
    return Adapter(deltas, watch.losses, watch.gradient_norms, watch.measures)


def optimise_lora(
    lm: LanguageModel,
    rows: Callable[[int], Sequence[R]],
    config: LoraConfig,
    *,
    collate: Callable[[Sequence[R]], Batch],
    loss: Loss | None = None,
    quantization: Quantization = "none",
    recipe: Recipe = Recipe(),
    seed: int,
    description: str,
) -> Adapter[LowRank]:
    """Fine-tune a LoRA by AdamW with linear decay of the rate (or as the `recipe` says), gradients clipped to norm 1.

    `rows(epoch)` are what an epoch shuffles and cuts into micro-batches, equally many in every epoch; `collate` makes a
    micro-batch into tensors. Without a `loss` it is the model's own. An update is the mean over its micro-batches.
    With a `quantization` the linear layers are held in so few bits while training (see `require_quantization`).

    Leaves weights, modules, gradient flags and the global random state of the process as they were. Raises
    DetoxbenchError when there is nothing to train on or nothing would be learnt, when the target modules are not there
    or cannot take a LoRA, and when the training diverges.
    """
    import torch

    _require_updates(rows, config, description)
    require_eager(lm)
    require_in_memory(lm)
    targets = _targets(lm, config.target_modules)
    _warn_of_untouched_layers(lm, config.target_modules or (), targets or ())
    linear = frozenset(lm.architecture.linear_maps())
    with unchanged_random_state(lm.model), warnings.catch_warnings(), _restored(lm), quantized(lm, quantization):
        # Both warnings concern the libraries alone: a name that transformers will change, a flag that PEFT sets itself.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        torch.manual_seed(seed)
        peft_model = _with_lora(lm, config, targets, linear)
        watch = _optimise(lm, peft_model, rows, config, recipe, collate, loss, seed, description)
        deltas = _extract(peft_model, config.lora_alpha / config.rank)
    return _adapter(deltas, watch, description)


def _require_updates(rows: Callable[[int], Sequence[R]], config: LoraConfig, description: str) -> None:
    """Raises DetoxbenchError when there is nothing to train on, or nothing would be learnt."""
    if not rows(0):
        raise DetoxbenchError(f"nothing to train on for '{description}': the data are empty")
    if (updates := _updates(len(rows(0)), config)) == _warmup(updates, config) == 1:
        raise DetoxbenchError(
            f"the training of '{description}' is one update ({len(rows(0))} examples), which the warm-up gives the "
            "rate 0: it would change nothing; set method.warmup_ratio=0, lower method.batch_size or raise method.epochs"
        )


def _with_lora(lm: LanguageModel, config: LoraConfig, targets: list[str] | None, linear: frozenset[str]) -> Any:
    """The PEFT model, with a LoRA in float32 on layers that are all `linear`. Where it fails, modules stay wrapped."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    lora = PeftConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(lm.model, lora)
    except Exception as error:  # whatever PEFT or a module of the model raises
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DetoxbenchError(f"cannot put a LoRA on '{lm.name}': {reason}; set method.target_modules") from error
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and name not in linear:
            raise DetoxbenchError(
                f"PEFT puts a LoRA on '{name}' of '{lm.name}', which is no linear layer: set method.target_modules"
            )
    return model


@contextmanager
def _restored(lm: LanguageModel) -> Iterator[None]:
    """Put back modules (PEFT wraps some, and may fail half-way), gradient flags, attributes and the evaluation mode,
    and drop the gradients."""
    children = [(module, dict(module._modules)) for module in lm.model.modules()]
    flags = [(p, p.requires_grad) for p in lm.model.parameters()]
    attributes = set(vars(lm.model))
    try:
        yield
    finally:
        for name in set(vars(lm.model)) - attributes:
            delattr(lm.model, name)
        for module, before in children:
            module._modules.clear()
            module._modules.update(before)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        lm.model.eval()


def _targets(lm: LanguageModel, wanted: tuple[str, ...] | None) -> list[str] | None:
    """The names for PEFT. Raises DetoxbenchError for a module that holds no linear map, or one tied to another."""
    from torch import nn

    if wanted is None:
        return None
    modules = dict(lm.model.named_modules())
    linear = {n for n, m in modules.items() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"}
    head = {n for n, m in modules.items() if m is lm.model.get_output_embeddings()}
    names: set[str] = set()
    for entry in wanted:
        meant = {"all-linear": linear - head, "lm_head": head}.get(entry)
        matches = meant or {n for n in modules if n == entry or n.endswith(f".{entry}")}
        if not matches:
            raise DetoxbenchError(f"{type(lm.model).__name__} has no module '{entry}': set method.target_modules")
        names |= matches
    sharers: dict[int, list[str]] = {}
    for name, parameter in lm.model.named_parameters(remove_duplicate=False):
        sharers.setdefault(parameter.data_ptr(), []).append(name)
    for name in sorted(names):
        if name not in linear:
            raise DetoxbenchError(f"'{name}' is no linear layer: a LoRA is put on linear layers only")
        for other in sharers[lm.model.get_parameter(f"{name}.weight").data_ptr()]:
            if other != f"{name}.weight":
                raise DetoxbenchError(
                    f"'{name}.weight' is tied to '{other}', and a LoRA would change both: leave '{name}' out of "
                    "method.target_modules"
                )
    return sorted(names)


def _updates(examples: int, config: LoraConfig) -> int:
    return -(-examples // config.batch_size) * config.epochs


def _warmup(updates: int, config: LoraConfig) -> int:
    """Updates with a rising rate, the first of which has the rate 0."""
    return math.ceil(updates * config.warmup_ratio)


def _warn_of_untouched_layers(lm: LanguageModel, wanted: Sequence[str], targets: Sequence[str]) -> None:
    """Warn of what a LoRA on these targets leaves as it is: layers that are not called when text is read (of an image
    tower) and, where all-linear is `wanted`, matrices that are no linear layers (experts in one tensor)."""
    idle = [name for name in targets if not lm.architecture.called_for_text(name)]
    if idle:
        log.warning(
            "%d of the %d linear layers that get a LoRA are not called when '%s' reads text and learn nothing: %s",
            len(idle), len(targets), lm.name, ", ".join(dict.fromkeys(map(without_numbers, idle))),
        )  # fmt: skip
    unreached = lm.architecture.matrices_outside_linear_maps() if "all-linear" in wanted else {}
    if unreached:
        reached = sum(lm.model.get_parameter(f"{name}.weight").numel() for name in targets if name not in idle)
        log.warning(
            "a LoRA on all-linear reaches %d linear layers of '%s', %.0f %% of the weights outside embeddings and "
            "head; it leaves as they are: %s",
            len(targets) - len(idle), lm.name, 100 * reached / (reached + sum(unreached.values())),
            ", ".join(unreached),
        )  # fmt: skip


class _Watch:
    """What is recorded of a training, a number for every update."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.measures: dict[str, list[float]] = {}
        self.pending: list[Mapping[str, float]] = []  # of the micro-batches since the last update

    def update(self, logs: Mapping[str, Any], description: str) -> None:
        """Record an update. Raises NonFiniteError, before another one is made of it, for a loss or a gradient that is
        NaN or infinite."""
        step = len(self.losses) + 1
        for what, name in (("loss", "loss"), ("norm of the gradient", "grad_norm")):
            if not math.isfinite(value := float(logs[name])):
                raise NonFiniteError(
                    f"the training of '{description}' diverged: lower method.learning_rate (the {what} of update "
                    f"{step} is {value})"
                )
        self.losses.append(float(logs["loss"]))
        self.gradient_norms.append(float(logs["grad_norm"]))
        for name in self.pending[0] if self.pending else ():
            mean = sum(measured[name] for measured in self.pending) / len(self.pending)
            self.measures.setdefault(name, []).append(mean)
        self.pending.clear()


def _optimise(
    lm: LanguageModel,
    model: Any,
    rows: Callable[[int], Sequence[R]],
    config: LoraConfig,
    recipe: Recipe,
    collate: Callable[[Sequence[R]], Batch],
    loss: Loss | None,
    seed: int,
    description: str,
) -> _Watch:
    """Train what of `model` has a gradient in place by transformers' Trainer; gives what was recorded."""
    from transformers import PrinterCallback, Trainer

    watch, epoch = _Watch(), _Epoch(rows(0))
    updates = _updates(len(epoch), config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(config, recipe, folder, updates, seed, lm.device)
        trainer_class = Trainer if loss is None else _trainer_with(loss, watch)
        trainer = trainer_class(model=model, args=arguments, train_dataset=epoch, data_collator=collate)
        if loss is not None:
            # Else the Trainer takes it for normalised over the whole update, and does not divide by the accumulation.
            trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(PrinterCallback)
        with bar(description, updates) as advance, recomputed(lm, config.gradient_checkpointing):
            trainer.add_callback(_follower(epoch, rows, watch, advance, description))
            trainer.train()
    return watch


class _Epoch(Generic[R]):
    """The rows of the epoch that is trained on: a data set as torch reads it."""

    def __init__(self, rows: Sequence[R]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> R:
        return self.rows[index]


def _arguments(config: LoraConfig, recipe: Recipe, folder: str, updates: int, seed: int, device: torch.device) -> Any:
    """TrainingArguments that save nothing, report every update to the callbacks alone, and stay on the `device`."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=_warmup(updates, config),
        **({"optim": "rmsprop"} if recipe.optimizer == "rmsprop" else {}),  # else AdamW, as the library has it
        lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        max_grad_norm=1.0,
        seed=seed,
        data_seed=seed,
        use_cpu=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # Left alone, the library takes the first GPU whatever the model is on, and with several spreads it over them.
    arguments.__dict__["_setup_devices"] = arguments.distributed_state.device = device
    return arguments


def _trainer_with(loss: Loss, watch: _Watch) -> Any:
    """The Trainer class with `loss` in place of the model's own; what the loss measured waits in `watch`."""
    from transformers import Trainer

    class LossTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            value, measured = loss(model, inputs)
            watch.pending.append(measured)
            return value

    return LossTrainer


def _follower(
    epoch: _Epoch[R],
    rows: Callable[[int], Sequence[R]],
    watch: _Watch,
    advance: Advance,
    description: str,
) -> Any:
    """A callback that gives every epoch its rows, and records every update."""
    from transformers import TrainerCallback

    class Follower(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            epoch.rows = rows(round(state.epoch))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                watch.update(logs, description)
                advance(1)

    return Follower()


def _extract(peft_model: Any, scaling: float) -> dict[str, LowRank]:
    deltas = {}
    for name, module in peft_model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a = module.lora_A["default"].weight.detach().float().clone()
            b = module.lora_B["default"].weight.detach().float() * scaling
            deltas[f"{name}.weight"] = LowRank(a, b)
    return deltas
