"""`extract_sql`: the SQL in what a model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sense_trl.sql.reading import read_query, scan_tokens

# Behind the marks of reasoning, which may be of any length. The engines refuse longer texts.
_MAX_ANSWER_CHARS: Final = 200_000
# A first impression of a query.
_MAX_GLANCE_TOKENS: Final = 120
_MAX_CANDIDATES: Final = 100
_MAX_LINES: Final = 5_000
_MAX_JSON_STARTS: Final = 8
_MAX_JSON_DEPTH: Final = 6

# ---------------------------------------------------------------------- marks around the answer

# Tags of reasoning in any of the brackets that models use.
_REASONING_TAG: Final = re.compile(
    r"<(?P<close>/?)(?:think|thinking|thoughts?|reasoning|reason|analysis|scratchpad|reflection"
    r"|rationale|cot|plan|draft)>"
    r"|\[(?P<close_2>/?)THINK(?:ING)?\]"
    r"|<\|(?P<close_3>end|begin)_of_thought\|>"
    r"|<(?P<open_5>\|channel)>|<(?P<close_5>channel\|)>"
    r"|\u25c1(?P<close_4>/?)think\u25b7",
    re.I,
)
_OPENED_ANSWER: Final = re.compile(r"<(?:answer|final_answer|final_sql|final_query)>", re.I)
# Channels of one model family: everything but the final one is reasoning.
_CHANNEL: Final = re.compile(r"<\|channel\|>[ \t]*(\w+)[^<]{0,80}<\|message\|>", re.I)
_ANSWER_TAG: Final = re.compile(
    r"<(?P<close>/?)(?P<name>answer|final_answer|final_sql|final_query|final|solution|response"
    r"|output|result|sql_query|sqlquery|sql|query|code)>"
    r"|(?:^[ \t]*|(?<=\n))\[(?P<open_2>SQL|ANSWER)\]|\[/(?P<close_2>SQL|ANSWER)\]",
    re.I,
)
_SQL_TAGS: Final = frozenset({"sql_query", "sqlquery", "sql", "query", "code"})
_CONTROL_TOKEN: Final = re.compile(
    r"<\|(?P<inner>[^|<>\n]{1,40})\|>|<\uff5c(?P<inner_2>[^\uff5c<>\n]{1,40})\uff5c>"
    r"|<\|turn>|<turn\|>"
    r"|</?s>|(?P<inst>\[/?INST\])|<</?SYS>>|<(?:start|end)_of_turn>|<(?:eos|bos|pad|unk|eot)>"
    r"|\[(?:BOS|EOS|PAD|UNK)\]",
    re.I,
)
_ANSWERING_ROLES: Final = frozenset({"assistant", "model", "ai", "bot", "gpt"})
_ROLE: Final = re.compile(r"\s*(system|user|human|assistant|model|ai|bot|gpt)\s*(?:\n|\Z)", re.I)
# A mark within a string is a part of the data. An apostrophe stands behind a letter.
_STRING_OF_A_LINE: Final = re.compile(r"(?<!\w)'(?:[^'\n]|''){0,200}+'(?!\w)")
_ESCAPED_BREAK: Final = re.compile(r"(?<!\w)'(?:[^'\n]|'')*+'|\\r\\n|\\n|\\t")

# ---------------------------------------------------------------------- fences

_FENCE: Final = re.compile(r"`{3,}+|~{3,}+")
# A word after the fence is a language only where the line ends behind it, or where it names SQL.
_INFO: Final = re.compile(
    r"[ \t]*+(?:([A-Za-z][\w+.-]*+)[^\n`]{0,40}\r?\n|(sqlite3?|sql|duckdb|postgresql|postgres)\b)?",
    re.I,
)
_SQL_LANGUAGE: Final = re.compile(
    r"(?:\w*sql\w*|sqlite\d?|duckdb|postgres|oracle|db2|mariadb|snowflake|redshift|bigquery|)\Z"
)
_ALTERNATIVE: Final = re.compile(
    r"\b(?:alternative(?:ly)?|another\s+(?:way|option|approach|version|query|possib\w+|variant)"
    r"|other\s+(?:way|option|approach|version)|(?:you|we|one)\s+(?:can|could|may|might)\s+also"
    r"|(?:option|method|approach|version|solution|way)\s*#?\s*(?:[2-9]|two|three|b|c|ii)\b"
    r"|could\s+also|can\s+also\s+be|equivalent(?:ly)?|variation|variant|optional(?:ly)?"
    r"|if\s+you\s+(?:want|need|prefer|also|only|wish|would|have|are)|for\s+comparison|or\s*:"
    r"|\bif\b[^.\n]{1,120}\buse\b|alternativ\w*|stattdessen|falls|autrement|sinon|otra\s+forma"
    r"|\b(?:si|se)\s+(?:vous|quieres|desea|vuoi|voc\u00ea)"
    r"|\u6216\u8005|\u4e5f\u53ef\u4ee5|\u53e6\u4e00\u79cd|\u53e6\u5916"
    r"|to\s+(?:verify|check|test|debug|confirm)|sanity\s+check|(?:do\s+not|don't|never|avoid|not)"
    r"\s+(?:use|run|write|do|using|this|like)|avoid|instead\s+of"
    r"|(?:wrong|incorrect|naive|bad|common\s+mistake|broken|slower|first|initial|draft|partial"
    r"|original|old|previous|subquery|sub-query)\s*(?:query|way|approach|version|attempt|example"
    r"|sql|draft|try|step|idea|one)?\s*(?:is|would\s+be|was|looks\s+like|might\s+be)?[^.\n]{0,30}:"
    r"|in\s+(?:mysql|postgres\w*|oracle|sql\s+server|t-sql|bigquery))",
    re.I,
)
_FINAL: Final = re.compile(
    r"\u6700\u7ec8|\u4fee\u6b63|\u6b63\u786e"
    r"|\b(?:endg\u00fcltig|korrigiert|corrig|corregid|definitiv)\w*"
    r"|\b(?:final(?:ly|e)?|corrected|correct\s+(?:query|sql|one|version)|fixed|revised|improved"
    r"|complete\s+(?:query|sql)|full\s+(?:query|sql)|answer\s+is|the\s+answer|(?:sql|query)\s+is"
    r"|put(?:ting)?\s+(?:it|this|everything|all)[\w\s]{0,12}together|combin\w+|overall"
    r"|wait|actually|should\s+be|so\s+the\s+query)\b|\banswer\s*:",
    re.I,
)

# ---------------------------------------------------------------------- statements

_HEAD: Final = re.compile(r"(?:\s++|--[^\n]*+|/\*(?:[^*]++|\*(?!/))*+\*/)*+")
_OPEN: Final = re.compile(r"(?:[\s(]++|--[^\n]*+|/\*(?:[^*]++|\*(?!/))*+\*/)*+")
_QUERY_WORD: Final = re.compile(r"(?:SELECT|WITH|VALUES|FROM)\b", re.I)
# What a line may begin with before its query: marks of lists, quotes and headings, a label.
_LINE_MARKS: Final = re.compile(
    r"[ \t>]*+(?:(?:[-*+\u2022]|\d{1,3}[.)]|#{1,6})[ \t]++)*+"
    r"(?P<wrap>\*\*|__|\*|`{1,2}|[\"'])?[ \t]*"
)
_LABEL: Final = re.compile(
    r"[ \t>]*+(?:(?:[-*+\u2022]|\d{1,3}[.)]|#{1,6})[ \t]++)*+[*_]{0,3}"
    r"(?P<label>[^\n:`\"';]{1,80}?)[ \t]*[*_]{0,3}:[ \t]*[*_]{0,3}[ \t]*"
    r"(?P<wrap>\*\*|`{1,2}|[\"'])?[ \t]*"
)
_BARE_HEADING: Final = re.compile(
    r"[ \t]*+(?:#{1,6}[ \t]++|[*_]{2,3})(?P<label>[^\n:`\"';*_]{1,80}?)[*_]{0,3}[ \t]*$", re.M
)
_SQL_LABEL: Final = re.compile(r"\b(?:sql\w*|query|answer|statement|solution|code|output)\b", re.I)
_FINAL_WORD: Final = re.compile(r"\b(?:final|corrected|revised|fixed|complete|improved)\b", re.I)
_FINAL_LABEL: Final = re.compile(
    r"\b(?:final|corrected|revised|fixed|complete|improved)\b.*\b(?:sql\w*|query|answer|statement"
    r"|solution|version|code)\b"
    r"|\A[\W_]*(?:final|corrected|revised|fixed|improved)(?:\s+(?:version|one))?\W*\Z",
    re.I,
)
_INLINE_CODE: Final = re.compile(
    r"``(?P<double>[^`\n]++(?:`(?!`)[^`\n]*+)*+)``|`(?P<single>[^`]++)`"
)
_QUERY_HEAD: Final = re.compile(r"[\s(]{0,20}+(?:SELECT|WITH|VALUES)\b", re.I)
_LINE_START: Final = re.compile(r"^[ \t]*+", re.M)
# What a query has and a sentence has not.
_STRONG: Final = re.compile(r"[*,=<>(]|\w\.\w|\bFROM\b")
_WHITE: Final = " \t\r\n\f\v\ufeff\u200b"
_EMBEDDED: Final = re.compile(r"\b(?:SELECT|WITH|VALUES)\b", re.I)
# Any other statement a model may write. Text that starts with one is not searched for a query
# inside it: `DELETE FROM t; SELECT 1` must not come out as `SELECT 1`. Each is told by its second
# token, comments left out; where that may be any, `_NAMED`.
_NAMED: Final = frozenset({"word", "name"})
_STATEMENTS: Final[dict[str, frozenset[str]]] = {
    "INSERT": frozenset({"OR", "INTO", "OVERWRITE"}),
    "UPDATE": _NAMED,
    "DELETE": frozenset({"FROM"}),
    "REPLACE": frozenset({"INTO"}),
    "MERGE": frozenset({"INTO"}),
    "CREATE": frozenset(
        {
            "OR", "TEMP", "TEMPORARY", "TABLE", "VIEW", "INDEX", "UNIQUE", "TRIGGER", "VIRTUAL",
            "SCHEMA", "MACRO", "FUNCTION", "SEQUENCE", "TYPE", "SECRET", "DATABASE", "PROCEDURE",
        }
    ),
    "DROP": frozenset(
        {
            "TABLE", "VIEW", "INDEX", "TRIGGER", "SCHEMA", "MACRO", "FUNCTION", "SEQUENCE", "TYPE",
            "SECRET", "DATABASE", "PROCEDURE",
        }
    ),
    "ALTER": frozenset({"TABLE", "VIEW", "SEQUENCE", "DATABASE"}),
    "EXPLAIN": frozenset(
        {"QUERY", "ANALYZE", "SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "REPLACE"}
    ),
    "BEGIN": frozenset({";", "TRANSACTION", "IMMEDIATE", "DEFERRED", "EXCLUSIVE"}),
    "COPY": _NAMED | {"("},
    "EXPORT": frozenset({"DATABASE"}),
    "IMPORT": frozenset({"DATABASE"}),
    "SET": _NAMED,
    "CALL": _NAMED,
}  # fmt: skip
# What has to stand behind the name of those which sentences begin with, too.
_BEHIND_NAMED: Final = {
    "UPDATE": frozenset({"SET"}),
    "COPY": frozenset({"TO", "FROM"}),
    "SET": frozenset({"="}),
    "CALL": frozenset({"("}),
}
_UNMISTAKABLE: Final = frozenset(
    {
        "ATTACH", "DETACH", "PRAGMA", "VACUUM", "REINDEX", "ANALYZE", "COMMIT", "ROLLBACK",
        "SAVEPOINT", "RELEASE", "INSTALL", "LOAD", "GRANT", "TRUNCATE",
    }
)  # fmt: skip
# Words of sentences, unless they are written in capitals and a semicolon follows soon.
_MISTAKABLE: Final = frozenset(
    {
        "END", "EXEC", "EXECUTE", "PREPARE", "DEALLOCATE", "DO", "DECLARE", "USE", "CHECKPOINT",
        "FORCE", "RESET", "COMMENT", "PIVOT", "UNPIVOT", "SHOW", "DESCRIBE", "DESC", "REVOKE",
        "LOCK", "UNLOCK", "KILL", "START", "ABORT", "SUMMARIZE",
    }
)  # fmt: skip
# "PRAGMA is not needed."
_VERBS_OF_SENTENCES: Final = frozenset(
    {"IS", "ARE", "WAS", "WILL", "WOULD", "CAN", "MAY", "SHOULD", "MUST", "DOES", "NOT", "HAS"}
)
_VERB: Final = re.compile(
    rf"\b(?:{'|'.join(sorted(_STATEMENTS.keys() | _UNMISTAKABLE | _MISTAKABLE))})\b", re.I
)
_MANIPULATIONS: Final = frozenset({"INSERT", "REPLACE", "UPDATE", "DELETE", "MERGE"})
_WITH: Final = re.compile(r"WITH\b", re.I)
_MAX_WITH_TOKENS: Final = 5_000
_MAX_STATEMENT_CHARS: Final = 2_000
_SOON: Final = re.compile(r"[^.:\n;]{0,60}+(?:;|\Z)")
_NAME: Final = r"(?:[\w.]+|\"[^\"]*\"|`[^`]*`|\[[^\]]*\])(?:\.(?:\w+|\"[^\"]*\"|`[^`]*`))?"
_QUOTED_TABLE: Final = re.compile(
    rf"CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(?P<name>{_NAME})\s*(?=\()", re.I
)
# What may follow in a quoted schema: keys, and rows of the tables that it creates.
_QUOTED_ADDITION: Final = re.compile(
    r"(?:CREATE\s+(?:UNIQUE\s+)?INDEX|ALTER\s+TABLE\s+\S+\s+ADD\s+"
    rf"(?:CONSTRAINT|FOREIGN|PRIMARY|UNIQUE)|INSERT\s+INTO\s+(?P<name>{_NAME}))",
    re.I,
)
_BEHIND_TABLE: Final = re.compile(r"[^;\n(]{0,200}+(?:;|\n|\Z)")
_JSON_START: Final = re.compile(r"\{\s*+\"|\[\s*+[\"{]")
_JSON_FIELDS: Final = (
    "final_sql", "predicted_sql", "sql", "sql_query", "sqlquery", "query", "final_answer",
    "answer", "prediction", "pred_sql", "pred", "completion", "code", "result", "output",
)  # fmt: skip


def extract_sql(text: str) -> str:
    """Take the SQL out of a model's answer.

    What is looked at, from the outside to the inside:

    1. Reasoning (`<think>...</think>` and its like) is no answer. Where it is never closed there is
       none; where it was opened in the prompt all before its end is reasoning.
    2. Of a conversation with control tokens (`<|im_end|>`, `</s>`, `[/INST]`, ...) the first turn
       of the model counts; of tags (`<answer>`, `<sql>`, ...) the last one that holds anything.
    3. A fenced block is the answer as a whole, with its empty lines and comments. Of several the
       last one with a complete query wins, unless the text before one calls it final, or calls it
       an alternative, a check or a mistake.
    4. Elsewhere a query begins behind marks and labels (`**SQL:**`, `- `, `> `), at the first of:
       the beginning, a label that calls it final, a label such as `SQL:`, a line, inline code, the
       middle of a line. A sentence that begins with one of SQL's words is no query, as `read_query`
       tells. `CREATE TABLE` statements before it, as a schema is quoted, and a JSON object around
       it (`{"sql": ...}`) are taken off.
    5. It ends where `read_query` says: at `;`, or before prose.

    Nothing is repaired. A text that starts with another statement, and a query that is followed by
    another statement, are returned whole, so that the engine refuses them. A text without a query
    comes back as it is, and the result may be empty: an answer without SQL is wrong, not an error.
    Texts that the engines refuse for their length (200,000 characters) come back unsearched. The
    time taken is linear in the length of the text.

    Returns:
        A piece of the text, unchanged; of JSON, and of a text on one line with `\\n` spelled out,
        what it stands for.

    Example:
        >>> extract_sql("<think>SELECT 1?</think>```sql\\nSELECT a\\nFROM t\\n\\nWHERE b;\\n```")
        'SELECT a\\nFROM t\\n\\nWHERE b'
    """
    answer = _without_reasoning(text).strip()
    if len(answer) > _MAX_ANSWER_CHARS:
        return answer
    answer = _from_tags(_from_turns(_with_breaks(answer))).strip()
    blocks = list(_find_blocks(answer))
    found = _choose(blocks)
    if found is None:
        found = next(filter(None, map(_find, _outside(blocks, answer))), None)
    if found is not None:
        return found.sql
    filled = [block.body.strip() for block in blocks if block.body.strip()]
    return filled[0] if filled else answer


# ---------------------------------------------------------------------- marks around the answer


def _marks(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The matches of `pattern` that do not stand within a string."""
    found = list(pattern.finditer(text))
    if not found or "'" not in text:
        return found
    strings = [match.span() for match in _STRING_OF_A_LINE.finditer(text)]
    kept, index = [], 0
    for match in found:
        while index < len(strings) and strings[index][1] <= match.start():
            index += 1
        if index == len(strings) or match.start() < strings[index][0]:
            kept.append(match)
    return kept


