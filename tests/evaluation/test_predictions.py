"""Reading what a model answered."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.evaluation.predictions import count_chat, load_predictions
from sense_trl.pairs import Candidate, CandidateFile
from sense_trl.questions import Question

QUESTIONS = [Question(f"q{n}", "pets", "?", "SELECT 1") for n in (1, 2, 3)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "predictions.txt"


def test_lines_are_taken_in_order_and_without_what_belongs_to_the_layout(file: Path) -> None:
    file.write_bytes(b"SELECT 1\r\n\nSELECT\tname FROM pet\tpets")
    assert load_predictions(file, QUESTIONS) == ["SELECT 1", "", "SELECT\tname FROM pet"]
    # The official script reads up to the first tab, and so does what reproduces it.
    assert load_predictions(file, QUESTIONS, semantics="spider") == ["SELECT 1", "", "SELECT"]
    file.write_text("\ufeffSELECT 1\t----- bird -----\tpets\nSELECT 2\tother\n\tSELECT 3\n")
    assert load_predictions(file, QUESTIONS, semantics="bird") == [
        "SELECT 1",
        "SELECT 2\tother",
        "\tSELECT 3",
    ]
    assert load_predictions(file, QUESTIONS, semantics="spider")[2] == "SELECT 3"


def test_records_are_matched_by_id(file: Path) -> None:
    records = [
        {"question_id": "q3", "prediction": "SELECT 3\tpets"},
        {"question_id": "q1", "sql": None, "predicted_sql": "SELECT 1"},
        {"question_id": "q2", "sql": "", "prediction": "not this"},
    ]
    file.write_text("\n\n" + "\n".join(map(json.dumps, records)))
    for semantics in ("strict", "spider", "bird"):
        answers = load_predictions(file, QUESTIONS, semantics=semantics)
        assert answers == ["SELECT 1", "", "SELECT 3\tpets"]


def test_the_predictions_of_a_stage_are_read(file: Path) -> None:
    candidates = CandidateFile(file)
    for question_id in ("q2", "q3", "q1"):
        sql = f"SELECT '{question_id}'"
        candidates.append(
            question_id, [Candidate(question_id, 0, sql, f"It is {sql}", "weak", "m")]
        )
    assert load_predictions(file, QUESTIONS) == ["SELECT 'q1'", "SELECT 'q2'", "SELECT 'q3'"]
    several = [Candidate("q1", sample, "SELECT 1", "", "weak", "m") for sample in (0, 1)]
    file.unlink()
    CandidateFile(file).append("q1", several)
    with pytest.raises(InputError, match="line 1: 2 candidates for one question"):
        load_predictions(file, QUESTIONS)


LINES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t\ufeff")),
    min_size=3,
    max_size=3,
)


def _looks_like_json(lines: list[str]) -> bool:
    """Whether a file begins as an object or has no line that could not be a broken array's."""
    filled = [line.strip() for line in lines if line.strip()]
    text = "".join(filled)
    marks = ("{", "}", "[", "]", '"')
    is_array = text.startswith("[") and all(line.startswith(marks) for line in filled)
    return is_array or text.startswith(("{", "[{"))


