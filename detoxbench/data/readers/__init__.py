"""Readers of published and of users' files: every record checked, every complaint one line with file, line and field.

    files     rows(path): .json, .jsonl, .csv, .tsv, .txt, .parquet, packed by .gz, or hub:OWNER/NAME -> `Row`s;
              read_text(path)
    tables    quotes and delimiters of .csv and .tsv
    columns   which column holds what, and the checks of a row
    edits     safeedit, safeedit_inputs, edit_records: SafeEdit, for suites and for fits
    fit       pairs (ParaDetox, DeStein), instructions, civil_instructions, toxic_instructions, paraphrase_sets,
              retain_texts: what methods learn from
    preferences  preferences (dpo_toxic, HH-RLHF, UltraFeedback), for methods that learn from two responses
    prompts   toxicity_prompts (RealToxicityPrompts), asked_instructions (Ext-Sub), harmful_requests (AdvBench,
              HarmBench, ...), labelled_prompts (XSTest), group_prompts (BOLD, ToxiGen);
              harmful_prompts, harmless_prompts, for fits
    answers   question_answers (TriviaQA, NQ-open, GSM8K, XSum), truthfulqa, halueval
    labelled  labelled, and labelled_texts for fits: texts that people have called toxic or civil
    stored    stored_texts: texts that were generated elsewhere
    texts     lambada, piqa, blimp, rated_sentences (SafeNLP)

A reader takes a path; its half `parse_*` takes rows and also reads the embedded data, so that it keeps to the published
schemas. All raise DetoxbenchError.
"""

from detoxbench.data.readers.answers import (
    QuestionAnswer,
    TrueAndFalse,
    halueval,
    parse_halueval,
    parse_question_answers,
    parse_truthfulqa,
    question_answers,
    truthfulqa,
)
from detoxbench.data.readers.columns import column, embedded, optional
from detoxbench.data.readers.edits import (
    SafeEditInput,
    SafeEditRecord,
    edit_records,
    parse_edit_records,
    parse_safeedit,
    parse_safeedit_inputs,
    safeedit,
    safeedit_inputs,
)
from detoxbench.data.readers.files import Row, read_lines, read_text, rows
from detoxbench.data.readers.fit import (
    civil_instructions,
    instructions,
    pairs,
    paraphrase_sets,
    retain_texts,
    toxic_instructions,
)
from detoxbench.data.readers.labelled import Labelled, labelled, labelled_texts
from detoxbench.data.readers.preferences import preferences
from detoxbench.data.readers.prompts import (
    AskedInstruction,
    GroupPrompt,
    HarmfulRequest,
    LabelledPrompt,
    ToxicityPrompt,
    asked_instructions,
    group_prompts,
    harmful_prompts,
    harmful_requests,
    harmless_prompts,
    labelled_prompts,
    parse_asked_instructions,
    parse_group_prompts,
    parse_harmful_requests,
    parse_labelled_prompts,
    parse_toxicity_prompts,
    toxicity_prompts,
)
from detoxbench.data.readers.safety import LABELS, is_safe
from detoxbench.data.readers.stored import parse_stored_texts, stored_texts
from detoxbench.data.readers.texts import (
    RatedSentence,
    blimp,
    lambada,
    parse_blimp,
    parse_lambada,
    parse_rated_sentences,
    piqa,
    rated_sentences,
)

__all__ = [
    "LABELS",
    "AskedInstruction",
    "GroupPrompt",
    "HarmfulRequest",
    "Labelled",
    "LabelledPrompt",
    "QuestionAnswer",
    "RatedSentence",
    "Row",
    "SafeEditInput",
    "SafeEditRecord",
    "ToxicityPrompt",
    "TrueAndFalse",
    "asked_instructions",
    "blimp",
    "civil_instructions",
    "column",
    "edit_records",
    "embedded",
    "group_prompts",
    "halueval",
    "harmful_prompts",
    "harmful_requests",
    "harmless_prompts",
    "instructions",
    "is_safe",
    "labelled",
    "labelled_prompts",
    "labelled_texts",
    "lambada",
    "optional",
    "pairs",
    "paraphrase_sets",
    "parse_asked_instructions",
    "parse_blimp",
    "parse_edit_records",
    "parse_group_prompts",
    "parse_halueval",
    "parse_harmful_requests",
    "parse_labelled_prompts",
    "parse_lambada",
    "parse_question_answers",
    "parse_rated_sentences",
    "parse_safeedit",
    "parse_safeedit_inputs",
    "parse_stored_texts",
    "parse_toxicity_prompts",
    "parse_truthfulqa",
    "piqa",
    "preferences",
    "question_answers",
    "rated_sentences",
    "read_lines",
    "read_text",
    "retain_texts",
    "rows",
    "safeedit",
    "safeedit_inputs",
    "stored_texts",
    "toxic_instructions",
    "toxicity_prompts",
    "truthfulqa",
]
