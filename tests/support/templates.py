"""A chat template that shows its roles, and tiny models with a template of one's own."""

from __future__ import annotations

from detoxbench.lm import LanguageModel
from tests.support.tiny import tiny, tokenizer

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_template(template: str | None) -> LanguageModel:
    """A tiny model with this chat template."""
    lm = tiny()
    lm.tokenizer = tokenizer.__wrapped__(template is not None)
    if template is not None:
        lm.tokenizer.chat_template = template
    return lm