def _without_reasoning(text: str) -> str:
    final = None
    for channel in _CHANNEL.finditer(text):
        final = channel
    if final is not None:
        return text[final.end() :] if final.group(1).lower() == "final" else ""
    kept: list[str] = []
    position, is_open = 0, False
    for tag in _marks(_REASONING_TAG, text):
        closes = next((g for g in tag.groups() if g is not None), "") in (
            "/",
            "end",
            "END",
            "channel|",
        )
        if closes:
            if is_open:
                is_open = False
            elif text[tag.end() :].strip():
                # It was opened in the prompt.
                kept.clear()
            else:
                kept.append(text[position : tag.start()])
        elif not is_open:
            kept.append(text[position : tag.start()])
            is_open = True
        position = tag.end()
    if is_open:
        # A tag that opens the answer ends the reasoning, too.
        answer = _OPENED_ANSWER.search(text, position)
        position = len(text) if answer is None else answer.start()
    kept.append(text[position:])
    return "".join(kept)


def _from_turns(text: str) -> str:
    """The first turn of the model, without control tokens."""
    tokens = _marks(_CONTROL_TOKEN, text)
    if not tokens:
        return text
    role: str | None = None
    ends = [token.start() for token in tokens] + [len(text)]
    starts = [0] + [token.end() for token in tokens]
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if index > 0:
            token = tokens[index - 1]
            inner = (token.group("inner") or token.group("inner_2") or "").lower()
            if token.group("inst"):
                role = "user" if token.group("inst").upper() == "[INST]" else "assistant"
            elif inner in _ANSWERING_ROLES or inner in ("user", "system"):
                role = inner
        piece = text[start:end]
        named = _ROLE.match(piece) if index > 0 else None
        if named:
            role = named.group(1).lower()
            piece = piece[named.end() :]
        if piece.strip() and (role is None or role in _ANSWERING_ROLES):
            return piece
    return ""


