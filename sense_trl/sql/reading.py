"""`read_query`: where a query that stands in a text ends, and how well it reads as SQL.

A text that a model wrote is SQL up to some point and prose behind it, and no parser says where: it
refuses the whole. Here a scanner cuts the text into tokens, and a reader with one state to a level
of parentheses (the clause, and whether an operand is complete) follows them. A token that its
clause does not allow is a flaw. SQL has next to none, however its lines are broken; prose has one
in nearly every second word. No text is refused, every token is looked at once, and no pattern goes
back over what it has read: the work is linear in the length of the text.

sqlglot's tokenizer is not used here, because it gives nothing at all for a text with a quote that
is never closed, as "don't" is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of SQL, or of the prose around it.

    Attributes:
        kind: `"word"`, `"name"` (in quotes or brackets), `"string"`, `"number"`, `"parameter"`,
            `"operator"`, `"comment"`, `"line"` and `"blank"` (white space with a line break, with
            an empty line), `"fence"`, `"other"` (no part of SQL), or one of `, . ( ) [ ] { } ; *`.
        text: as written; a word in upper case.
        start: its first character.
        end: the character behind it.
    """

    kind: str
    text: str
    start: int
    end: int


# Possessive throughout: what is matched is never given back.
_TOKEN: Final = re.compile(
    r"""
      (?P<gap> \s++ )
    | (?P<comment> --[^\n]*+ | /\*(?: [^*]++ | \*(?!/) )*+(?:\*/)? )
    | (?P<fence> `{3,}+ | ~{3,}+ | </[A-Za-z]\w*+> | <br[ ]?/?> | [\uff1b\u3002]
        | "{3}(?=[ \t]*+(?:[);,\r\n]|\Z)) | (?<=\n)'{3}(?=[ \t]*+(?:[\r\n]|\Z))
        | \(\d++[ ]rows?\) )
    | (?P<string> '(?: [^']++ | '' )*+' | (?<!\w)[Ee]'(?: [^'\\]++ | '' | \\. )*+' )
    | (?P<name> "(?: [^"]++ | "" )*+" | `[^`]*+` | \[[^\[\]\n]*+\]
        | \u201c[^\u201d\n]{0,200}+\u201d )
    | (?P<operator> (?<!\w)[Aa][Tt][ \t]++[Tt][Ii][Mm][Ee][ \t]++[Zz][Oo][Nn][Ee](?!\w)
        | @> | <@ | @@ | @\? | \#>>?+ | \#- | && | \?[|&]? (?=[ \t]*+(?:'|(?i:ARRAY)\b))
        | <-> | <\#> | !?~~?\*?+ | <=> | ->> | -> | <> | != | == | <= | >= | \|\| | << | >> | =>
        | := | :: | // | [-+/%<>=&|^] )
    | (?P<word> [^\W\d](?: [\w$]++ | \\_ )*+ )
    | (?P<number> (?: \d[\d_]*+(?:\.\d*+)?+ | \.\d++ )(?: [eE][+-]?+\d++ )?+\w*+ )
    | (?P<parameter> [:@$]\w++ )
    | (?P<mark> [,.()\[\]{};*] )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
# What a string of PostgreSQL begins and ends with: `$$`, `$text$`.
_DOLLARS: Final = re.compile(r"\$(?:[^\W\d]\w{0,30}+)?\$")
# Of texts that are no SQL; looking for the ends of all would not be linear.
_MAX_UNCLOSED: Final = 20
_LINE_BREAK: Final = re.compile(r"\n|\r(?!\n)")
# What may stand directly before the quote of a string, besides a keyword: `x'4D'`, `E'\n'`.
_STRING_PREFIXES: Final = frozenset("XNEBUR")
_LETTERS: Final = re.compile(r"'\w*+")
# The end of a query, and a sentence behind it on the same line.
_SENTENCE: Final = re.compile(
    r"\.[ \t]++[A-Z][\w']*+(?:[ \t]++(?P<second>[\w']++)(?:[ \t]++(?P<third>[\w']++))?+)?+"
)

_JOIN_WORDS: Final[dict[str, frozenset[str]]] = {
    "NATURAL": frozenset({"JOIN", "LEFT", "RIGHT", "FULL", "INNER", "CROSS", "OUTER"}),
    "LEFT": frozenset({"JOIN", "OUTER", "SEMI", "ANTI"}),
    "RIGHT": frozenset({"JOIN", "OUTER", "SEMI", "ANTI"}),
    "FULL": frozenset({"JOIN", "OUTER"}),
    "OUTER": frozenset({"JOIN"}),
    "INNER": frozenset({"JOIN"}),
    "CROSS": frozenset({"JOIN"}),
    "ASOF": frozenset({"JOIN", "LEFT", "RIGHT", "FULL", "INNER"}),
    "SEMI": frozenset({"JOIN"}),
    "ANTI": frozenset({"JOIN"}),
    "POSITIONAL": frozenset({"JOIN"}),
}
_QUERY_WORDS: Final = frozenset({"SELECT", "VALUES", "WITH", "FROM"})
_SET_OPERATORS: Final = frozenset({"UNION", "INTERSECT", "EXCEPT"})
_BEHIND_SET_OPERATOR: Final = frozenset(
    {"ALL", "DISTINCT", "SELECT", "VALUES", "WITH", "FROM", "BY", "(", "TABLE"}
)
# Clauses that are one word, the letter of each, and the clauses that it may stand behind.
_CLAUSES: Final = {
    "WHERE": ("W", "SFOP"),
    "HAVING": ("W", "SFOWGP"),
    "QUALIFY": ("W", "SFOWG"),
    "LIMIT": ("L", "SFOWGRVQLPN"),
    "OFFSET": ("L", "SFOWGRVQLPN"),
}
# Two words, the second is BY.
_BY_CLAUSES: Final = {"GROUP": ("G", "SFOW"), "ORDER": ("R", "SFOWGVQPN"), "PARTITION": ("G", "P")}
_BINARY_WORDS: Final = frozenset(
    {
        "AND", "OR", "LIKE", "GLOB", "REGEXP", "RLIKE", "MATCH", "ILIKE", "BETWEEN",
        "ESCAPE", "COLLATE", "IS", "IN", "SIMILAR", "DIV", "XOR", "OVERLAPS",
    }
)  # fmt: skip
_BEHIND_NOT: Final = frozenset(
    {
        "IN", "LIKE", "BETWEEN", "NULL", "GLOB", "REGEXP", "RLIKE", "MATCH", "ILIKE",
        "SIMILAR", "INDEXED", "MATERIALIZED", "DISTINCT",
    }
)  # fmt: skip
# Words that change nothing directly behind others: those of types and of a few operators.
_PHRASES: Final[dict[str, frozenset[str]]] = {
    "PRECISION": frozenset({"DOUBLE"}),
    "VARYING": frozenset({"CHARACTER", "CHAR", "BIT"}),
    "WITH": frozenset({"TIMESTAMP", "TIME"}),
    "WITHOUT": frozenset({"TIMESTAMP", "TIME"}),
    "TIME": frozenset({"WITH", "WITHOUT"}),
    "ZONE": frozenset({"TIME"}),
    "ORDINALITY": frozenset({"WITH"}),
    "SETS": frozenset({"GROUPING"}),
    "SYMMETRIC": frozenset({"BETWEEN"}),
    "TO": frozenset({"SIMILAR"}),
}
_FETCH_WORDS: Final = frozenset({"FIRST", "NEXT", "ROW", "ROWS", "ONLY", "WITH", "TIES", "PERCENT"})
# Words that go on behind an operand without one of their own.
_POSTFIX_WORDS: Final = frozenset({"ISNULL", "NOTNULL", "ASC", "DESC"})
_TYPE_WORDS: Final = frozenset({"DATE", "TIME", "TIMESTAMP", "TIMESTAMPTZ", "INTERVAL", "ZONE"})
_INTERVAL_UNIT: Final = re.compile(
    r"(?:MICROSECOND|MILLISECOND|SECOND|MINUTE|HOUR|DAY|WEEK|MONTH|QUARTER|YEAR|DECADE)S?"
)
# Only inside parentheses: frames of windows, and words between the arguments of some functions.
_INNER_WORDS: Final = frozenset(
    {
        "ROWS", "RANGE", "GROUPS", "BETWEEN", "UNBOUNDED", "PRECEDING", "FOLLOWING",
        "CURRENT", "ROW", "AND", "EXCLUDE", "TIES", "NO", "OTHERS", "SEPARATOR", "RESPECT",
        "IGNORE", "NULLS", "FOR", "FROM", "TO", "PLACING", "LEADING", "TRAILING", "BOTH", "USING",
        "ON", "IN", "SECURITY",
    }
)  # fmt: skip
# No name without quotes, so no alias either.
_RESERVED: Final = frozenset(
    {
        "SELECT", "FROM", "WHERE", "GROUP", "ORDER", "HAVING", "LIMIT", "UNION",
        "INTERSECT", "EXCEPT", "JOIN", "ON", "USING", "AND", "OR", "NOT", "IN", "IS",
        "LIKE", "BETWEEN", "CASE", "WHEN", "THEN", "ELSE", "AS", "DISTINCT", "VALUES",
        "WITH", "TABLE", "EXISTS", "CREATE", "INSERT", "DELETE", "UPDATE", "SET", "DROP",
        "ALTER", "INTO", "NULL", "TO", "FOR", "BY",
    }
)  # fmt: skip
KEYWORDS: Final = (
    _RESERVED
    | _CLAUSES.keys()
    | _BY_CLAUSES.keys()
    | _JOIN_WORDS.keys()
    | _BINARY_WORDS
    | _POSTFIX_WORDS
    | _TYPE_WORDS
    | {"OVER", "FILTER", "WINDOW", "END", "ALL", "NULLS", "RECURSIVE", "FETCH", "RETURNING"}
)


def scan_tokens(text: str, start: int = 0, end: int | None = None) -> Iterator[Token]:
    """Cut `text[start:end]` into tokens; never fails.

    A quote that is never closed is an `"other"` of one character, and so is an apostrophe within a
    word ("don't"), with the letters behind it. A comment that is never closed reaches to the end.

    Example:
        >>> [token.text for token in scan_tokens("select 'it''s' from t -- it's")]
        ['SELECT', "'it''s'", 'FROM', 'T', "-- it's"]
    """
    end = len(text) if end is None else end
    position, num_unclosed = start, 0
    while position < end:
        if (
            text[position] == "$"
            and num_unclosed < _MAX_UNCLOSED
            and (mark := _DOLLARS.match(text, position, end)) is not None
        ):
            close = text.find(mark.group(), mark.end(), end)
            if close >= 0:
                begin, position = position, close + len(mark.group())
                yield Token("string", text[begin:position], begin, position)
                continue
            num_unclosed += 1
        match = _TOKEN.match(text, position, end)
        assert match is not None and match.lastgroup is not None
        kind, piece, position = match.lastgroup, match.group(), match.end()
        if kind == "gap":
            breaks = _LINE_BREAK.findall(piece)
            if breaks:
                kind = "blank" if len(breaks) > 1 else "line"
                yield Token(kind, piece, match.start(), position)
            continue
        if kind == "mark":
            kind = piece
        elif kind == "word":
            piece = piece.upper()
            if (
                text.startswith("'", position, end)
                and piece not in KEYWORDS
                and piece not in _STRING_PREFIXES
            ):
                apostrophe = _LETTERS.match(text, position, end)
                assert apostrophe is not None
                yield Token(kind, piece, match.start(), position)
                kind, piece, position = "other", apostrophe.group(), apostrophe.end()
                yield Token(kind, piece, apostrophe.start(), position)
                continue
        yield Token(kind, piece, match.start(), position)


@dataclass(slots=True)
class _Line:
    """A line of the text and what the reader found in it.

    Attributes:
        start: where the break before it begins.
        is_blank_before: an empty line stands before it.
        is_complete_before: the query could have ended before it.
        first: its first token; `None` where it holds comments alone.
        last: its last token.
        flaws: how much of it is no SQL.
        num_tokens: tokens, comments not counted.
        num_strong: tokens that a query goes on with (a keyword, an operator, a comma).
        is_new_query: it begins with another query.
    """

    start: int
    is_blank_before: bool
    is_complete_before: bool
    first: Token | None = None
    last: Token | None = None
    flaws: int = 0
    num_tokens: int = 0
    num_strong: int = 0
    is_new_query: bool = False


@dataclass(slots=True)
class _Level:
    """One level of parentheses, or of CASE.

    Attributes:
        clause: `Q` a query is expected, `S` select list, `F` tables, `O` condition of a join, `W`
            condition, `G` grouping, `R` order, `L` limit, `V` rows of VALUES, `C` CTEs, `N`
            windows, `P` an expression or a query in parentheses, `K` CASE, `T` a type.
        is_complete: an operand is complete.
        is_named: it has its alias.
        is_from_first: the query began with FROM, as DuckDB allows; SELECT follows.
        opener: the token that opened it, or `"columns"` where those of a CTE are named.
    """

    clause: str
    is_complete: bool = False
    is_named: bool = False
    is_from_first: bool = False
    opener: str = ""


@dataclass(frozen=True, slots=True)
class QueryReading:
    """The end of a query in a text, and marks of how it reads.

    Attributes:
        end: the character behind it.
        separator: what ends it: `";"`, `"\\n"` (before prose or another query), `"mark"` (a
            fence, a tag), or
            `""` (the end of the text).
        flaws: how much of it is no SQL; 0 for nearly every query, whether it runs or not.
        num_tokens: tokens up to `end`.
        is_closed: it could end where it ends: no parenthesis is open, no operand is missing.
        is_plausible: it is SQL, be it wrong, and no sentence that begins with one of its words.
        sentence_end: where it ends if it stands within a sentence: before the first flaw; `None`
            where there is none.
    """

    end: int
    separator: str
    flaws: int
    num_tokens: int
    is_closed: bool
    is_plausible: bool
    sentence_end: int | None


def read_query(
    text: str,
    start: int = 0,
    end: int | None = None,
    *,
    is_block: bool = False,
    max_tokens: int | None = None,
) -> QueryReading:
    """Read the query that begins at `start`.

    It ends at the first `;`, code fence, closing tag, closing brace too many or full stop with a
    sentence behind it, outside quotes and comments, else before the first line that is prose,
    another query or the schema of one. Behind an empty line a flaw
    makes prose, elsewhere a line has to be mostly flaws. Only a line before which the query is
    complete can be prose, and one that begins with a keyword, written as the query writes them,
    only by many flaws: a query that is wrong stays as long as it is.

    Args:
        text: SQL, and whatever stands behind it.
        start: where the query begins.
        end: where the text ends, if not at its end.
        is_block: the text is what stands between two fences: it ends only before an empty line with
            another query or several flaws behind it.
        max_tokens: stop after so many, comments and line breaks counted, for a first impression.

    Example:
        >>> text = "Select a\\nFrom t\\n\\nWhere a > 1\\n\\nWhere a is the age."
        >>> text[: read_query(text).end]
        'Select a\\nFrom t\\n\\nWhere a > 1'
    """
    reader = _Reader(text, start, is_block)
    last = len(text) if end is None else end
    for number, token in enumerate(scan_tokens(text, start, end)):
        if token.kind in (";", "fence") or (token.kind == "}" and reader.is_outermost):
            return reader.finish(token.start, ";" if token.kind == ";" else "mark")
        if number == max_tokens:
            last = token.start
            break
        if "." in (token.kind, token.text[-1]) and reader.is_before_sentence(token):
            if token.kind == "number":
                reader.read(token)
            return reader.finish(token.end - 1, "mark")
        reader.read(token)
    return reader.finish(last, "")


def count_flaws(sql: str, dialect: str) -> int:
    """Count what of `sql`, taken as a whole, is not SQL; 0 for every query of the dialect.

    A parser may forgive what an engine does not: sqlglot reads `SELECT , a` as `SELECT a`.
    Semicolons before and behind the query count for nothing.

    Example:
        >>> [count_flaws(f"SELECT {column} FROM t;", "sqlite") for column in ("a", ", a", "a,")]
        [0, 1, 1]
    """
    reader = _Reader(sql, 0, True)
    is_ended, num_behind = False, 0
    for token in scan_tokens(sql):
        if token.kind == ";":
            is_ended = reader.num_tokens > 0
        elif is_ended and token.kind not in ("comment", "line", "blank"):
            num_behind += 1
        elif not is_ended:
            # No engine but DuckDB takes a comma before FROM.
            if token.text == "FROM" and reader.is_behind_comma and dialect != "duckdb":
                num_behind += 1
            if token.text == "DISTINCT" and reader.is_behind_set_operator and dialect == "sqlite":
                num_behind += 1
            reader.read(token)
    return reader.num_flaws + num_behind + (not reader.is_complete)


class _Reader:
    """Follows the tokens of one query; see the head of this file."""

    def __init__(self, text: str, start: int, is_block: bool) -> None:
        self.num_tokens = 0
        self._text = text
        self._is_block = is_block
        self._lines = [_Line(start, False, False)]
        self._levels = [_Level("Q")]
        self._previous: Token | None = None
        self._need: frozenset[str] | None = None
        # Where the query ends if a sentence goes on behind it; and that before the last alias.
        self._sentence_end: int | None = None
        self._alias_start: int | None = None

    # ------------------------------------------------------------------ tokens

    @property
    def num_flaws(self) -> int:
        """The flaws of all lines."""
        return sum(line.flaws for line in self._lines)

    @property
    def is_behind_comma(self) -> bool:
        """Whether the last token was a comma."""
        return self._is_behind_kind(",")

    @property
    def is_behind_set_operator(self) -> bool:
        """Whether the last token was UNION, INTERSECT or EXCEPT."""
        return self._is_behind(*_SET_OPERATORS)

    @property
    def is_outermost(self) -> bool:
        """Whether no parenthesis is open."""
        return len(self._levels) == 1

    def is_before_sentence(self, token: Token) -> bool:
        """Whether the query ends at the dot of a token, and a sentence follows."""
        if not self.is_outermost or self._levels[-1].clause in "QSC":
            return False
        if not (token.kind == "number" or self.is_complete):
            return False
        found = _SENTENCE.match(self._text, token.end - 1)
        if found is None:
            return False
        words = [word.upper() for word in found.groups() if word is not None]
        # `T1. Name IS NULL` goes on.
        return (
            len(words) == 2
            and words != ["IS", "NULL"]
            and KEYWORDS.isdisjoint({*words} - {"IS", "FOR", "TO", "ALL"})
        )

    def read(self, token: Token) -> None:
        """Follow one token."""
        kind = token.kind
        if kind == "comment":
            return
        if kind in ("line", "blank"):
            self._lines.append(_Line(token.start, kind == "blank", self.is_complete))
            return
        line = self._lines[-1]
        if line.first is None:
            line.first = token
        line.last = token
        line.num_tokens += 1
        self.num_tokens += 1
        need, self._need = self._need, None
        if need is not None and token.text not in need and kind not in need:
            self._flaw()
        level = self._levels[-1]
        if kind == "word":
            self._read_word(token, level)
        elif kind == "name" and self._is_behind_kind("."):
            level.is_complete = True
        elif kind in ("name", "string", "number", "parameter"):
            self._read_operand(token, level)
        elif kind in ("operator", "*"):
            self._read_operator(token, level)
        elif kind in ("(", "[", "{"):
            self._open(token, level)
        elif kind in (")", "]", "}"):
            self._close()
        elif kind == ",":
            if not level.is_complete or level.clause in "WKQ":
                self._flaw()
            self._go_on(level, clause="F" if level.clause == "O" else None)
        elif kind == ".":
            self._read_dot(token, level)
        elif token.text == ":" and level.opener in ("{", "["):
            level.is_complete = False
        else:
            self._flaw(2)
        self._previous = token

    def _flaw(self, weight: int = 1) -> None:
        self._lines[-1].flaws += weight
        if self._sentence_end is None and self._previous is not None:
            end = self._previous.end
            if self._levels[-1].is_named and self._alias_start is not None:
                end = self._alias_start
            self._sentence_end = end

    def _go_on(self, level: _Level, clause: str | None = None) -> None:
        """An operand has to follow."""
        self._lines[-1].num_strong += 1
        level.is_complete = level.is_named = False
        level.clause = clause or level.clause

    def _is_behind(self, *words: str) -> bool:
        previous = self._previous
        return previous is not None and previous.kind == "word" and previous.text in words

    def _is_behind_kind(self, *kinds: str) -> bool:
        return self._previous is not None and self._previous.kind in kinds

    @property
    def is_complete(self) -> bool:
        """Whether the query could end here."""
        level = self._levels[-1]
        return (
            self.is_outermost and level.is_complete and level.clause != "C" and self._need is None
        )

    def _read_word(self, token: Token, level: _Level) -> None:
        word = token.text
        is_inner = len(self._levels) > 1 and level.clause in "PGR"
        if self._is_behind_kind(".") or level.clause == "T":
            if self.is_outermost and level.clause == "T" and word not in _FETCH_WORDS:
                # Behind FETCH.
                self._flaw()
            level.is_complete = True
        elif word in _PHRASES and self._is_behind(*_PHRASES[word]):
            pass
        elif self._is_behind("AS") and level.clause not in "CN":
            # The name may be any word. In parentheses it is the type of a CAST.
            level.is_complete = level.is_named = True
            self._alias_start = None
            if level.clause == "P":
                level.clause = "T"
        elif is_inner and word in _INNER_WORDS and self._may_stand_inside(level):
            level.is_complete = False
        elif word in _QUERY_WORDS:
            self._read_query_word(token, level)
        elif word in _CLAUSES or word in _BY_CLAUSES:
            self._read_clause(word, level)
        elif word in _SET_OPERATORS:
            self._read_set_operator(word, level)
        elif word in _JOIN_WORDS or word == "JOIN":
            self._read_join(word, level)
        elif word in _BINARY_WORDS:
            self._read_binary_word(word, level)
        elif not self._read_other_keyword(word, level):
            self._read_operand(token, level)

    def _may_stand_inside(self, level: _Level) -> bool:
        return level.is_complete or self._is_behind(*_INNER_WORDS) or self._is_behind_kind("(")

    def _read_operand(self, token: Token, level: _Level) -> None:
        is_reserved = token.kind == "word" and token.text in _RESERVED
        line = self._lines[-1]
        if token.text == "CREATE" and level.is_complete and line.first is token:
            # The schema of the next question.
            line.is_new_query = self.is_outermost
        if self._is_behind("AS") and level.clause in "SF" and token.kind in ("name", "string"):
            level.is_complete = level.is_named = True
            self._alias_start = None
        elif not level.is_complete or level.clause == "T":
            level.is_complete = True
            if is_reserved or level.clause == "Q":
                self._flaw()
        elif self._belongs_to_operand(token):
            pass
        elif (
            level.clause in "SF"
            and not level.is_named
            and not is_reserved
            and token.kind in ("word", "name", "string")
        ):
            self._alias_start = self._previous.end if self._previous is not None else None
            level.is_named = True
        else:
            self._flaw()

    def _belongs_to_operand(self, token: Token) -> bool:
        """Whether a token is a part of the operand before it: `a[1]`, `DATE '...'`, `1 DAY`."""
        if token.kind == "name":
            return token.text.startswith("[") and self._touches(token)
        if token.kind == "string":
            return self._is_behind(*_TYPE_WORDS)
        if token.kind == "number":
            return self._is_behind("INTERVAL")
        is_behind_value = self._is_behind_kind("string", "number")
        return is_behind_value and _INTERVAL_UNIT.fullmatch(token.text) is not None

    def _touches(self, token: Token) -> bool:
        return self._previous is not None and self._previous.end == token.start

    def _read_query_word(self, token: Token, level: _Level) -> None:
        """SELECT, VALUES, WITH and FROM."""
        word, clause = token.text, level.clause
        # `EXISTS (SELECT FROM t)`
        is_empty = self._is_behind("SELECT") and not self.is_outermost
        if (
            word == "FROM"
            and clause == "S"
            and (level.is_complete or self._is_behind_kind(",") or is_empty)
        ):
            self._go_on(level, "F")
        elif word == "WITH" and clause == "F" and level.is_complete and self._is_behind_kind(")"):
            self._need = frozenset({"ORDINALITY"})
        elif word == "FROM" and self._is_behind("DISTINCT"):
            # `a IS DISTINCT FROM b`
            self._go_on(level)
        elif (clause in "QP" and not level.is_complete) or (
            level.is_complete
            and (clause == "C" or (clause == "F" and word == "SELECT"))
            and (clause == "C" or level.is_from_first)
        ):
            self._go_on(level, {"SELECT": "S", "VALUES": "V", "WITH": "C", "FROM": "F"}[word])
            level.is_from_first = word == "FROM"
            if word == "VALUES":
                self._need = frozenset("(")
            elif word == "WITH":
                self._need = frozenset({"word", "name"})
        elif word == "VALUES" and not level.is_complete:
            level.is_complete = True
        else:
            line = self._lines[-1]
            if word != "FROM" and level.is_complete and line.first is token:
                line.is_new_query = self.is_outermost
            self._flaw(1 if word == "FROM" else 2)
            level.is_complete = level.is_named = False
            if word == "SELECT":
                level.clause = "S"

    def _read_clause(self, word: str, level: _Level) -> None:
        clause, behind = _BY_CLAUSES[word] if word in _BY_CLAUSES else _CLAUSES[word]
        if word == "GROUP" and self._is_behind("WITHIN"):
            self._need = frozenset("(")
        elif level.clause in behind and (level.is_complete or level.clause == "P"):
            self._go_on(level, clause)
            if word in _BY_CLAUSES:
                self._need = frozenset({"BY"})
        elif level.is_complete or word in _RESERVED:
            self._flaw()
            level.is_complete = level.is_named = False
        else:
            level.is_complete = True

    def _read_set_operator(self, word: str, level: _Level) -> None:
        if word == "EXCEPT" and level.clause == "S" and self._is_behind_kind("*"):
            # `SELECT * EXCEPT (a)`, which names columns.
            self._need = frozenset("(")
            return
        if not level.is_complete or level.clause == "C":
            self._flaw()
        self._go_on(level, "Q")
        self._need = _BEHIND_SET_OPERATOR

    def _read_join(self, word: str, level: _Level) -> None:
        if not level.is_complete and (self._is_behind(*_JOIN_WORDS) or word == "JOIN"):
            if word == "JOIN" and not self._is_behind(*_JOIN_WORDS):
                self._flaw()
            level.clause = "F"
        elif not level.is_complete:
            # `left(name, 2)`
            level.is_complete = True
            return
        else:
            if level.clause not in "FO":
                self._flaw()
            self._go_on(level, "F" if level.clause in "FO" else None)
        self._need = _JOIN_WORDS.get(word)

    def _read_binary_word(self, word: str, level: _Level) -> None:
        if level.is_complete:
            if level.clause in "FCQN" or level.is_named:
                self._flaw()
            # Where WHERE is missing, what follows is a condition all the same.
            self._go_on(level, "W" if level.clause == "F" else None)
        elif word in _RESERVED and not (word in _BEHIND_NOT and self._is_behind("NOT")):
            self._flaw()
        else:
            # A function of that name, such as `glob('a*', name)`.
            level.is_complete = True

    def _read_other_keyword(self, word: str, level: _Level) -> bool:
        """Whether `word` is a keyword where it stands; another word is an operand or a name."""
        clause, complete = level.clause, level.is_complete
        if word == "AS":
            if not complete or clause not in "SFPCN" or level.is_named:
                self._flaw()
            self._go_on(level)
            self._need = (
                frozenset({"(", "NOT", "MATERIALIZED"})
                if clause in "CN"
                else frozenset({"word", "name", "string"})
            )
        elif word == "NOT":
            if clause == "C":
                self._need = frozenset({"MATERIALIZED"})
            elif complete:
                self._need = frozenset({"INDEXED"}) if clause == "F" else _BEHIND_NOT
        elif word == "MATERIALIZED" and clause == "C" and not complete:
            self._need = frozenset("(")
        elif word == "NULL":
            if complete and not self._is_behind("NOT"):
                self._flaw()
            level.is_complete = True
        elif word == "ALL" and clause == "L" and not complete:
            level.is_complete = True
        elif word in ("DISTINCT", "ALL", "RECURSIVE", "LATERAL") and not complete:
            pass
        elif word in ("ROW", "ROWS") and clause == "L" and complete:
            self._lines[-1].num_strong += 1
        elif word == "ON":
            if clause == "F" and complete:
                self._go_on(level, "O")
            elif not self._is_behind("DISTINCT"):
                self._flaw()
                self._go_on(level)
        elif word == "USING":
            if clause != "F" or not complete:
                self._flaw()
            self._lines[-1].num_strong += 1
            self._need = frozenset({"(", "SAMPLE"})
        elif word == "SAMPLE" and self._is_behind("USING"):
            self._go_on(level, "L")
        elif word == "CASE":
            if complete:
                self._flaw()
            self._levels.append(_Level("K", opener="CASE"))
        elif word in ("WHEN", "THEN", "ELSE"):
            if clause != "K" or not (complete or self._is_behind("CASE")):
                self._flaw()
            self._go_on(level)
        elif word == "END" and clause == "K":
            if not complete:
                self._flaw()
            self._pop()
        elif word == "EXISTS" and not complete:
            self._need = frozenset("(")
        elif word in _POSTFIX_WORDS and complete and clause not in "FCQ":
            if self._is_behind("ASC", "DESC"):
                self._flaw()
            self._lines[-1].num_strong += 1
        elif word == "NULLS" and complete:
            self._lines[-1].num_strong += 1
            self._need = frozenset({"FIRST", "LAST"})
        elif word in ("FIRST", "LAST") and self._is_behind("NULLS"):
            pass
        elif word == "OVER" and self._is_behind_kind(")"):
            self._go_on(level)
            self._need = frozenset({"(", "word"})
        elif word in ("FILTER", "WITHIN") and self._is_behind_kind(")"):
            self._lines[-1].num_strong += 1
            level.is_complete = False
            self._need = frozenset({"(", "GROUP"})
        elif word == "WINDOW" and complete and clause in "SFOWG":
            self._go_on(level, "N")
            self._need = frozenset({"word", "name"})
        elif word == "FETCH" and complete and clause != "C":
            self._go_on(level, "T")
            self._need = frozenset({"FIRST", "NEXT"})
        elif word == "INDEXED" and clause == "F" and complete:
            self._lines[-1].num_strong += 1
            self._need = frozenset({"BY"})
        elif word == "TABLESAMPLE" and clause == "F" and complete:
            self._go_on(level)
        elif word == "BY" and self._is_behind("INDEXED", *_BY_CLAUSES):
            level.is_complete = level.is_named = False
        elif word == "BY" and self._is_behind("ALL", *_SET_OPERATORS):
            self._need = frozenset({"NAME"})
        elif not (word == "NAME" and self._is_behind("BY") and clause == "Q"):
            return False
        return True

    def _read_operator(self, token: Token, level: _Level) -> None:
        if token.kind == "*" and self._is_behind_kind("."):
            level.is_complete = True
        elif token.text == "|" and self._lines[-1].first is token:
            # A row of a table as text.
            self._flaw(2)
        elif level.is_complete:
            if level.clause in "FCQN" or level.is_named:
                self._flaw()
            self._go_on(level)
        elif token.kind == "*":
            is_quantified = level.clause == "P" and self._is_behind("ALL", "DISTINCT")
            if level.clause not in "SPT" or is_quantified or self._is_behind_kind("operator"):
                self._flaw()
            level.is_complete = True
        elif (token.text not in "+-~" or level.clause == "Q") and not (
            # `> =`
            self._is_behind_kind("operator") and token.text in "<=>"
        ):
            self._flaw()

    def _read_dot(self, token: Token, level: _Level) -> None:
        behind = self._text[token.end : token.end + 1]
        is_behind_name = self._is_behind_kind("word", "name", ")", "]")
        if not is_behind_name or self._is_behind(*_RESERVED) or behind in ("", "\n", "\r"):
            # The end of a sentence.
            self._flaw(2)
            return
        if level.is_named:
            self._flaw()
        self._need = frozenset({"word", "name", "*"})

    def _open(self, token: Token, level: _Level) -> None:
        if (
            level.is_complete
            and not self._is_behind_kind("word", "name")
            and not (token.kind == "[" and self._touches(token))
        ):
            self._flaw()
        # `AS x(a int, b text)`
        is_typed = level.clause == "F" and level.is_named and self._touches(token)
        if level.clause == "T" or is_typed:
            self._levels.append(_Level("T", opener=token.kind))
        else:
            names_columns = level.clause == "C" and not self._is_behind("AS", "MATERIALIZED")
            self._levels.append(_Level("P", opener="columns" if names_columns else token.kind))

    def _close(self) -> None:
        while len(self._levels) > 1 and self._levels[-1].clause == "K":
            self._flaw()
            self._pop()
        if self.is_outermost:
            self._flaw()
            return
        if not (
            self._levels[-1].is_complete
            or self._is_behind_kind("(", "[", "{")
            or self._is_behind(*_INNER_WORDS)
        ):
            self._flaw()
        if self._levels[-1].opener == "columns":
            self._need = frozenset({"AS"})
        self._pop()

    def _pop(self) -> None:
        self._levels.pop()
        self._levels[-1].is_complete = True

    # ------------------------------------------------------------------ end

    def finish(self, end: int, separator: str) -> QueryReading:
        """Sum up what was read, with the text behind the query left out."""
        lines, is_closed = self._lines, self.is_complete
        index = self._find_end()
        if index is not None:
            end, separator = lines[index].start, "\n"
            lines, is_closed = lines[:index], lines[index].is_complete_before
        flaws = sum(line.flaws for line in lines)
        num_tokens = sum(line.num_tokens for line in lines)
        head = next((line for line in lines if line.first is not None), lines[0])
        is_plausible = (
            (flaws <= 1 or flaws * 5 < num_tokens)
            and (head.flaws < 2 or head.flaws * 4 < head.num_tokens)
            and not self._is_heading(lines)
        )
        sentence_end = self._sentence_end if flaws else None
        return QueryReading(
            end, separator, flaws, num_tokens, is_closed, is_plausible, sentence_end
        )

    def _is_heading(self, lines: list[_Line]) -> bool:
        """Whether the first line announces a query, which writes its keywords in another way."""
        firsts = [line.first for line in lines if line.first is not None]
        query = next((line.first for line in lines if line.is_new_query), None)
        return query is not None and self._style(firsts[0]) != self._style(query)

    def _find_end(self) -> int | None:
        """Index of the first line behind the query; `None` where it fills the text."""
        lines = self._lines
        # The first line that nothing confirms: it holds a comment, or a word that could be a name.
        pending: int | None = None
        starts = [i for i, line in enumerate(lines) if i == 0 or line.is_blank_before]
        for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
            prose = next((i for i in range(start + 1, stop) if self._is_prose_line(lines[i])), None)
            filled = [line for line in lines[start : prose or stop] if line.first is not None]
            if start > 0 and lines[start].is_complete_before:
                if filled and (
                    filled[0].is_new_query
                    or self._is_prose(filled)
                    or self._is_lone_or(filled, lines[stop:])
                ):
                    return start if pending is None else pending
                is_confirmed = any(line.flaws or line.num_strong for line in filled)
                if not is_confirmed and not self._is_alias(filled, lines[start].start):
                    pending = start if pending is None else pending
                    filled = []
            if filled:
                pending = None
            if prose is not None:
                return prose if pending is None else pending
        return None if self._is_block else pending

    def _is_prose(self, lines: list[_Line]) -> bool:
        """Whether the lines behind an empty one are prose."""
        flaws = sum(line.flaws for line in lines)
        if flaws < (2 if self._is_block else 1):
            return False
        if self._announces(lines[0]):
            return True
        head = lines[0] if lines[0].flaws else None
        flaws, num_tokens = (
            (head.flaws, head.num_tokens)
            if head is not None
            else (flaws, sum(line.num_tokens for line in lines))
        )
        is_dense = flaws * 6 >= num_tokens
        first = lines[0].first
        # Some models write END behind a query.
        if first is None or first.text not in KEYWORDS or first.text == "END":
            return is_dense
        if self._style(first) == "title" and not self._is_title_case:
            return True
        # Words that SQL has as well: one or two that do not fit are mistakes.
        return flaws >= 3 and flaws * 3 >= num_tokens

    def _is_prose_line(self, line: _Line) -> bool:
        """Whether a line with none that is empty before it is prose."""
        first = line.first
        if first is None or self._is_block or not line.is_complete_before:
            return False
        if self._announces(line):
            return True
        if line.flaws < 2 or line.flaws * 4 < line.num_tokens or line.flaws <= 2 * line.num_strong:
            return False
        if first.text not in KEYWORDS:
            return True
        return self._style(first) == "title" and (
            not self._is_title_case or line.flaws * 3 >= line.num_tokens
        )

    @staticmethod
    def _announces(line: _Line) -> bool:
        """Whether a line ends in a colon, as no line of SQL does."""
        return line.flaws > 0 and line.last is not None and line.last.text == ":"

    @property
    def _is_title_case(self) -> bool:
        """Whether the query writes its keywords like `Select`."""
        first = next((line.first for line in self._lines if line.first is not None), None)
        return first is not None and self._style(first) == "title"

    def _style(self, word: Token) -> str:
        written = self._text[word.start : word.end]
        return "upper" if written.isupper() else "lower" if written.islower() else "title"

    @staticmethod
    def _is_lone_or(lines: list[_Line], behind: list[_Line]) -> bool:
        """Whether the lines are the word "or" between two proposals."""
        first, follows = (
            next((line.first.text for line in part if line.first is not None), None)
            for part in (lines, behind)
        )
        is_alone = sum(line.num_tokens for line in lines) == 1
        return is_alone and first == "OR" and follows in _QUERY_WORDS

    def _is_alias(self, lines: list[_Line], end: int) -> bool:
        """Whether a lone word behind an empty line is a name that the query before it uses."""
        word = lines[0].first if lines else None
        if word is None or sum(line.num_tokens for line in lines) > 1:
            return False
        name = re.escape(self._text[word.start : word.end])
        start = self._lines[0].start
        return re.search(rf"(?<!\w){name}\s*+\.", self._text[start:end], re.IGNORECASE) is not None
