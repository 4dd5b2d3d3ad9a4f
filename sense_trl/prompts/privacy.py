"""Rules that keep values of secret and personal columns out of prompts: `PrivacyRules`.

A value in a prompt reaches the log, the model and, with a server, another machine. Columns are
judged by their names, and by what their values look like: a name says nothing of what people
typed into it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from sense_trl.schema.naming import get_words

# A column of text is judged by its values when so many of them look alike.
_MIN_SHARE: Final = 0.2
_MAX_JUDGED: Final = 500


class Sensitivity(StrEnum):
    """Three degrees of what the values of a column give away."""

    NONE = "none"
    PERSONAL = "personal"
    """A person's data: a value is shown only to who has typed the whole of it."""
    SECRET = "secret"
    """Passwords, keys, card numbers, or what `hidden_columns` names: nothing is shown."""


_SECRET_NAMES: Final = re.compile(
    r"\b(?:pass ?words?|passwd|pwd|pass ?phrases?|passcode|secrets?|(?:api|access|auth\w*|refresh"
    r"|session|bearer|csrf|security|reset|login) (?:keys?|tokens?|code)|api key|tokens?"
    r"|private key|encryption key|hash(?:es|ed)?|salt|digest|credentials?|otp|totp|mfa|cookies?"
    r"|pin|pin ?codes?|credit card|card (?:no|number|num|nr)|cc number|cvv2?|cvc|iban|bic|swift"
    r"|(?:bank|account) (?:no|number|num|nr)|routing number|sort code)\b"
    r"|\b(?:password|passwort|kennwort|mdp|contrasena|senha)\b"
)
_PERSONAL_NAMES: Final = re.compile(
    r"\b(?:e ?mails?|mail address|phones?|telephones?|tel|mobile|cell ?phone|fax|ssn"
    r"|social security|national id|tax id|tin|passport|driv\w+ licen[cs]e"
    r"|first ?name|given ?name|middle ?name"
    r"|last ?name|sur ?name|family ?name|full ?name|fname|lname|forename|maiden name|user ?name"
    r"|login|nick ?name|birth ?(?:day|date)|date of birth|dob|street|address(?: line)?(?: \d)?"
    r"|addr|zip ?code|post(?:al)? ?code|ip|ip address|mac address|latitude|longitude|gps"
    r"|diagnos[ei]s|blood type|ethnicity|religion|next of kin)\b"
)
_PEOPLE: Final = re.compile(
    r"\b(?:customers?|clients?|patients?|users?|members?|employees?|staff|persons?|people"
    r"|contacts?|subscribers?|applicants?|candidates?|students?|pupils?|guests?|tenants?|owners?"
    r"|visitors?|donors?|volunteers?|doctors?|nurses?|teachers?|voters?|borrowers?|individuals?)\b"
)
# Columns of tables of people that hold their names.
_NAMES: Final = re.compile(r"\bnames?\b")
_SECRET_VALUES: Final = re.compile(
    r"(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{128})\Z"
    r"|\$(?:2[aby]?|5|6|argon2\w*|pbkdf2\w*)\$.+"
    r"|eyJ[\w-]{10,}\.[\w-]{5,}\.[\w-]*\Z|-----BEGIN |(?:sk|pk|ghp|gho|xox[abp])[-_][\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}\Z|(?:\d{4}[ -]?){3}\d{1,7}\Z|[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}"
    r"(?: ?[A-Z0-9]{1,3})?\Z",
    re.I,
)
_PERSONAL_VALUES: Final = re.compile(
    r"[^@\s]+@[^@\s]+\.[a-z]{2,}\Z|\+\d[\d ()./-]{7,18}\Z|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}\Z"
    r"|\d{3}-\d{2}-\d{4}\Z|\d{1,3}(?:\.\d{1,3}){3}\Z",
    re.I,
)


@dataclass(frozen=True, slots=True)
class PrivacyRules:
    """Judges columns.

    Attributes:
        shown: patterns of `table.column` that are shown whatever they look like.
        hidden: patterns of `table.column` that are not, and win over `shown`. Patterns are those of
            a shell (`*`, `?`, `[...]`), in any case.
    """

    shown: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    def judge(self, table: str, column: str, values: Collection[object] = ()) -> Sensitivity:
        """Judge the sensitivity of a column by its name and some of its values.

        Example:
            >>> rules = PrivacyRules(shown=("singer.*",))
            >>> for name in ("login.password", "client.name", "singer.first_name", "city.name"):
            ...     print(rules.judge(*name.split(".")))
            secret
            personal
            none
            none
        """
        if _matches(self.hidden, table, column):
            return Sensitivity.SECRET
        if _matches(self.shown, table, column):
            return Sensitivity.NONE
        words = " ".join(get_words(column))
        texts = [value for value in values if isinstance(value, str)][:_MAX_JUDGED]
        if _SECRET_NAMES.search(words) or _is_common(_SECRET_VALUES, texts):
            return Sensitivity.SECRET
        is_name = _NAMES.search(words) and _PEOPLE.search(" ".join(get_words(table)))
        is_of_person = _NAMES.search(words) and _PEOPLE.search(words)
        if _PERSONAL_NAMES.search(words) or is_name or is_of_person:
            return Sensitivity.PERSONAL
        if _is_common(_PERSONAL_VALUES, texts):
            return Sensitivity.PERSONAL
        return Sensitivity.NONE


def _matches(patterns: Iterable[str], table: str, column: str) -> bool:
    name = f"{table}.{column}".lower()
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns)


def _is_common(pattern: re.Pattern[str], texts: Sequence[str]) -> bool:
    found = sum(pattern.match(text.strip()) is not None for text in texts)
    return found > _MIN_SHARE * len(texts)