def _from_tags(text: str) -> str:
    """The content of the last pair of tags; a tag that is never closed holds the rest."""
    tags = _marks(_ANSWER_TAG, text)
    if not tags:
        return text
    contents: list[tuple[bool, str]] = []
    opened: dict[str, int] = {}
    first_close: int | None = None
    for tag in tags:
        name = (tag.group("name") or tag.group("open_2") or tag.group("close_2")).lower()
        if tag.group("open_2") or tag.group("close") == "":
            opened[name] = tag.end()
        elif name in opened:
            contents.append((name in _SQL_TAGS, text[opened.pop(name) : tag.start()]))
        elif first_close is None:
            first_close = tag.start()
    contents = [(is_sql, content) for is_sql, content in contents if content.strip()]
    for is_sql in (False, True):
        last = next((c for sql, c in reversed(contents) if sql is is_sql), None)
        if last is not None:
            return last if is_sql else _from_tags(last)
    if opened:
        return text[max(opened.values()) :]
    return text[:first_close] if first_close is not None else text


def _with_breaks(text: str) -> str:
    """`text` with its line breaks, where it is a JSON string or spells them out on one line."""
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        try:
            value = json.loads(text, strict=False)
        except ValueError:
            value = None
        if isinstance(value, str):
            return value
    if "\n" in text or "\\n" not in text:
        return text
    spelled = {"\\n": "\n", "\\r\\n": "\n", "\\t": " "}
    return _ESCAPED_BREAK.sub(lambda match: spelled.get(match.group(), match.group()), text)