@given(lines=LINES.filter(lambda lines: not _looks_like_json(lines)))
@example(lines=["", "[", "x"])
def test_any_line_comes_back_as_it_was_written(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "predictions.txt"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    assert load_predictions(path, QUESTIONS) == lines


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"SELECT 1\nSELECT 2\n", "has 2 lines for 3 questions"),
        (b"\xff\n", "is not UTF-8 text \\(byte 0\\)"),
        (b'{"question_id": "q1", "sql": "SELECT 1"}\n{', "line 2: invalid JSON .*column 2"),
        (b'{"question_id": ' + b"[" * 100_000, "line 1: invalid JSON"),
        (b'{"question_id": ' + b"9" * 5000, "line 1: invalid JSON"),
        (b'{"question_id": "q1"}\n', "line 1: no field `sql`"),
        (b'{"sql": ""}\n', "line 1: expected an object with a `question_id`"),
        (b'{"question_id": "q9", "sql": ""}\n', "'q9' is not among the questions"),
        (b'{"question_id": "q1", "sql": ""}\n' * 2, "line 2: .*already answered in line 1"),
        (b'{"question_id": "q1", "sql": ""}\n', "answers 1 of 3 questions, .*'q2'"),
    ],
    ids=range(10),
)
def test_what_cannot_be_read_is_named(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_predictions(file, QUESTIONS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`predictions` is .*gone\.txt', which is not a file"):
        load_predictions(tmp_path / "gone.txt", QUESTIONS)


# ---------------------------------------------------------------------- layouts of official scripts

ON_TWO = [
    Question("7", "concerts", "a?", "SELECT 1"),
    Question("8", "concerts", "b?", "SELECT 1"),
    Question("9", "banks", "c?", "SELECT 1"),
]


def _birds(*names: str) -> dict[str, str]:
    return {
        str(number): f"SELECT {number}\t----- bird -----\t{name}"
        for number, name in enumerate(names)
    }


@pytest.mark.parametrize("indent", [None, 2])
def test_birds_object_of_position_to_query_is_read(file: Path, indent: int | None) -> None:
    value: dict[str, object] = {**_birds("concerts", "concerts", "banks")}
    # In any order of its keys.
    file.write_text(json.dumps(dict(reversed(value.items())), indent=indent))
    for semantics in ("strict", "spider", "bird"):
        answers = load_predictions(file, ON_TWO, semantics=semantics)
        assert answers == ["SELECT 0", "SELECT 1", "SELECT 2"]
    # A model that gave no answer; the script takes such an entry for none.
    file.write_text(json.dumps({**value, "1": 0}))
    assert load_predictions(file, ON_TWO) == ["SELECT 0", "", "SELECT 2"]
    by_id = {"7": "SELECT 'a'", "9": "SELECT 'c'", "8": "SELECT\t'b'"}
    file.write_text(json.dumps(by_id))
    assert load_predictions(file, ON_TWO) == ["SELECT 'a'", "SELECT\t'b'", "SELECT 'c'"]


def test_names_behind_tabs_in_json_are_checked_where_order_alone_says_the_question(
    file: Path,
) -> None:
    texts = [f"SELECT {n}\t{question.db_id}" for n, question in enumerate(ON_TWO)]
    for value in (texts, dict(enumerate(texts)), [{"sql": text} for text in texts]):
        file.write_text(json.dumps(value))
        assert load_predictions(file, ON_TWO) == ["SELECT 0", "SELECT 1", "SELECT 2"]
    shifted = [texts[0], texts[1].replace("concerts", "banks"), texts[2]]
    for value in (shifted, dict(enumerate(shifted)), [{"sql": text} for text in shifted]):
        file.write_text(json.dumps(value))
        with pytest.raises(InputError, match=r"1 of 3 predictions name another database"):
            load_predictions(file, ON_TWO)
    file.write_text(json.dumps(["SELECT 0", None, "SELECT\tname"]))
    assert load_predictions(file, ON_TWO) == ["SELECT 0", "", "SELECT\tname"]


def test_one_query_that_was_broken_off_hides_no_other_database(file: Path) -> None:
    file.write_text("SELECT 1\tcars\nSELECT a FROM\tcars\nSELECT 3\tcars\n")
    with pytest.raises(InputError, match="3 of 3 predictions name another database"):
        load_predictions(file, QUESTIONS)


@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_are_read(file: Path, indent: int | None) -> None:
    texts = ["SELECT 'a\n'", "", "SELECT 2\t----- bird -----\tbanks"]
    expected = ["SELECT 'a\n'", "", "SELECT 2"]
    records = [
        {"question_id": q.question_id, "sql": text, "db_id": q.db_id}
        for q, text in zip(ON_TWO, texts, strict=True)
    ]
    unnamed = [{"prediction": text} for text in texts]
    for value in (texts, records, records[::-1], unnamed):
        file.write_text(json.dumps(value, indent=indent))
        assert load_predictions(file, ON_TWO) == expected


def test_empty_lines_count_for_nothing_where_that_makes_the_numbers_agree(file: Path) -> None:
    file.write_text("SELECT 1\tpets\n\nSELECT 2\tpets\nSELECT 3\tpets\n\n\n")
    for semantics in ("strict", "spider", "bird"):
        answers = load_predictions(file, QUESTIONS, semantics=semantics)
        assert answers == ["SELECT 1", "SELECT 2", "SELECT 3"]


def test_a_question_that_a_file_holds_twice_is_answered_once_or_twice(file: Path) -> None:
    copies = [
        Question("7", "pets", "a?", "SELECT 1"),
        Question("8", "pets", "b?", "SELECT 1"),
        Question("7#2", "pets", "a?", "SELECT 1"),
    ]
    lines = [{"question_id": 7, "sql": "A"}, {"question_id": 8, "sql": "B"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert load_predictions(file, copies) == ["A", "B", "A"]
    for again in ({"question_id": 7, "sql": "C"}, {"question_id": "7#2", "sql": "C"}):
        file.write_text("\n".join(map(json.dumps, [*lines, again])))
        assert load_predictions(file, copies) == ["A", "B", "C"]
    file.write_text("\n".join(map(json.dumps, [*lines, lines[0], lines[0]])))
    with pytest.raises(
        InputError, match="line 4: `question_id` '7' was already answered in line 3"
    ):
        load_predictions(file, copies)
    # Only a copy is answered by the answer to another question.
    other = [*copies[:2], Question("7#2", "pets", "c?", "SELECT 1")]
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match="first without an answer is '7#2'"):
        load_predictions(file, other)


# ---------------------------------------------------------------------- databases


@pytest.mark.parametrize(
    "content",
    [
        "SELECT 0\tconcerts\nSELECT 1\tbanks\nSELECT 2\tconcerts\n",
        "SELECT 0\tconcerts\nSELECT 1\tfinancial\nSELECT 2\tschools\n",
        "SELECT 0\t----- bird -----\tconcerts\nSELECT 1\t----- bird -----\tx\n"
        "SELECT 2\t----- bird -----\ty\n",
        json.dumps(_birds("concerts", "banks", "concerts")),
        json.dumps(list(_birds("concerts", "banks", "concerts").values())),
        "\n".join(
            json.dumps({"question_id": question_id, "sql": "SELECT 1", "db_id": name})
            for question_id, name in (("7", "concerts"), ("9", "concerts"), ("8", "x"))
        ),
    ],
    ids=range(6),
)
def test_predictions_on_other_databases_are_refused(file: Path, content: str) -> None:
    file.write_text(content)
    for semantics in ("strict", "spider", "bird"):
        with pytest.raises(InputError) as caught:
            load_predictions(file, ON_TWO, semantics=semantics)
        message = str(caught.value)
        assert "2 of 3 predictions name another database" in message
        assert "'8' is asked of 'concerts'" in message and "'9' is asked of 'banks'" in message
        assert "predictions.txt" in message and (
            "line 2" in message or "'1'" in message or "2: " in message
        )


def test_a_shifted_file_shows_its_first_lines(file: Path) -> None:
    questions = [Question(str(n), f"db_{n // 2}", "?", "SELECT 1") for n in range(12)]
    file.write_text("".join(f"SELECT {n}\tdb_{(n + 1) // 2}\n" for n in range(12)))
    with pytest.raises(InputError) as caught:
        load_predictions(file, questions)
    message = str(caught.value)
    assert "6 of 12" in message and "... and 3 more" in message
    assert "line 2: 'db_1', but question '1' is asked of 'db_0'" in message


def test_a_word_behind_a_tab_is_no_database_unless_the_file_has_it_on_all_lines(file: Path) -> None:
    lines = ["SELECT 1\tone", "SELECT a FROM\tpet", "SELECT\tname\tFROM pet"]
    file.write_text("\n".join(lines))
    assert load_predictions(file, QUESTIONS) == lines
    file.write_text("SELECT 1\tPets\nSELECT 2\tpets \nSELECT 3\tpets\r\n")
    assert load_predictions(file, QUESTIONS) == ["SELECT 1", "SELECT 2", "SELECT 3"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('["SELECT 1", "SELECT 2"]', "array of 2 predictions for 3 questions"),
        ('[\n"SELECT 1",\n"SELECT 2"', "line 3: invalid JSON"),
        ('{\n"0": "SELECT 1",\n"1": "SELECT', "line 3: invalid JSON"),
        ('{"0": "SELECT 1", "1": ""}', "answers 2 of 3 questions, .*'2'"),
        ('{"0": "SELECT 1", "5": ""}', "the key '5' is neither a position from 0 to 2"),
        ('{"0": ["SELECT 1"], "1": ["x"], "2": []}', "none of the 3 values is a string.*list"),
        ('[{"prediction": "a"}, {"x": "b"}, {"sql": "c"}]', "record 2: no field `sql`"),
        ('[["a"], ["b"], ["c"]]', "record 1: expected an object"),
        ('[["a", "pets"], ["b", "pets"], ["c", "pets"]]', "record 1: expected an object"),
        ("SELECT 1\n\nSELECT 2\n\n\n", "has 5 lines for 3 questions"),
    ],
    ids=range(10),
)
def test_a_file_that_is_meant_as_json_is_never_read_as_lines(
    file: Path, content: str, words: str
) -> None:
    file.write_text(content)
    with pytest.raises(InputError, match=words):
        load_predictions(file, QUESTIONS)


# ---------------------------------------------------------------------- answers of chat models


def test_sql_is_taken_out_of_answers_where_that_is_asked_for(file: Path) -> None:
    answers = ["<think>no</think>SELECT 1</s>", "```sql\nSELECT\n2;\n```", "SQL: SELECT 3\tscore 1"]
    records = [{"question_id": f"q{n}", "sql": text} for n, text in enumerate(answers, start=1)]
    file.write_text("\n".join(map(json.dumps, records)))
    assert load_predictions(file, QUESTIONS) == answers
    extracted = load_predictions(file, QUESTIONS, extract=True)
    assert extracted[:2] == ["SELECT 1", "SELECT\n2"]
    assert count_chat(answers) == 3 and count_chat(extracted[:2]) == 0
    # On one line, line breaks are spelled out.
    lines = ["```sql\\nSELECT 1\\n```\tpets", "SELECT 2;", "SQL: SELECT 3\tscore"]
    file.write_text("\n".join(lines))
    expected = ["SELECT 1", "SELECT 2", "SELECT 3"]
    assert load_predictions(file, QUESTIONS, extract=True, semantics="spider") == expected
    assert count_chat(["SELECT 1;", "", "SELECT a\nFROM t ; ", "I can't.", "DROP TABLE t;"]) == 0


def test_predictions_of_a_few_models_hold_prose(shared_data: Path) -> None:
    def count(name: str) -> int:
        return count_chat((shared_data / name).read_text().splitlines())

    assert count("predictions/codes_1b_sft/spider_dev.sql") == 0
    assert count("predictions/dbgpt_codellama13b_lora/spider_dev.sql") > 100
    assert count("bird_superhero/predictions/mixtral_8x7b.sql") > 4
