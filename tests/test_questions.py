"""Reading questions, and splitting them without leaks."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.questions import Question, get_file_ids, load_questions, split_questions


def _write(folder: Path, text: str, name: str = "q.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("field", ["gold_sql", "query", "SQL", "sql"])
def test_the_gold_field_of_spider_bird_and_ours_is_read(tmp_path: Path, field: str) -> None:
    path = _write(
        tmp_path, json.dumps({"db_id": "d", "question": "how many?", field: " SELECT 1 "})
    )
    assert load_questions(path) == [Question("q-00001", "d", "how many?", "SELECT 1")]


def test_spiders_parse_tree_in_sql_is_passed_over(tmp_path: Path) -> None:
    record = {"db_id": "d", "question": "q", "query": "SELECT 2", "sql": {"select": []}}
    assert load_questions(_write(tmp_path, json.dumps(record)))[0].gold_sql == "SELECT 2"


def test_an_empty_gold_field_does_not_hide_a_full_one(tmp_path: Path) -> None:
    record = {"db_id": "d", "question": "q", "query": "", "SQL": "SELECT 1", "split": " "}
    question = load_questions(_write(tmp_path, json.dumps(record)))[0]
    assert (question.gold_sql, question.split) == ("SELECT 1", None)


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    line = r'{"db_id": "d", "question": "\ud83d\ude00", "gold_sql": "SELECT 1"}'
    assert load_questions(_write(tmp_path, line))[0].question == "\U0001f600"


def test_an_array_reads_like_lines_and_optional_fields_are_kept(tmp_path: Path) -> None:
    record = {
        "question_id": 7, "db_id": "d", "question": "q", "SQL": "SELECT 1",
        "evidence": "x means y", "difficulty": "simple", "split": "test",
    }  # fmt: skip
    lines = load_questions(_write(tmp_path, json.dumps(record) + "\n\n"))
    array = load_questions(_write(tmp_path, json.dumps([record]), "q.json"))
    assert lines == array
    assert lines == [Question("7", "d", "q", "SELECT 1", "test", "simple", "x means y")]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_reads_like_lines(tmp_path: Path, mark: str, end: str) -> None:
    path = tmp_path / "q.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter=mark, lineterminator=end)
        table.writerow(["question", "SQL", "level", "split"])
        table.writerow(["How many; all, in?", "SELECT 'a,b;c',\n 1", "", "train"])
        table.writerow(["", "", "", ""])
        table.writerow(["Größe?", 'SELECT "x" FROM t', "easy"])
    first, second = load_questions(path, default_db_id="pets")
    assert first.question == "How many; all, in?" and first.gold_sql == "SELECT 'a,b;c',\n 1"
    assert (first.level, first.split, first.db_id) == (None, "train", "pets")
    assert (second.question, second.gold_sql) == ("Größe?", 'SELECT "x" FROM t')
    assert (second.level, second.split) == ("easy", None)


def test_a_broken_table_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    for text, words in (
        ("question,gold_sql\nq,SELECT a, b FROM t\n", "line 2: 3 cells under 2 names"),
        ("question,gold_sql\nq,\n", r"line 2: the field `gold_sql` .* is missing"),
        ("question,gold_sql\n", "holds no question"),
        ("question,gold_sql\nq," + "x" * 140_000, "line 2: no CSV"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            load_questions(path, default_db_id="pets")


def test_a_record_that_a_file_holds_twice_is_two_questions(tmp_path: Path) -> None:
    same = {"question_id": 7, "db_id": "d", "question": "q", "SQL": "SELECT 1"}
    other = {**same, "question_id": 8, "question": "r"}
    unnamed = {"db_id": "d", "question": "q", "query": "SELECT 1"}
    for records, ids in (
        ([same, other, same, same], ["7", "8", "7#2", "7#3"]),
        ([unnamed, unnamed], ["q-00001", "q-00002"]),
    ):
        questions = load_questions(_write(tmp_path, json.dumps(records), "q.json"))
        assert [question.question_id for question in questions] == ids
        assert {(q.question, q.gold_sql) for q in questions} <= {
            ("q", "SELECT 1"),
            ("r", "SELECT 1"),
        }
        assert get_file_ids(questions) == [question_id.split("#")[0] for question_id in ids]
    named = {**same, "question_id": "7#2", "question": "s"}
    with pytest.raises(InputError, match=r"'7#2' was already used at .*record 2"):
        load_questions(_write(tmp_path, json.dumps([same, named, same]), "q.json"))


GOOD = '{"question": "q", "gold_sql": "SELECT 1", "db_id": "d"}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["holds no question"]),
        (GOOD + "{broken\n", ["line 2", "invalid JSON", "{broken"]),
        (GOOD + '"text"\n', ["line 2", "JSON object", "str"]),
        (GOOD + '{"gold_sql": "SELECT 1", "db_id": "d"}', ["line 2", "`question`", "is missing"]),
        (GOOD + '{"question": "q", "db_id": "d"}', ["line 2", "`gold_sql`", "query, SQL"]),
        (GOOD + '{"question": "q", "gold_sql": " ", "db_id": "d"}', ["line 2", "not a non-empty"]),
        (GOOD + '{"question": "q", "gold_sql": "SELECT 1"}', ["line 2", "`db_id` is missing"]),
        (
            GOOD + '{"question": "q", "gold_sql": "s", "db_id": ["d"]}',
            ["line 2", "`db_id`", "['d']"],
        ),
        (GOOD + '{"question": "q", "level": ' + "1" * 5000 + "}", ["line 2", "invalid JSON"]),
        (GOOD + '{"a":' * 100_000, ["line 2", "invalid JSON", "recursion"]),
        ("[" + "1" * 5000 + "]", ["q.jsonl, line 1", "invalid JSON"]),
        ("[" * 100_000, ["q.jsonl, line 1", "invalid JSON", "recursion"]),
        (
            GOOD + r'{"question": "q\ud83d", "gold_sql": "s", "db_id": "d"}',
            ["line 2", "`question`", "lone surrogate", r"'\ud83d' at character 2"],
        ),
        (
            GOOD + r'{"question": "q", "gold_sql": "s", "db_id": "\ud800"}',
            ["line 2", "`db_id`", "lone surrogate"],
        ),
        (
            '{"question_id": "a", "question": "q", "gold_sql": "s", "db_id": "d"}\n'
            '{"question_id": "a", "question": "r", "gold_sql": "s", "db_id": "d"}\n',
            ["line 2", "'a' was already used", "line 1", "another question"],
        ),
    ],
)
def test_a_bad_file_is_refused_by_line_field_and_remedy(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        load_questions(_write(tmp_path, text))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_file_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        load_questions(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_questions(tmp_path / "b.jsonl")


def _questions(gold: list[int], split: str | None = None) -> list[Question]:
    return [Question(f"q{i}", "d", f"which {g}?", f"SELECT {g}", split) for i, g in enumerate(gold)]


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 12), min_size=6, max_size=30).filter(lambda x: len(set(x)) >= 4),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_no_gold_query_is_on_both_sides_and_order_does_not_matter(
    gold: list[int], seed: int, rng: object
) -> None:
    questions = _questions(gold)
    train, test = split_questions(questions, test_fraction=0.3, seed=seed, dialect="sqlite")
    assert not {q.gold_sql for q in train} & {q.gold_sql for q in test}
    assert sorted(q.question_id for q in [*train, *test]) == sorted(
        q.question_id for q in questions
    )
    rng.shuffle(questions)  # type: ignore[attr-defined]
    assert split_questions(questions, test_fraction=0.3, seed=seed, dialect="sqlite") == (
        train,
        test,
    )


def test_paraphrases_that_differ_in_case_and_layout_stay_together() -> None:
    pair = [
        Question("a", "d", "how many?", "SELECT COUNT(*) FROM t"),
        Question("b", "d", "count them", "select  count(*)  from T"),
    ]
    rest = _questions([1, 2, 3, 4])
    for seed in range(8):
        train, test = split_questions(
            [*pair, *rest], test_fraction=0.4, seed=seed, dialect="sqlite"
        )
        assert {"a", "b"} <= {q.question_id for q in train} or {"a", "b"} <= {
            q.question_id for q in test
        }


def test_gold_is_read_in_the_dialect_of_its_database() -> None:
    # DuckDB divides integers so; SQLite knows no `//`, and goes by the wording.
    pair = [Question(x, "duck", f"{x}?", f"SELECT {x}.a // 2 FROM t AS {x}") for x in "xy"]
    rest = _questions([1, 2, 3, 4])
    dialects = {"duck": "duckdb", rest[0].db_id: "sqlite"}

    def is_parted(dialect: Any, seed: int) -> bool:
        train, _ = split_questions([*pair, *rest], test_fraction=0.4, seed=seed, dialect=dialect)
        return len({"x", "y"} & {q.question_id for q in train}) == 1

    assert any(is_parted("sqlite", seed) for seed in range(8))
    assert not any(is_parted(dialects.__getitem__, seed) for seed in range(8))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=8, max_size=24),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_neither_a_gold_query_nor_a_wording_is_on_both_sides(
    pairs: list[tuple[int, int]], seed: int, rng: object
) -> None:
    # Two with a declared split, so that no side is ever empty.
    questions = _questions([20], "train")
    questions.append(Question("t", "d", "which 21?", "SELECT 21", "test"))
    questions += [
        Question(
            f"x{i}", "d", f"{'Which' if i % 2 else 'which '} {w}{'?' * (i % 3)}", f"SELECT {g}"
        )
        for i, (w, g) in enumerate(pairs)
    ]
    train, test = split_questions(questions, test_fraction=0.2, seed=seed, dialect="sqlite")
    sides = [
        {(q.question.lower().split()[1].rstrip("?"), "wording") for q in side}
        | {(q.gold_sql, "gold") for q in side}
        for side in (train, test)
    ]
    assert not sides[0] & sides[1]
    assert len(train) + len(test) == len(questions)
    rng.shuffle(questions)  # type: ignore[attr-defined]
    again = split_questions(questions, test_fraction=0.2, seed=seed, dialect="sqlite")
    assert again == (train, test)


def test_one_wording_on_two_databases_is_two_questions() -> None:
    train, test = split_questions(
        [Question("a", "d", "how many?", "SELECT 1"), Question("b", "e", "how many?", "SELECT 1")],
        test_fraction=0.5,
        dialect="sqlite",
    )
    assert len(train) == len(test) == 1


def test_split_names_are_read_in_any_case_and_others_refused() -> None:
    names = ["Train", " training ", "TEST", "dev", "Validation", "val", "eval"]
    questions = [
        Question(f"q{i}", "d", f"which {i}?", f"SELECT {i}", name) for i, name in enumerate(names)
    ]
    train, test = split_questions(questions, dialect="sqlite")
    assert [q.split for q in train] == names[:2]
    assert [q.split for q in test] == names[2:]
    for name in ("tarin", ""):
        odd = Question("odd", "d", "which?", "SELECT 99", name)
        with pytest.raises(InputError, match=rf"odd has the `split` '{name}'; expected.*train"):
            split_questions([*questions, odd], dialect="sqlite")


def test_a_declared_split_is_kept_and_a_leak_in_it_refused() -> None:
    train, test = split_questions(
        [*_questions([1, 2], "train"), Question("t", "d", "?", "SELECT 9", "dev")],
        dialect="sqlite",
    )
    assert ([q.question_id for q in train], [q.question_id for q in test]) == (["q0", "q1"], ["t"])
    leak = [
        Question("a", "d", "?", "SELECT 1", "train"),
        Question("b", "d", "what?", "select 1", "test"),
    ]
    with pytest.raises(InputError, match=r"a, b share one gold query.*a stands in train and b in"):
        split_questions(leak, dialect="sqlite")
    leak = [
        Question("a", "d", "How many  pets?", "SELECT COUNT(*) FROM pet", "train"),
        Question("b", "d", "how many pets", "SELECT COUNT(id) FROM pet", "test"),
    ]
    with pytest.raises(InputError, match=r"a, b share one gold query or one wording"):
        split_questions(leak, dialect="sqlite")


def test_an_empty_side_and_a_bad_fraction_are_refused() -> None:
    with pytest.raises(InputError, match="training set is empty"):
        split_questions(_questions([1], "test"), dialect="sqlite")
    with pytest.raises(InputError, match="`test_fraction` is 1"):
        split_questions(_questions([1, 2]), test_fraction=1.0, dialect="sqlite")


# ---------------------------------------------------------------------- gold files of scripts


def test_lines_of_gold_sql_are_read_where_no_wording_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "dev_gold.sql"
    path.write_text("SELECT 1\tpets\r\n\n(select\t2)\tcars\nWITH a AS (SELECT 3) SELECT * FROM a\n")
    questions = load_questions(path, default_db_id="birds", needs_text=False)
    assert [(q.question_id, q.question, q.gold_sql, q.db_id) for q in questions] == [
        ("dev_gold-00001", "", "SELECT 1", "pets"),
        ("dev_gold-00002", "", "(select\t2)", "cars"),
        ("dev_gold-00003", "", "WITH a AS (SELECT 3) SELECT * FROM a", "birds"),
    ]
    with pytest.raises(InputError, match="line 4: the field `db_id` is missing"):
        load_questions(path, needs_text=False)
    with pytest.raises(InputError, match="line 1: invalid JSON"):
        load_questions(path, default_db_id="birds")
    path.write_text("SELECT 1\tpets\nHow many?\tpets\n")
    with pytest.raises(InputError, match="line 1: invalid JSON"):
        load_questions(path, needs_text=False)
