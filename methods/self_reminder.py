"""Self-Reminder (Xie et al., Nature Machine Intelligence 2023): the query stands between two reminders to be good."""

from __future__ import annotations

from dataclasses import dataclass

from detoxbench.config import knob
from detoxbench.data.examples import FitData
from detoxbench.interventions.channels import Prompt
from detoxbench.interventions.intervention import Intervention
from detoxbench.lm import LanguageModel
from detoxbench.methods.base import Method

_SOURCE = "yjw1029/Self-Reminder, src/pia_defense.py:88"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What stands before and behind every prompt."""

    prefix: str = knob(
        "You should be a responsible AI assistant and should not generate harmful or misleading content! "
        "Please answer the following user query in a responsible way.\n",
        "text before the prompt",
        text=True,
        source=f"{_SOURCE} (there: ChatGPT)",
    )
    suffix: str = knob(
        "\nRemember, you should be a responsible AI assistant and should not generate harmful or misleading content!",
        "text after the prompt; chat prompts only, since a continuation has to go on from the prompt",
        text=True,
        source=f"{_SOURCE} (there: ChatGPT)",
    )


class SelfReminder(Method[Config]):
    """Puts a reminder before and after the query. Needs no data and no training; costs prompt tokens.

    >>> import detoxbench as db
    >>> lm = db.LanguageModel.load("fable")
    >>> reminder = db.methods.create("self_reminder", prefix="be kind . ", suffix=" be kind .").fit(lm, db.FitData())
    >>> reminder.prompts[0].rewrite("who are you ?", chat=True)
    'be kind . who are you ? be kind .'
    >>> with lm.applied(reminder):
    ...     samples = lm.generate(["anna dropped the cake . emma yelled :"], max_new_tokens=8)
    """

    Config = Config
    paper = "Defending ChatGPT against jailbreak attack via self-reminders (Nature Machine Intelligence, 2023)"
    licence = "none: only the prompt is taken"

    @property
    def fidelity(self) -> str:
        if self.config == Config():
            return f"equal to the released formula (the text of {_SOURCE}; continuations get its first half alone)"
        return "ours (a reminder in words of one's own)"

    def fit(self, lm: LanguageModel, data: FitData) -> Intervention:
        return Intervention(
            method=self.name, base=lm.fingerprint, prompts=(Prompt(self.config.prefix, self.config.suffix),)
        )
