"""A model with what can be done with it: apply an intervention, generate texts, read likelihoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from detoxbench.config import GenSpec
from detoxbench.errors import DetoxbenchError
from detoxbench.interventions.apply import applied
from detoxbench.model.model import Model
from detoxbench.records import Request, Sample

if TYPE_CHECKING:
    from detoxbench.interventions.intervention import Intervention


class LanguageModel(Model):
    """A model with its tokenizer. Parts: `model`, `tokenizer`, `architecture`, `fingerprint`, `device`, `dtype`."""

    def require_usable(self) -> None:
        """Raises DetoxbenchError for a kind of model that the engine cannot serve (`serving.require_served`)."""
        from detoxbench.engine.serving import require_served

        require_served(self)

    def applied(self, intervention: Intervention) -> AbstractContextManager[None]:
        """`with lm.applied(intervention):` puts it on; leaving takes it off, bit for bit."""
        return applied(self, intervention)

    def swaps(self, intervention: Intervention) -> bool:
        """Whether putting it on and taking it off takes no longer than a forward pass or two."""
        return True

    def routed(self, interventions: Mapping[str, Intervention]) -> AbstractContextManager[None]:
        """`with lm.routed({record: intervention}):` each is in force for the requests of its record, in one batch."""
        from detoxbench.interventions.routing import routed

        return routed(self, interventions)

    def generate(
        self, prompts: Sequence[str | Request], gen: GenSpec | None = None, *, seed: int = 0, **settings: Any
    ) -> list[Sample]:
        """Answer every prompt `gen.n` times: samples in the order of the prompts.

        `settings` are fields of GenSpec, given instead of `gen`: `lm.generate(["hello"], max_new_tokens=5)`.
        """
        from detoxbench.engine.generation import generate
        from detoxbench.engine.serving import require_served

        if self.bare:
            require_served(self)
        gen = GenSpec(**settings) if gen is None else gen
        requests = [
            p if isinstance(p, Request) else Request(id=str(i), prompt=p, record=str(i), kind="prompt")
            for i, p in enumerate(prompts)
        ]
        generated = (g.sample for batch in generate(self, requests, gen, seed) for g in batch)
        samples = {(s.id, s.sample): s for s in generated}
        return [samples[r.id, k] for r in requests for k in range(gen.n)]

    def continuation_nll(self, prompts: Sequence[str], texts: Sequence[str]) -> list[tuple[float, int] | None]:
        """Negative log-likelihood of each text after its prompt: (sum in nats, number of tokens), None for no tokens.

        Prompt and text are tokenised together, as the text was read, and NLL(prompt + text) - NLL(prompt) is taken
        over the difference of their lengths (DeStein, evaluate_generations.py:77-109); of inputs longer than the
        context the beginning is cut, and tokens of the text that go with it are not counted. Raises DetoxbenchError
        while a hook or an operation on the logits carries interventions.
        """
        from detoxbench.engine.likelihood import Window, window_nlls

        if self.in_force.companions:
            raise DetoxbenchError(
                f"'{self.name}' is under '{'+'.join(self.in_force.methods)}', which reads each prompt in several ways: "
                "give requests with a text to engine.likelihood.loglikelihoods"
            )
        limit = self.context
        windows: list[Window] = []
        parts: list[tuple[int, int]] = []  # for each text: its tokens, and how many of `windows` belong to it
        for prompt, text in zip(prompts, texts, strict=True):
            start = self.tokens(prompt) if prompt else []
            whole = self.tokens(prompt + text)
            count = len(whole) - max(len(start), 1)
            read = whole if limit is None else whole[-limit:]
            context_length = max(len(start) - (len(whole) - len(read)), 1)
            # Where the joint tokens do not begin with those of the prompt, the NLL of the prompt alone is subtracted.
            begins = whole[: len(start)] == start
            of_text = [Window(read, context_length)] if begins else [Window(read, 1), Window(start, 1)]
            of_text = of_text if count > 0 else []
            windows += of_text
            parts.append((min(count, len(read) - 1), len(of_text)))
        every = iter([nll for nll, _ in window_nlls(self, windows)])
        nlls = [[next(every) for _ in range(number)] for _, number in parts]
        return [(n[0] - sum(n[1:]), count) if n else None for (count, _), n in zip(parts, nlls, strict=True)]
