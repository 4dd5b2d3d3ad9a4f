"""Labels that can be defended one by one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from conftest import FreshDB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.errors import InputError
from sense_trl.pairs import (
    Candidate,
    DropReason,
    PreferencePairConfig,
    build_preference_pairs,
)
from sense_trl.pairs.dataset import read_pairs
from sense_trl.pairs.policies import grouped_any, question_rng
from sense_trl.prompts import get_prompt
from sense_trl.questions import Question
from sense_trl.task import make_task
from sense_trl.verification.suite.verifier import SuiteVerifier
from sense_trl.verification.verifier import SQLVerifier, Verdict

PETS = """
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 5), (3, 'Ann', 5), (4, 'Zoe', 9);
"""
QUESTIONS = [
    Question("q1", "pets", "How many pets are there?", "SELECT COUNT(*) FROM pet"),
    Question("q2", "pets", "Who is older than 4?", "SELECT name FROM pet WHERE age > 4"),
    Question("q3", "pets", "Who is 100?", "SELECT name FROM pet WHERE age = 100"),
    Question("q4", "pets", "Names?", "SELECT nme FROM pet"),
]
NEVER_ENDS = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"
)


@pytest.fixture
def catalog(fresh_db: FreshDB) -> Iterator[DatabaseCatalog]:
    with DatabaseCatalog.from_path(fresh_db(PETS, name="pets")) as catalog:
        yield catalog


def _candidate(question_id: str, sql: str, sample: int = 0, **fields: object) -> Candidate:
    values = {"text": sql, "source": "weak", "model": "m", **fields}
    return Candidate(question_id, sample, sql, **values)  # type: ignore[arg-type]


def _build(catalog: DatabaseCatalog, candidates: list[Candidate], /, **config: object):  # type: ignore[no-untyped-def]
    given = ("suite_verifier", "shard_folder", "on_progress")
    arguments = {name: config.pop(name) for name in given if name in config}
    with SQLVerifier(catalog, num_workers=0) as verifier:
        return build_preference_pairs(
            make_task(catalog, QUESTIONS),
            candidates,
            verifier,
            config=PreferencePairConfig(**config),  # type: ignore[arg-type]
            **arguments,  # type: ignore[arg-type]
        )


def test_a_wrong_candidate_is_rejected_against_gold_with_its_provenance(
    catalog: DatabaseCatalog,
) -> None:
    wrong = _candidate("q1", "SELECT COUNT(age) + 1 FROM pet", 4, temperature=1.0, seed=7)
    result = _build(catalog, [wrong])
    (row,) = result.dataset.to_list()
    assert row["prompt"] == get_prompt("How many pets are there?", "pet(id, name, age)")
    assert row["chosen"] == [{"role": "assistant", "content": "SELECT COUNT(*) FROM pet"}]
    assert row["rejected"] == [{"role": "assistant", "content": wrong.sql}]
    assert (row["chosen_source"], row["rejected_source"]) == ("gold", "weak")
    assert row["rejected_candidate_id"] == wrong.candidate_id
    assert (row["temperature"], row["seed"], row["pair_weight"]) == (1.0, 7, 1.0)
    assert row["rejected_reason"]
    assert result.verdicts == {"wrong": 1}


def test_a_query_that_does_not_run_is_not_the_same_as_gold(catalog: DatabaseCatalog) -> None:
    texts = [
        "SELECT,name FROM pet WHERE age > 4",
        "SELECT name, FROM pet WHERE age > 4",
        # White space within quotes is none between tokens.
        "SELECT,name FROM pet WHERE name = 'a  b'",
        "SELECT,name FROM pet WHERE name = 'a b'",
        "select ,  name from pet where name = 'a b'",
    ]
    result = _build(catalog, [_candidate("q2", sql, n) for n, sql in enumerate(texts)])
    assert result.dropped_candidates == {DropReason.CANDIDATE_DUPLICATE: 1}
    assert result.verdicts == {"wrong": 4}
    (row,) = _build(catalog, [_candidate("q2", texts[0])]).dataset.to_list()
    assert row["rejected"][0]["content"] == texts[0]
    assert row["rejected_reason"] == "prediction_syntax_error"


def test_everything_left_out_is_counted_by_reason(catalog: DatabaseCatalog) -> None:
    result = _build(
        catalog,
        [
            _candidate("q1", "select count( * ) from PET"),
            _candidate("q1", "SELECT 4", 1),
            _candidate("q1", "SELECT random()", 2),
            _candidate("q2", "SELECT nam FROM pet", 0),
            _candidate("q2", "SELECT  nam FROM pet", 1),
            _candidate("q2", "", 2),
            _candidate("q2", "SELECT name FROM pet WHERE age", 3, finished=False),
            _candidate("q2", NEVER_ENDS, 4),
            _candidate("q3", "SELECT 1", 0),
            _candidate("q4", "SELECT 1", 0),
        ],
    )
    assert [row["question_id"] for row in result.dataset] == ["q2"]
    assert result.dropped_questions == {
        DropReason.GOLD_UNDETERMINED: 2,
        DropReason.NO_ERRONEOUS: 1,
    }
    assert set(result.gold_problems) == {"q3", "q4"}
    assert result.dropped_candidates[DropReason.CANDIDATE_SAME_AS_GOLD] == 1
    assert result.dropped_candidates[DropReason.CANDIDATE_DUPLICATE] == 1
    assert result.dropped_candidates[DropReason.CANDIDATE_EMPTY] == 1
    assert result.dropped_candidates[DropReason.CANDIDATE_UNFINISHED] == 1
    assert result.dropped_candidates[DropReason.CANDIDATE_UNDETERMINED] >= 1
    assert result.num_candidates == 10
    assert result.summary()["num_pairs"] == 1


def test_correct_samples_may_be_chosen_where_asked(catalog: DatabaseCatalog) -> None:
    candidates = [
        _candidate("q1", "SELECT COUNT(id) FROM pet", 0),
        _candidate("q1", "SELECT 5", 1),
    ]
    (row,) = _build(catalog, candidates, chosen_sources=("weak",)).dataset.to_list()
    assert (row["chosen_sql"], row["chosen_source"]) == ("SELECT COUNT(id) FROM pet", "weak")
    result = _build(catalog, candidates[1:], chosen_sources=("weak",))
    assert result.dropped_questions[DropReason.NO_CORRECT] == 2
    assert len(result.dataset) == 0
    assert "chosen_sql" in result.dataset.column_names


def test_the_source_of_an_equal_query_does_not_hide_another(catalog: DatabaseCatalog) -> None:
    gold_by_strong = _candidate("q1", "select COUNT(*) from pet", 0, source="strong")
    weak_wrong = _candidate("q1", "SELECT 5", 0)
    (row,) = _build(
        catalog, [gold_by_strong, weak_wrong], chosen_sources=("strong",)
    ).dataset.to_list()
    assert (row["chosen_source"], row["rejected_source"]) == ("strong", "weak")
    strong_wrong = _candidate("q1", "SELECT 5", 0, source="strong")
    for order in ([strong_wrong, weak_wrong], [weak_wrong, strong_wrong]):
        assert len(_build(catalog, order).dataset) == 1
    both = _build(catalog, [strong_wrong, weak_wrong], rejected_sources=("strong", "weak"), limit=5)
    assert len(both.dataset) == 1


def test_a_candidate_of_an_unknown_question_is_refused(catalog: DatabaseCatalog) -> None:
    with pytest.raises(InputError, match="'zz', which is not among the 4 questions"):
        _build(catalog, [_candidate("zz", "SELECT 1")])


def test_two_questions_with_one_id_are_refused(
    catalog: DatabaseCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "QUESTIONS", [*QUESTIONS, QUESTIONS[0]])
    with pytest.raises(InputError, match="5 questions, but 4 different `question_id`"):
        _build(catalog, [])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"policy": "best"}, "policy"),
        ({"limit": 0}, "limit"),
        ({"chosen_sources": ("oracle",)}, "chosen_sources"),
        ({"rejected_sources": ()}, "rejected_sources"),
        ({"rejected_sources": ("gold",)}, "definition of correct"),
        ({"rejected_sources": ("mutation",)}, "rejected_sources"),
        ({"num_rejected": 0}, "num_rejected"),
        ({"num_mutants": -1}, "num_mutants"),
        ({"deduplicate_by": "sql"}, "deduplicate_by"),
        ({"prompt_format": "chat"}, "prompt_format"),
        ({"weighting": "hardness"}, "weighting"),
        ({"completion": "text"}, "whole answers"),
        ({"completion": "text", "chosen_sources": ("weak",), "num_mutants": 2}, "mutants"),
    ],
)
def test_bad_settings_are_refused(config: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name):
        PreferencePairConfig(**config)  # type: ignore[arg-type]


SQL = st.sampled_from(
    [
        "SELECT COUNT(*) FROM pet", "SELECT 4", "SELECT 5", "SELECT COUNT(id) FROM pet", "SELECT",
        "SELECT name FROM pet WHERE age >= 5", "SELECT name FROM pet WHERE age > 5", "", ";",
        "SELECT nme FROM pet", "DELETE FROM pet", "SELECT 1; DROP TABLE pet", "-- nothing",
        "SELECT name FROM pet WHERE 1 = 0", "PRAGMA user_version", "SELECT name FROM pet LIMIT 2",
        "I do not know.", "SELECT random()", "SELECT name FROM pet WHERE age > 4 ORDER BY name",
    ]
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(["q1", "q2", "q3", "q4"]), SQL), max_size=14),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_every_label_holds_when_checked_again(
    catalog: DatabaseCatalog, drawn: list[tuple[str, str]], limit: int, rng: object
) -> None:
    candidates = [_candidate(q, sql, i) for i, (q, sql) in enumerate(drawn)]
    sources = {"chosen_sources": ("gold", "weak"), "limit": limit}
    result = _build(catalog, candidates, **sources)
    rows = result.dataset.to_list()
    with SQLVerifier(catalog, num_workers=0) as verifier:
        for row in rows:
            assert row["chosen_sql"] != row["rejected_sql"]
            for side, verdict in (("chosen", Verdict.CORRECT), ("rejected", Verdict.WRONG)):
                request = (row["db_id"], row[f"{side}_sql"], row["gold_sql"])
                from sense_trl.verification.verifier import VerificationRequest

                (found,) = verifier.verify([VerificationRequest(*request)])
                assert found.verdict is verdict
    assert not {row["question_id"] for row in rows} & {"q3", "q4"}
    assert all([r["question_id"] for r in rows].count(q) <= limit for q in ("q1", "q2"))
    again = _build(catalog, candidates, **sources).dataset.to_list()
    assert again == rows


def test_the_policy_uses_everything_once_before_anything_twice() -> None:
    correct = [_candidate("q", f"c{i}") for i in range(2)]
    erroneous = [_candidate("q", f"e{i}") for i in range(3)]
    pairs = grouped_any(correct, erroneous, 3, question_rng(0, "q"))
    assert {rejected.sql for _, rejected in pairs} == {"e0", "e1", "e2"}
    assert {chosen.sql for chosen, _ in pairs} == {"c0", "c1"}
    every = grouped_any(correct, erroneous, 99, question_rng(0, "q"))
    assert len(every) == len({(c.sql, e.sql) for c, e in every}) == 6


def test_parquet_is_the_same_bytes_for_the_same_input(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    candidates = [_candidate("q1", "SELECT 5"), _candidate("q2", "SELECT 1", 1)]
    for name in ("a", "b"):
        _build(catalog, candidates).dataset.to_parquet(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_error_classes_are_named_where_the_schema_is_known(catalog: DatabaseCatalog) -> None:
    wrong = [_candidate("q2", "SELECT nam, age FROM pet WHERE age >= 4")]
    (row,) = _build(catalog, wrong).dataset.to_list()
    assert row["error_classes"] == ["unknown_column", "wrong_column", "extra_select_column",
                                    "wrong_operator"]  # fmt: skip
    assert row["rejected_verdict"] == "wrong"


def test_result_classes_say_how_the_rows_differ_where_they_are_asked_for(
    catalog: DatabaseCatalog,
) -> None:
    wrong = [
        _candidate("q2", "SELECT name FROM pet WHERE age > 0"),
        _candidate("q2", "SELECT nam FROM pet", 1),
    ]
    options = {"classify_results": True, "num_rejected": 2}
    rows = _build(catalog, wrong, **options).dataset.to_list()
    found = {row["rejected_sql"]: row["result_class"] for row in rows}
    assert found == {wrong[0].sql: "superset", wrong[1].sql: ""}
    assert _build(catalog, wrong).dataset["result_class"][:] == [""]


def test_the_dialect_is_that_of_each_database(fresh_db: FreshDB) -> None:
    lite = fresh_db(PETS, name="pets")
    convert_sqlite(lite, lite.with_name("shop.duckdb"))
    gold = "SELECT name FROM pet WHERE age > 4"
    questions = [Question(f"of {db_id}", db_id, "Who?", gold) for db_id in ("pets", "shop")]
    # DuckDB divides integers so; SQLite knows no `//`.
    texts = [f"SELECT {x}.id, {x}.age // 2 FROM pet AS {x}" for x in "xy"]
    candidates = [
        _candidate(question.question_id, sql, number)
        for question in questions
        for number, sql in enumerate(texts)
    ]
    with (
        DatabaseCatalog.from_path(lite.parent) as catalog,
        SQLVerifier(catalog, num_workers=1) as verifier,
    ):
        task = make_task(catalog, questions)
        config = PreferencePairConfig(limit=9, deduplicate_by="normal_form")
        result = build_preference_pairs(task, candidates, verifier, config=config)
    assert result.dropped_candidates == {DropReason.CANDIDATE_DUPLICATE: 1}
    rows = [(row["db_id"], row["rejected_sql"], row["error_classes"]) for row in result.dataset]
    assert rows == [
        ("pets", texts[0], ["does_not_parse"]),
        ("pets", texts[1], ["does_not_parse"]),
        ("shop", texts[0], ["wrong_column", "extra_select_column", "missing_condition"]),
    ]
    assert "duckdb" in str(task.get_messages(questions[1])).lower()


def test_duplicates_go_by_text_then_by_form_then_by_result(catalog: DatabaseCatalog) -> None:
    wrong = [
        "SELECT name FROM pet WHERE age = 5 AND id > 1",
        "select p.name from pet p where p.age = 5 and p.id > 1",  # another canonical text
        "SELECT name FROM pet WHERE id > 1 AND age = 5",  # another order of conditions
        "SELECT name FROM pet WHERE age = 5",  # another form, the same rows
        "SELECT name FROM pet WHERE age = 55",  # no rows
        "SELECT name FROM pet WHERE age = 56",  # no rows either
        "SELECT nme FROM pet",  # does not run
        "SELECT nmae FROM pet",  # does not run either
    ]
    candidates = [_candidate("q2", sql, i) for i, sql in enumerate(wrong)]
    kept = {}
    for level in ("text", "normal_form", "result"):
        result = _build(catalog, candidates, limit=99, deduplicate_by=level)
        kept[level] = {wrong.index(row["rejected_sql"]) for row in result.dataset}
    assert kept == {
        "text": {0, 1, 2, 3, 4, 5, 6, 7},
        "normal_form": {0, 3, 4, 5, 6, 7},
        "result": {0, 4, 6, 7},
    }
    assert result.dropped_candidates == {
        DropReason.CANDIDATE_SAME_FORM: 2,
        DropReason.CANDIDATE_SAME_RESULT: 2,
    }


def test_mutants_stand_in_where_no_candidate_is_erroneous(catalog: DatabaseCatalog) -> None:
    result = _build(catalog, [_candidate("q1", "SELECT 5")], num_mutants=6, limit=9)
    rows = result.dataset.to_list()
    by_question = {q: [r for r in rows if r["question_id"] == q] for q in ("q1", "q2", "q3", "q4")}
    assert [r["rejected_source"] for r in by_question["q1"]] == ["weak"]
    assert len(by_question["q2"]) == result.mutant_verdicts["wrong"] > 0
    assert {r["rejected_source"] for r in by_question["q2"]} == {"mutation"}
    assert all(r["rejected_model"] and r["error_classes"] for r in by_question["q2"])
    assert not by_question["q3"] and not by_question["q4"]
    assert result.verdicts == {"wrong": 1}
    assert result.dropped_candidates == {}


def test_several_rejected_queries_are_a_list_or_rows(catalog: DatabaseCatalog) -> None:
    candidates = [_candidate("q1", f"SELECT {5 + i}", i) for i in range(3)]
    candidates += [_candidate("q2", "SELECT name FROM pet", 0)]
    config = {"num_rejected": 2, "limit": 1}
    spread = _build(catalog, candidates, **config).dataset.to_list()
    assert [row["question_id"] for row in spread] == ["q1", "q1", "q2"]
    q1, q2 = _build(catalog, candidates, **config, spread_rejected=False).dataset.to_list()
    assert q1["rejected_sql"] == [row["rejected_sql"] for row in spread[:2]]
    assert q1["rejected"] == [[{"role": "assistant", "content": sql}] for sql in q1["rejected_sql"]]
    assert q1["error_classes"] == [row["error_classes"] for row in spread[:2]]
    assert len(q2["rejected_sql"]) == len(q2["temperature"]) == 1
    assert q1["chosen"] == spread[0]["chosen"]


def test_weights_have_a_mean_of_one(catalog: DatabaseCatalog) -> None:
    candidates = [_candidate("q1", f"SELECT {5 + i}", i) for i in range(3)]
    candidates += [_candidate("q2", "SELECT name FROM pet", 0)]
    rows = _build(catalog, candidates, limit=3, weighting="question").dataset.to_list()
    # Four rows of two questions: each question has a sum of 2.
    assert [row["pair_weight"] for row in rows] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


def test_whole_answers_keep_their_reasoning_and_only_with_their_own_sql(
    catalog: DatabaseCatalog,
) -> None:
    def answer(sql: str, sample: int, **fields: object) -> Candidate:
        text = f"I count the pets.\n```sql\n{sql}\n```"
        return _candidate("q1", sql, sample, **{"text": text, **fields})

    right = answer("SELECT COUNT(id) FROM pet", 0)
    wrong = answer("SELECT 5", 1)
    other = answer("SELECT 6", 2, text="```sql\nSELECT 4\n```")
    result = _build(
        catalog, [right, wrong, other], completion="text", chosen_sources=("weak",), limit=9
    )
    (row,) = result.dataset.to_list()
    assert row["chosen"] == [{"role": "assistant", "content": right.text}]
    assert row["rejected"] == [{"role": "assistant", "content": wrong.text}]
    assert row["rejected_sql"] == "SELECT 5"
    assert result.dropped_candidates == {DropReason.CANDIDATE_TEXT_DIFFERS: 1}


def test_plain_rows_are_strings(catalog: DatabaseCatalog) -> None:
    (row,) = _build(
        catalog, [_candidate("q1", "SELECT 5")], prompt_format="plain"
    ).dataset.to_list()
    assert row["prompt"].endswith("pet(id, name, age)\n\nHow many pets are there?\n\n")
    assert (row["chosen"], row["rejected"]) == ("SELECT COUNT(*) FROM pet", "SELECT 5")


def test_half_a_surrogate_pair_is_no_text(catalog: DatabaseCatalog) -> None:
    result = _build(catalog, [_candidate("q1", "SELECT '\ud800'")])
    assert result.dropped_candidates == {DropReason.CANDIDATE_NOT_UNICODE: 1}


def test_a_chosen_query_that_is_right_by_chance_is_dropped_and_not_rejected(
    catalog: DatabaseCatalog,
) -> None:
    by_chance = _candidate("q2", "SELECT name FROM pet WHERE age > 3", 0)
    right = _candidate("q2", "SELECT name FROM pet WHERE 4 < age AND 1 = 1", 1)
    wrong = _candidate("q2", "SELECT name FROM pet", 2)
    config = {"chosen_sources": ("weak",), "limit": 9}
    alone = _build(catalog, [by_chance, right, wrong], **config)
    assert {row["chosen_sql"] for row in alone.dataset} == {by_chance.sql, right.sql}
    with SuiteVerifier(catalog, num_workers=0) as suite:
        result = _build(catalog, [by_chance, right, wrong], suite_verifier=suite, **config)
        (row,) = result.dataset.to_list()
        assert (row["chosen_sql"], row["rejected_sql"]) == (right.sql, wrong.sql)
        assert result.dropped_candidates == {DropReason.CANDIDATE_REFUTED: 1}
        none = _build(catalog, [by_chance, wrong], suite_verifier=suite, **config)
    assert none.dropped_questions[DropReason.NO_CORRECT] == 2


def test_an_interrupted_build_continues_and_gives_the_same_bytes(
    catalog: DatabaseCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sense_trl.pairs.builder._QUESTIONS_PER_SHARD", 1)
    candidates = [_candidate(q, f"SELECT {i}", i) for q in ("q1", "q2") for i in (5, 6)]
    config = {"limit": 2, "weighting": "question"}
    folder = tmp_path / "shards"
    _build(catalog, candidates, **config).save(tmp_path / "whole")

    def interrupt(count: int) -> None:
        done = len(list(folder.glob("*.arrow")))
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(catalog, candidates, **config, shard_folder=folder, on_progress=interrupt)
    assert len(list(folder.glob("*"))) == 1
    seen: list[int] = []
    for name in ("resumed", "again"):
        result = _build(catalog, candidates, **config, shard_folder=folder, on_progress=seen.append)
        result.save(tmp_path / name)
        for file in ("pairs.parquet", "pairs.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert sum(seen) == 2 * len(candidates)
    # Other settings, other shards.
    other = _build(catalog, candidates, limit=1, shard_folder=folder)
    assert len(other.dataset) == 2


def _edit_rows(path: Path) -> None:
    with pyarrow.OSFile(str(path)) as source, pyarrow.ipc.open_file(source) as reader:
        table = reader.read_all()
    index = table.column_names.index("chosen_sql")
    other = pyarrow.array(["DROP TABLE pet"] * table.num_rows)
    table = table.set_column(index, "chosen_sql", other)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)


def _edit_account(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"num_questions": 2', b'"num_questions": 3'))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * 4096),
        lambda path: path.write_text("not Arrow"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"SELECT COUNT", b"SELECT COUMT")),
        _edit_rows,
        _edit_account,
    ],
)
def test_a_shard_that_was_cut_or_changed_is_named_and_made_again_once_deleted(
    catalog: DatabaseCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    monkeypatch.setattr("sense_trl.pairs.builder._QUESTIONS_PER_SHARD", 2)
    candidates = [_candidate(q, f"SELECT {i}", i) for q in ("q1", "q2") for i in (5, 6)]
    folder = tmp_path / "shards"
    whole = _build(catalog, candidates, shard_folder=folder)
    (shard,) = (path for path in folder.iterdir() if b"SELECT COUNT" in path.read_bytes())
    before = shard.read_bytes()
    damage(shard)
    assert shard.read_bytes() != before
    with pytest.raises(InputError, match=rf"{shard.name}', a finished part.* delete it"):
        _build(catalog, candidates, shard_folder=folder)
    shard.unlink()
    assert _build(catalog, candidates, shard_folder=folder).dataset[:] == whole.dataset[:]
    assert shard.exists()


def test_built_pairs_that_were_cut_or_changed_are_refused(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    result = _build(catalog, [_candidate("q1", "SELECT 5")])
    path = result.save(tmp_path)
    assert read_pairs(path).num_rows == 1
    whole = path.read_bytes()
    for content in (whole[:-1], b"", whole.replace(b"SELECT 5", b"SELECT 6")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"pairs\.parquet' is not the file that pairs\.json"):
            read_pairs(path)
    # Elsewhere nothing is known about it but what it holds.
    other = tmp_path / "mine.parquet"
    other.write_bytes(whole)
    assert read_pairs(other).num_rows == 1
    other.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_pairs(other)
    (tmp_path / "pairs.json").write_bytes(b"")
    with pytest.raises(InputError, match=r"pairs\.json' is not the account of built pairs"):
        read_pairs(path)


def test_a_second_turn_is_about_the_rejected_query_and_what_the_database_said(
    catalog: DatabaseCatalog,
) -> None:
    broken = _candidate("q2", "SELECT nme FROM pet", 0)
    empty = _candidate("q2", "SELECT name FROM pet WHERE age > 40", 1)
    # Nothing tells a model that these rows are wrong.
    wrong = _candidate("q2", "SELECT name FROM pet", 2)
    right = _candidate("q2", "SELECT name FROM pet WHERE age >= 5", 3)
    result = _build(
        catalog,
        [broken, empty, wrong, right],
        repair=True,
        chosen_sources=("weak",),
        limit=2,
        num_rejected=2,
    )
    assert result.dropped_candidates == {DropReason.CANDIDATE_RETURNS_ROWS: 1}
    rows = {row["rejected_sql"]: row for row in result.dataset}
    assert set(rows) == {broken.sql, empty.sql}
    for rejected, told in ((broken, "no such column: nme"), (empty, "finds no rows")):
        row = rows[rejected.sql]
        system, user, answer, reply = row["prompt"]
        assert [system, user] == get_prompt("Who is older than 4?", "pet(id, name, age)")
        assert answer == {"role": "assistant", "content": rejected.sql}
        assert reply["role"] == "user" and told in reply["content"]
        assert row["chosen"][0]["content"] == right.sql
        assert row["rejected"][0]["content"] == rejected.sql
    # Without it, the same candidates make other pairs, and settings of before are the same.
    assert len(_build(catalog, [wrong]).dataset) == 1
    assert len(_build(catalog, [wrong], repair=True).dataset) == 0
    assert "repair" not in PreferencePairConfig().as_json()
    with pytest.raises(InputError, match="`repair` is true"):
        PreferencePairConfig(repair=True, spread_rejected=False)


def test_a_second_turn_is_built_exactly_where_a_model_would_be_asked_again(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    count = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 20000) SELECT x FROM c"  # fmt: skip
    # It runs within the verifier's limits, and so it would in an evaluation.
    many = _candidate("q2", count)
    broken = _candidate("q2", "SELECT nme FROM pet", 1)
    result = _build(catalog, [many, broken], repair=True, shard_folder=tmp_path)
    assert result.dropped_candidates == {DropReason.CANDIDATE_RETURNS_ROWS: 1}
    [row] = result.dataset.to_list()
    assert row["rejected_error"] == "no such column: nme"
    assert (row["chosen_source"], row["rejected_candidate_id"]) == ("gold", broken.candidate_id)
    # Parts of a build with other settings are not taken.
    assert len(_build(catalog, [many], shard_folder=tmp_path).dataset) == 1
    again = _build(catalog, [many, broken], repair=True, shard_folder=tmp_path)
    assert again.dataset.to_list() == [row]


def test_mutants_of_second_turns_are_such_that_fail_too(catalog: DatabaseCatalog) -> None:
    result = _build(catalog, [], repair=True, num_mutants=30, limit=30)
    rows = result.dataset.to_list()
    assert 0 < len(rows) < result.mutant_verdicts["wrong"]
    for row in rows:
        *_, answer, reply = row["prompt"]
        assert answer["content"] == row["rejected_sql"]
        assert "finds no rows" in reply["content"] or row["rejected_error"] in reply["content"]


def test_a_plain_prompt_ends_with_what_the_database_said(catalog: DatabaseCatalog) -> None:
    broken = _candidate("q2", "SELECT nme FROM pet")
    [row] = _build(catalog, [broken], repair=True, prompt_format="plain").dataset.to_list()
    assert row["prompt"].endswith(
        "SELECT nme FROM pet\n\nThe database says: no such column: nme\n"
        "Write the query that answers the question.\n\n"
    )
