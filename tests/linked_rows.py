"""Questions of `tiny_models` with the texts that a linker reads of them."""

import tiny_models
from tiny_models import QUESTIONS

from sense_trl.collators import LINKED_TEXTS
from sense_trl.database.engine import ColumnInfo, TableInfo
from sense_trl.questions import Question
from sense_trl.schema import DatabaseSchema
from sense_trl.steps.linking import write_linked_texts

COLUMNS = tuple(ColumnInfo(name, "", False, 0) for name in ("id", "name", "age"))
SCHEMAS = {
    name: DatabaseSchema(name, "sqlite", (TableInfo(name, COLUMNS, (), False),))
    for name in dict.fromkeys(row["db_id"] for row in QUESTIONS)
}
ASKED = [
    Question(row["question_id"], row["db_id"], row["prompt"].splitlines()[1], row["completion"])
    for row in QUESTIONS
]
TEXTS = write_linked_texts(ASKED, SCHEMAS, tiny_models.build_tiny_tokenizer(), max_length=512)
ROWS = [{**row, LINKED_TEXTS: texts} for row, texts in zip(QUESTIONS, TEXTS, strict=True)]
