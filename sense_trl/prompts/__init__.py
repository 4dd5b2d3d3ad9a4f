"""Prompts for models, and the SQL taken out of their answers."""

from sense_trl.prompts.messages import (
    Attempt,
    Messages,
    add_attempts,
    choose_answer,
    get_prompt,
)
from sense_trl.prompts.style import PromptStyle
from sense_trl.sql.extraction import extract_sql

__all__ = [
    "Attempt",
    "Messages",
    "PromptStyle",
    "add_attempts",
    "choose_answer",
    "extract_sql",
    "get_prompt",
]