# ---------------------------------------------------------------------- fences


@dataclass(frozen=True, slots=True)
class _Block:
    """A fenced block, and the prose since the one before it."""

    body: str
    prose: str
    start: int
    end: int
    is_closed: bool
    language: str = ""


def _find_blocks(text: str) -> Iterator[_Block]:
    marks = _marks(_FENCE, text)
    position = 0
    if len(marks) % 2 and _is_continued_block(text, marks[0]):
        # The fence was opened in the prompt.
        yield _Block(text[: marks[0].start()], "", 0, marks[0].end(), True)
        position, marks = marks[0].end(), marks[1:]
    for opening, closing in zip(marks[::2], [*marks[1::2], None], strict=False):
        info = _INFO.match(text, opening.end())
        assert info is not None
        start = info.end() if info.group(1) or info.group(2) else opening.end()
        end, behind = (len(text),) * 2 if closing is None else closing.span()
        if start > end:
            start = opening.end()
        yield _Block(
            text[start:end],
            text[position : opening.start()],
            opening.start(),
            behind,
            closing is not None,
            (info.group(1) or info.group(2) or "").lower(),
        )
        position = behind


def _is_continued_block(text: str, first: re.Match[str]) -> bool:
    behind = text[first.end() : first.end() + 1]
    return behind in ("", "\n", "\r", " ") and _is_query(text, 0)


