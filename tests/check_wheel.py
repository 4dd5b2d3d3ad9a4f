"""Run by CI against the installed wheel, in an environment without torch.

Builds and verifies preference pairs on the embedded database and evaluates predictions: the SQL
half must need nothing else. The recipes must be there, without their scripts. What a package index
shows of README.md has no link to a file.
"""

import importlib.metadata
import importlib.util
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import sense_trl
from sense_trl import (
    Candidate,
    DatabaseCatalog,
    SQLVerifier,
    build_preference_pairs,
    evaluate_sql,
    load_questions,
    make_task,
)
from sense_trl.cli.recipes import load_recipes, resolve_config
from sense_trl.evaluation.soft_f1 import soft_f1
from sense_trl.pairs.distance import token_distance
from sense_trl.synthesis.output_folder import open_output_folder

assert "site-packages" in str(sense_trl.__file__), f"not the installed wheel: {sense_trl.__file__}"
assert importlib.util.find_spec("torch") is None, "this environment has torch: the check is void"

folder = files("sense_trl") / "data" / "nycflights"
catalog = DatabaseCatalog.from_path(str(folder / "nycflights.sqlite"))
questions = load_questions(str(folder / "questions.jsonl"))
candidates = [
    Candidate(q.question_id, 0, f"SELECT * FROM ({q.gold_sql}) LIMIT 0", "", "weak", "none")
    for q in questions
]
with SQLVerifier(catalog) as verifier:
    result = build_preference_pairs(make_task(catalog, questions), candidates, verifier)
    report = evaluate_sql(questions, {q.question_id: q.gold_sql for q in questions}, verifier)
assert len(result.dataset) == len(questions), result.summary()
assert report.execution_accuracy == 1.0, report.summary()
# What stands on a library of its own.
assert soft_f1([(2, "b"), (1, "a")], [(1, "a"), (3, "b")]) == 0.75
assert token_distance("SELECT a FROM t", "SELECT b FROM t", "sqlite") == 1
with tempfile.TemporaryDirectory() as scratch, open_output_folder(scratch):
    pass

installed = files("sense_trl") / "data" / "recipes"
checkout = Path(__file__).parent.parent / "recipes"
shipped = [path for pattern in ("**/*.yaml", "**/README.md") for path in checkout.glob(pattern)]
expected = {path.relative_to(checkout).as_posix(): path.read_bytes() for path in shipped}
found = {
    path.relative_to(str(installed)).as_posix(): path.read_bytes()
    for path in Path(str(installed)).rglob("*.*")
    if path.is_file()
}
assert found == expected, found.keys() ^ expected.keys()
for recipe in load_recipes().values():
    for stage in recipe.stages:
        file = resolve_config(f"{recipe.name}/{stage}")
        assert file.is_relative_to(str(installed)), file

packaged = {str(file).split("/")[0] for file in importlib.metadata.files("sense_trl") or ()}
assert packaged.isdisjoint({"docs", "tests", "recipes"}), packaged

links = re.findall(r"\]\(([^)]+)\)", importlib.metadata.metadata("sense_trl")["Description"])
assert links
assert all(link.startswith(("https://", "#")) for link in links), links

assert "torch" not in sys.modules
sys.stdout.write(f"wheel ok: {len(result.dataset)} pairs, {len(load_recipes())} recipes\n")
