"""A chat template that writes today's date is told one day for all."""

from __future__ import annotations

import pickle
from datetime import date, datetime

import pytest
from tiny_models import build_tiny_tokenizer

from sense_trl.errors import InputError
from sense_trl.template_date import check_template_date, fix_template_date, writes_date

TEMPLATE = (
    "{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "SELECT"}]


@pytest.fixture
def tokenizer():
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def render(tokenizer, **options):
    return tokenizer.apply_chat_template(MESSAGES, tokenize=False, **options)


def test_the_day_is_the_one_that_was_fixed_last(tokenizer, tmp_path):
    assert render(tokenizer) == f"Today: {date.today().strftime('%d %b %Y')} SELECT"
    fix_template_date(tokenizer, "2026-11-29")
    assert render(tokenizer) == "Today: 29 Nov 2026 SELECT"
    fix_template_date(tokenizer, "2024-02-29")
    assert render(tokenizer) == "Today: 29 Feb 2024 SELECT"
    # As where examples are tokenised in other processes.
    assert render(pickle.loads(pickle.dumps(tokenizer))) == "Today: 29 Feb 2024 SELECT"
    # What a caller says goes first.
    assert render(tokenizer, date_string="then") == "Today: then SELECT"
    tokenizer.save_pretrained(tmp_path)
    assert "29 Feb" not in "".join(
        path.read_text(encoding="utf-8") for path in tmp_path.iterdir() if path.is_file()
    )
    again = type(tokenizer).from_pretrained(tmp_path)
    assert render(again) == f"Today: {date.today().strftime('%d %b %Y')} SELECT"


@pytest.mark.parametrize(
    "text",
    ["%d %b %Y", "%B %d, %Y", "%-d.%-m.%y %H:%M", "100%% on %A (%j)", "%%d", "day", "%F %D %T"],
)
@pytest.mark.parametrize("begin", ["", "\n", "  x"])
def test_every_format_is_that_of_python(tokenizer, text, begin):
    tokenizer.chat_template = begin + "{{ strftime_now('" + text + "') }}|\n{{ 1 }}"
    day = datetime(2024, 2, 5)
    expected = day.strftime(text)
    fix_template_date(tokenizer, "2024-02-05")
    assert render(tokenizer) == f"{begin}{expected}|\n1"


def test_templates_that_ask_for_the_date_are_known(tokenizer):
    assert writes_date(tokenizer)
    assert not writes_date(build_tiny_tokenizer())
    tokenizer.chat_template = {"default": "x", "tool_use": TEMPLATE}
    assert writes_date(tokenizer)
    tokenizer.chat_template = None
    assert not writes_date(tokenizer)


@pytest.mark.parametrize("day", ["yesterday", "29.11.2026", "2026-13-01", 20261129])
def test_what_is_no_day_is_refused(day):
    with pytest.raises(InputError, match=r"`template_date` is .*; expected a day"):
        check_template_date(day)