def _outside(blocks: Iterable[_Block], text: str) -> Iterator[str]:
    """The text between the blocks that hold anything."""
    position = 0
    for block in blocks:
        if block.body.strip():
            yield text[position : block.start]
            position = block.end
    yield text[position:]


def _choose(blocks: Iterable[_Block]) -> _Found | None:
    """The block that is the answer."""
    found = [(block, _find(_unquoted(block.body), is_block=block.is_closed)) for block in blocks]
    usable = [(block, sql) for block, sql in found if sql is not None]
    if not usable:
        return None
    complete = [(block, sql) for block, sql in usable if sql.is_complete] or usable
    # A program that runs the query, or its result, is not the answer where that stands by itself.
    complete = [pair for pair in complete if _SQL_LANGUAGE.match(pair[0].language)] or complete
    # Nor is a piece of it in the middle of a sentence.
    complete = [p for p in complete if p[0].language or "\n" in p[0].body] or complete
    cues = [_cue(block) for block, _ in complete]
    final = [pair for pair, cue in zip(complete, cues, strict=True) if cue == "final"]
    plain = [pair for pair, cue in zip(complete, cues, strict=True) if cue != "alternative"]
    chosen, sql = (final or plain or complete)[-1]
    for block, other in usable:
        # Nor is a statement that must be refused hidden by the query behind it.
        if block.start < chosen.start and other.is_other and _cue(block) != "alternative":
            return other
    return sql


def _unquoted(body: str) -> str:
    """A block that stands in a quotation, without the marks of its lines."""
    lines = body.strip().split("\n")
    if len(lines) < 2 or not all(line.lstrip().startswith(">") for line in lines):
        return body
    return "\n".join(line.lstrip()[1:].removeprefix(" ") for line in lines)


