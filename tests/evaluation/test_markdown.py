"""Tables for a model card."""

from dataclasses import replace

from sense_trl.evaluation import EvaluationRecord, EvaluationReport
from sense_trl.evaluation.markdown import (
    format_markdown,
    get_error_table,
    get_hardness_table,
    get_score_table,
)
from sense_trl.verification.verifier import Verdict


def _run(name: str, *correct: bool, errors: tuple[str, ...] = ()) -> EvaluationReport:
    records = tuple(
        EvaluationRecord(
            question_id=str(number),
            db_id="pets_1",
            level=None,
            question="?",
            gold_sql="SELECT 1",
            predicted_sql="SELECT 2",
            verdict=Verdict.CORRECT if is_correct else Verdict.WRONG,
            reason="results_equal" if is_correct else "values_differ",
            error=None,
            hardness="easy" if number < 2 else "hard",
            error_classes=() if is_correct else errors,
        )
        for number, is_correct in enumerate(correct)
    )
    return EvaluationReport(name, records)


BEFORE = _run("before", True, False, False, errors=("extra_join",))
AFTER = _run("after", True, True, False, errors=("wrong_limit", "extra_join"))


def test_one_run_by_hand() -> None:
    # Wilson's interval of 1 of 3 is 6.1 to 79.2, of 1 of 2 9.5 to 90.5, of 0 of 1 0.0 to 79.3.
    text = format_markdown([BEFORE], title="Pets")
    assert text.startswith("# Pets\n\n3 questions on 1 databases.")
    assert (
        "| score | before |\n| --- | ---: |\n"
        "| Execution accuracy (strict) | 33.3 % (6.1 to 79.2) |\n"
        "| Undetermined | 0.0 % (0.0 to 56.1) |\n\n"
    ) in text
    assert "| easy | 50.0 % (9.5 to 90.5), 1 of 2 |\n| hard | 0.0 % (0.0 to 79.3), 0 of 1 |" in text
    assert "| extra join | 2 |" in text
    assert r"| pets\_1 | 33.3 % (6.1 to 79.2), 1 of 3 |" in text
    # Nothing was measured by level, and there is nothing to compare with.
    assert "level" not in text
    assert "Comparison" not in text


def test_runs_stand_side_by_side_and_are_compared() -> None:
    measured = tuple(replace(record, executes=True) for record in AFTER.records)
    after = EvaluationReport("after", measured, {"validity": "As written."})
    table = get_score_table([BEFORE, after])
    assert table.header == ("score", "before", "after")
    assert [row[0] for row in table.rows] == [
        "Execution accuracy (strict)",
        "Undetermined",
        "Predictions that execute",
    ]
    assert table.rows[2] == ("Predictions that execute", "-", "100.0 % (43.9 to 100.0)")
    assert "Predictions that execute of after: As written." in table.note
    text = format_markdown([BEFORE, after], title="Pets")
    assert "- after against before: no difference that these questions can show (1 quest" in text


def test_errors_are_ordered_by_the_last_run_and_can_be_cut() -> None:
    table = get_error_table([AFTER, BEFORE])
    assert table.rows == (("extra join", "1", "2"), ("wrong limit", "1", "0"))
    assert "1 of after, 2 of before" in table.note
    assert get_error_table([AFTER, BEFORE], max_classes=1).rows == table.rows[:1]


def test_a_question_without_a_hardness_is_explained() -> None:
    assert "Unspecified" not in get_hardness_table([BEFORE, AFTER]).note
    first, *others = AFTER.records
    table = get_hardness_table(
        [BEFORE, EvaluationReport("after", (replace(first, hardness=None), *others))]
    )
    assert table.rows[-1][:2] == ("unspecified", "-")
    assert table.note.endswith("Unspecified: Spider's parser cannot read the gold query.")


def test_a_table_without_content_is_left_out() -> None:
    bare = EvaluationReport("bare", tuple(replace(r, hardness=None) for r in AFTER.records[:2]))
    assert get_hardness_table([bare]).rows == ()
    text = format_markdown([bare], title="Pets")
    assert "hardness" not in text
    assert "Error classes" not in text


def test_names_cannot_break_a_table() -> None:
    odd = EvaluationReport("a|b\n# <c>", BEFORE.records)
    lines = format_markdown([odd], title="*T*").splitlines()
    assert lines[0] == r"# \*T\*"
    assert r"| score | a\|b \# \<c\> |" in lines
