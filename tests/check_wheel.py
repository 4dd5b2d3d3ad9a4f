"""Run by CI against the installed wheel, in an environment without torch.

Builds and verifies preference pairs on the embedded database and evaluates predictions: the SQL
half must need nothing else.
"""

import importlib.util
import sys
from importlib.resources import files

import sense_trl
from sense_trl import (
    Candidate,
    DatabaseCatalog,
    SQLVerifier,
    build_preference_pairs,
    evaluate_sql,
    format_schema,
    get_prompt,
    get_schema,
    load_questions,
)

assert "site-packages" in str(sense_trl.__file__), f"not the installed wheel: {sense_trl.__file__}"
assert importlib.util.find_spec("torch") is None, "this environment has torch: the check is void"

folder = files("sense_trl") / "data" / "nycflights"
catalog = DatabaseCatalog.from_path(str(folder / "nycflights.sqlite"))
questions = load_questions(str(folder / "questions.jsonl"))
schema = format_schema(get_schema(catalog.engine("nycflights")))
candidates = [
    Candidate(q.question_id, 0, f"SELECT * FROM ({q.gold_sql}) LIMIT 0", "", "weak", "none")
    for q in questions
]
with SQLVerifier(catalog) as verifier:
    result = build_preference_pairs(
        questions, candidates, verifier, get_messages=lambda q: get_prompt(q.question, schema)
    )
    report = evaluate_sql(questions, {q.question_id: q.gold_sql for q in questions}, verifier)
assert len(result.dataset) == len(questions), result.summary()
assert report.execution_accuracy == 1.0, report.summary()
assert "torch" not in sys.modules
sys.stdout.write(f"wheel ok: {len(result.dataset)} pairs\n")