def _cue(block: _Block) -> str | None:
    """The text's own word on a block: `"final"`, `"alternative"` or none."""
    head = _HEAD.match(block.body)
    comment = head.group() if head else ""
    paragraphs = block.prose.strip().split("\n\n")
    words = f"{paragraphs[-1][-300:]}\n{comment[:300]}"
    if _FINAL.search(words):
        return "final"
    return "alternative" if _ALTERNATIVE.search(words) else None


# ---------------------------------------------------------------------- queries


@dataclass(frozen=True, slots=True)
class _Found:
    """SQL in a text.

    Attributes:
        sql: it.
        is_complete: it is a query that could end where it ends.
        is_other: it is, or is followed by, another statement.
    """

    sql: str
    is_complete: bool
    is_other: bool = False


def _find(text: str, *, is_block: bool = False) -> _Found | None:
    """The query in a text without fences; `None` where there is none."""
    text = text.strip(_WHITE)
    behind_schema = _skip_schema(text)
    if behind_schema:
        if not text[behind_schema:].strip(_WHITE):
            return None
        found = _find(text[behind_schema:], is_block=is_block)
        return _Found(text, False, True) if found is None else found
    label = _LABEL.match(text)
    start = label.end() if label and _SQL_LABEL.search(label.group("label")) else 0
    if _is_other_statement(text, start):
        return _Found(text[start:], False, True)
    candidate: _Candidate | None
    is_direct = _is_query(text, 0)
    candidates = [] if is_direct and not _FINAL_WORD.search(text) else _line_candidates(text)
    for candidate, label_text in candidates:
        if _FINAL_LABEL.search(label_text):
            return _cut(text, candidate, is_block)
    if is_direct:
        return _cut(text, _Candidate(0, len(text)), is_block)
    if text.startswith(("{", "[")) and (found := _from_json(text)):
        return found
    labelled = [candidate for candidate, name in candidates if _SQL_LABEL.search(name)]
    for candidate in labelled or [candidate for candidate, _ in candidates]:
        return _cut(text, candidate, is_block)
    if found := _from_json(text):
        return found
    candidate = _embedded_candidate(text)
    return None if candidate is None else _cut(text, candidate, is_block)


def _cut(text: str, candidate: _Candidate, is_block: bool) -> _Found:
    """The query that begins at a candidate, up to its end."""
    start, limit = candidate.start, candidate.end
    if (hidden := _hidden_statement(text, start)) is not None:
        return _Found(text[hidden:].strip(), False, True)
    reading = read_query(text, start, limit, is_block=is_block)
    behind = text[reading.end : limit].lstrip(f"\0;{_WHITE}")
    # Behind `;` any further statement counts. Behind an empty line a further query is a second
    # proposal, and dropped like the prose around it.
    is_next_schema = reading.separator == "\n" and not is_block and _skip_schema(behind) > 0
    if (_is_other_statement(behind, 0) and not is_next_schema) or (
        reading.separator == ";" and _is_query(behind, _skip_comments(behind))
    ):
        return _Found(text[start:limit].strip(), False, True)
    sql = text[start : reading.end].strip(_WHITE)
    if candidate.is_in_sentence and reading.sentence_end is not None:
        sql = text[start : reading.sentence_end].strip(_WHITE)
    if candidate.is_embedded and sql.endswith(".") and not sql.endswith(".."):
        # The end of the sentence.
        sql = sql[:-1]
    is_complete = reading.is_closed and reading.is_plausible
    return _Found(sql, is_complete and "..." not in sql and "\u2026" not in sql)


def _skip_comments(text: str, start: int = 0) -> int:
    match = _HEAD.match(text, start)
    return match.end() if match else start


def _is_other_statement(text: str, start: int) -> bool:
    start = _skip_comments(text, start)
    while text.startswith((";", "("), start):
        start = _skip_comments(text, start + 1)
    verb = _VERB.match(text, start)
    if verb is None:
        return _WITH.match(text, start) is not None and _changes_data(text, start)[0]
    written, word = verb.group(), verb.group().upper()
    end = min(len(text), start + _MAX_STATEMENT_CHARS)
    tokens = [
        token
        for token in islice(scan_tokens(text, verb.end(), end), 12)
        if token.kind not in ("comment", "line", "blank")
    ]
    second = tokens[0] if tokens else None
    if second is None and end < len(text):
        # A comment of that length is no prose.
        return True
    soon = _SOON.match(text, verb.end())
    if word in _UNMISTAKABLE:
        # Written like the first word of a sentence, only where a statement ends soon.
        if second is not None and second.text in _VERBS_OF_SENTENCES:
            return False
        if written.istitle() and not (second and second.kind in ("string", "name")):
            return soon is not None
        return text[verb.end() : verb.end() + 1] not in (":", ",", ".")
    if word == "BEGIN" and second is None:
        return True
    if second is not None and not {second.text, second.kind}.isdisjoint(_STATEMENTS.get(word, ())):
        third = None if second.kind == "(" else _BEHIND_NAMED.get(word)
        if third is None or any(token.text in third for token in tokens[1:7]):
            return True
    # Some models write END behind the last semicolon.
    return soon is not None and written.isupper() and (word != "END" or soon.group().endswith(";"))


def _changes_data(text: str, start: int) -> tuple[bool, int]:
    """Tell whether the CTEs from `start` on belong to another statement, and where they end."""
    depth, previous, end = 0, "", start
    for token in islice(scan_tokens(text, start), _MAX_WITH_TOKENS):
        end = token.end
        if token.kind in ("comment", "line", "blank"):
            continue
        if depth == 0 and token.kind == "word":
            if previous == ")" and token.text != "AS":
                return token.text in _MANIPULATIONS, end
            if previous == "name" and token.text not in ("AS", "NOT", "MATERIALIZED"):
                # A sentence.
                return False, end
        depth += (token.kind == "(") - (token.kind == ")")
        is_keyword = token.text in ("WITH", "RECURSIVE", "AS", "NOT", "MATERIALIZED")
        previous = "name" if token.kind in _NAMED and not is_keyword else token.kind
    return False, end


def _hidden_statement(text: str, end: int) -> int | None:
    """Start of a statement that is no query, on a line before `end` or at it."""
    tables: set[str] = set()
    scanned = line_start = 0
    for line in islice(_LINE_START.finditer(text, 0, end + 1), _MAX_LINES):
        start = line_start = line.end()
        marks = _LINE_MARKS.match(text, start)
        behind_marks = start if marks is None else marks.end()
        if _WITH.match(text, start):
            if start < scanned:
                continue
            changes, scanned = _changes_data(text, start)
            if changes:
                return start
        elif behind_marks > start:
            # In a list, words about statements look like them.
            if text.find(";", behind_marks, min(end, _line_end(text, start))) >= 0 and (
                _is_other_statement(text, behind_marks)
            ):
                return behind_marks
        elif not _VERB.match(text, start) or not _is_other_statement(text, start):
            continue
        elif table := _QUOTED_TABLE.match(text, start):
            tables.add(table.group("name"))
        elif not _is_addition(text, start, tables):
            return start
    if text[line_start:end].rstrip().endswith(";"):
        for verb in islice(_VERB.finditer(text, line_start, end), _MAX_CANDIDATES):
            if _is_other_statement(text, verb.start()):
                return verb.start()
    return None


def _is_query(text: str, start: int, end: int | None = None) -> bool:
    """Whether a query begins at `start`, and not a sentence with one of its words."""
    opening = _OPEN.match(text, start)
    word = _QUERY_WORD.match(text, opening.end() if opening else start)
    if word is None:
        return False
    reading = read_query(text, start, end, max_tokens=_MAX_GLANCE_TOKENS)
    if reading.num_tokens < 2 or not reading.is_plausible:
        return False
    keyword = word.group()
    if keyword.upper() == "SELECT":
        return True
    if keyword.upper() == "FROM":
        # DuckDB's form without SELECT at its head.
        return reading.flaws == 0 and reading.is_closed and keyword in ("FROM", "from")
    return "(" in text[word.end() : reading.end]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A place where a query begins, and the latest end of the text around it.

    It is embedded where something stands before it on its line: a label or, in a sentence, words.
    """

    start: int
    end: int
    is_embedded: bool = False
    is_in_sentence: bool = False


def _line_candidates(text: str) -> list[tuple[_Candidate, str]]:
    """Queries that begin a line, with the label before each, which is `""` where there is none."""
    candidates: list[tuple[_Candidate, str]] = []
    heading, num_seen = "", 0
    for line in islice(_LINE_START.finditer(text), _MAX_LINES):
        start = line.end()
        end_of_line = _line_end(text, start)
        if start == end_of_line:
            continue
        label = heading
        found = _LINE_MARKS.match(text, start)
        if found is None or not _QUERY_HEAD.match(text, found.end()):
            if found := _LABEL.match(text, start, end_of_line):
                label = found.group("label")
                if not text[found.end() : end_of_line].strip(" \t*_`"):
                    heading = label
                    continue
            elif bare := _BARE_HEADING.match(text, start):
                heading = bare.group("label")
                continue
        heading = ""
        if found is None or not _QUERY_HEAD.match(text, found.end()):
            continue
        num_seen += 1
        if num_seen > _MAX_CANDIDATES:
            break
        position = found.end()
        end = _wrapped_end(text, position, end_of_line, found.group("wrap"))
        if _is_query(text, position, end):
            is_embedded = found.re is _LABEL
            candidates.append((_Candidate(position, end, is_embedded), label))
    return candidates


def _embedded_candidate(text: str) -> _Candidate | None:
    """The first query in inline code, else in the middle of a line."""
    for code in islice(_INLINE_CODE.finditer(text), _MAX_CANDIDATES):
        start, end = code.span("single" if code.group("double") is None else "double")
        if _QUERY_HEAD.match(text, start) and _is_query(text, start, end):
            return _Candidate(start, end)
    words = list(islice(_EMBEDDED.finditer(text), _MAX_CANDIDATES))
    for word in words:
        if word.group().isupper():
            start = word.start()
            before = text[start - 1 : start]
            quote = before if before in ("'", '"') else None
            if text.endswith("**", 0, start):
                quote = "**"
            end = _wrapped_end(text, start, _line_end(text, start), quote)
            reading = read_query(text, start, end, max_tokens=_MAX_GLANCE_TOKENS)
            behind = end if reading.sentence_end is None else reading.sentence_end
            line_start = text.rfind("\n", 0, start) + 1
            is_in_sentence = bool(text[line_start:start].strip(" \t("))
            if not is_in_sentence:
                # A broken query is not mended by leaving out what is wrong with it.
                behind = end
            if _is_query(text, start, end) or (
                _is_query(text, start, behind) and _STRONG.search(text[start:behind])
            ):
                return _Candidate(start, end, True, is_in_sentence)
    for word in words:
        # In lower case they are words of sentences as well.
        start = word.start()
        reading = read_query(text, start, max_tokens=_MAX_GLANCE_TOKENS)
        written = text[start : reading.end]
        if reading.flaws == 0 and _STRONG.search(written) and _is_query(text, start):
            return _Candidate(start, len(text), True)
    # A broken query is still the answer, where there is no other.
    broken = (word for word in words if word.group() == "SELECT" or word.start() == 0)
    return next((_Candidate(word.start(), len(text), True) for word in broken), None)


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _wrapped_end(text: str, start: int, end_of_line: int, wrap: str | None) -> int:
    """Position of the mark that closes a wrapped query; the end of the text without one."""
    if not wrap:
        return len(text)
    if wrap.startswith("`"):
        close = text.find(wrap, start)
        if close >= 0 and not _is_query(text, start, close):
            # Names in the query are in backticks, too.
            close = text.rfind(wrap, start, end_of_line)
    else:
        close = text.rfind(wrap, start, end_of_line)
        if close < 0:
            close = text.find(wrap, start) if wrap in ("**", "__") else -1
        if close < 0 and text.endswith(wrap):
            close = len(text) - len(wrap)
    return len(text) if close < 0 else close


def _skip_schema(text: str) -> int:
    """Position behind the `CREATE TABLE` statements of a quoted schema at the head of a text."""
    position = _skip_comments(text)
    behind = 0
    tables: set[str] = set()
    while True:
        if table := _QUOTED_TABLE.match(text, position):
            tables.add(table.group("name"))
            close = _find_token(text, table.end(), ")")
            rest = None if close is None else _BEHIND_TABLE.match(text, close)
            if rest is None:
                return behind
            position = rest.end()
        elif _is_addition(text, position, tables):
            end = _find_token(text, position, ";")
            if end is None:
                return behind
            position = end
        else:
            return behind
        position = behind = _skip_comments(text, position)


def _is_addition(text: str, position: int, tables: set[str]) -> bool:
    """Whether a statement belongs to a schema that creates these tables."""
    addition = _QUOTED_ADDITION.match(text, position) if tables else None
    return addition is not None and addition.group("name") in {None, *tables}


def _find_token(text: str, start: int, kind: str) -> int | None:
    """Position behind the first token of a kind that is outside parentheses."""
    depth = 0
    for token in scan_tokens(text, start):
        depth += (token.kind == "(") - (token.kind == ")")
        if depth == 0 and token.kind == kind:
            return token.end
    return None


def _from_json(text: str) -> _Found | None:
    """The query in a JSON object or array."""
    decoder = json.JSONDecoder(strict=False)
    for start in islice(_JSON_START.finditer(text), _MAX_JSON_STARTS):
        try:
            value, _ = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        sql = _json_answer(value, _MAX_JSON_DEPTH)
        if sql is not None:
            return _Found(extract_sql(sql), True)
    return None


def _json_answer(value: Any, depth: int) -> str | None:
    if depth == 0:
        return None
    if isinstance(value, dict):
        named = {str(name).lower(): part for name, part in value.items()}
        for name in _JSON_FIELDS:
            if isinstance(part := named.get(name), str) and part.strip():
                return part
        parts: Iterable[Any] = value.values()
    elif isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str) and _is_query(value[0], 0):
            return value[0]
        parts = value
    else:
        return None
    found = (_json_answer(part, depth - 1) for part in parts)
    return next((sql for sql in found if sql is not None), None)
