"""A pretended strong model: what it answers to each data point that it is asked for.

The answers are of the kinds that models give: in the form that was asked for, as JSON, in Markdown
with prose, in the SQL of another database, after thoughts; and refusals, prose, halves, wrong and
hostile SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.prompts import Messages

BEES = """DOMAIN: Beekeeping
SCHEMA:
```sql
CREATE TABLE apiary (
    apiary_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL, -- 'North Meadow', 'Old Mill'
    region TEXT -- 'Fjordland', 'Heath'
);
CREATE TABLE hive (
    hive_id INTEGER PRIMARY KEY,
    apiary_id INTEGER NOT NULL REFERENCES apiary (apiary_id),
    kind TEXT CHECK (kind IN ('Langstroth', 'Top bar')),
    honey_kg REAL
);
```
QUESTION: What is the total honey of the Top bar hives in each apiary of Fjordland?
SQL:
```sql
SELECT a.name, SUM(h.honey_kg) FROM apiary a JOIN hive h ON h.apiary_id = a.apiary_id
WHERE a.region = 'Fjordland' AND h.kind = 'Top bar' GROUP BY a.apiary_id, a.name;
```"""
CLOCKS = """Here is the data point:

```json
{
  "domain": "Antique clock repair",
  "schema": ["CREATE TABLE clock (clock_id INTEGER PRIMARY KEY, maker TEXT, made_in INTEGER);",
             "CREATE TABLE repair (repair_id INTEGER PRIMARY KEY, clock_id INTEGER, cost REAL, FOREIGN KEY (clock_id) REFERENCES clock (clock_id));"],
  "question": "Which makers have clocks from before 1850 whose repair cost more than 400?",
  "sql": "SELECT DISTINCT c.maker FROM clock AS c JOIN repair AS r ON r.clock_id = c.clock_id WHERE c.made_in < 1850 AND r.cost > 400"
}
```
"""
LICHEN = """Sure! Let me think of something unusual.

## **Domain:** Lichen herbarium

### Database Schema

```sql
-- Specimens
CREATE TABLE specimen (
    id SERIAL PRIMARY KEY,
    species VARCHAR(80), -- 'Xanthoria parietina', 'Usnea hirta'
    collected DATE
);
```

**Question:** "How many specimens were collected in 2021?"

**SQL Query:**

```sql
SELECT COUNT(*) FROM specimen WHERE collected BETWEEN '2021-01-01' AND '2021-12-31';
```

This counts the rows of that year."""
FERRIES = """1. DOMAIN: River ferries
2. SCHEMA: CREATE TABLE ferry (
  ferry_id INT AUTO_INCREMENT PRIMARY KEY,
  name VARCHAR(40) NOT NULL UNIQUE,
  state ENUM('afloat', 'in dock') NOT NULL,
  capacity INT UNSIGNED,
  KEY (capacity)
) ENGINE=InnoDB;
3. QUESTION: Which ferries are in dock? Give their names
in order of capacity.
4. SQL: SELECT name FROM ferry WHERE state = 'in dock' ORDER BY capacity DESC, name"""
KITES = """<think>
DOMAIN: Education
QUESTION: no, something rarer.
</think>
DOMAIN: Kite competitions
SCHEMA:
CREATE TABLE kite (kite_id INTEGER PRIMARY KEY, pilot TEXT, sail_area REAL);
CREATE TABLE flight (flight_id INTEGER PRIMARY KEY, kite_id INTEGER REFERENCES kite, height_m INTEGER);
QUESTION: Which pilots have a kite that flew higher than the average flight?
SQL: SELECT DISTINCT k.pilot FROM kite k WHERE k.kite_id IN
  (SELECT f.kite_id FROM flight f WHERE f.height_m > (SELECT AVG(height_m) FROM flight))"""
GOOD = (BEES, CLOCKS, LICHEN, FERRIES, KITES)


def labelled(domain: str, schema: str, question: str, sql: str) -> str:
    return f"DOMAIN: {domain}\nSCHEMA:\n```sql\n{schema}\n```\nQUESTION: {question}\nSQL:\n```sql\n{sql}\n```"


_POT = "CREATE TABLE pot (pot_id INTEGER PRIMARY KEY, glaze TEXT, price REAL)"
BAD = {
    "refusal": "I'm sorry, but I can't help with making up data.",
    "prose": "A wonderful idea would be a database about sundials and their owners.",
    "no_sql": BEES.split("SQL:")[0].replace("Beekeeping", "Hives"),
    "wrong_ddl": labelled("Pottery", "CREATE TABLE pot (pot_id INTEGER PRIMARY KEY, glaze", "Which glazes?", "SELECT glaze FROM pot"),
    "hostile_ddl": labelled("Sundials", f"{_POT}; ATTACH '/tmp/x.db' AS x", "Which ones?", "SELECT 1"),
    "unknown_column": labelled("Pottery", _POT, "Which colours are there?", "SELECT colour FROM pot"),
    "drop": labelled("Kilns", _POT, "Which pots should go?", "DROP TABLE pot"),
    "closed_domain": BEES.replace("Beekeeping", "Higher Education"),
    "duplicate": BEES.replace("Beekeeping", "Insects"),
    "leak": labelled("Glazes", _POT, "How many singers do we have?", "SELECT COUNT(*) FROM pot"),
    "cut": BEES.replace("Beekeeping", "Wasps").rstrip()[:-20],
    "empty": labelled("Bowls", _POT, "Which pots are and are not dear?", "SELECT pot_id FROM pot WHERE price > 5 AND NOT price > 5"),
    "clock": labelled("Vases", _POT, "Which pots are of today?", "SELECT glaze FROM pot WHERE glaze <> date('now')"),
    "two": labelled("Jugs", _POT, "Which glazes and prices?", "SELECT glaze FROM pot; SELECT price FROM pot"),
    "nul": BEES.replace("Beekeeping", "Bumble\x00bees"),
}  # fmt: skip
EXPECTED_REMOVED = {
    "answer": {"refusal": 1, "malformed": 1, "no_sql": 1, "unfinished": 1, "not_text": 1},
    "domain": {"closed_domain": 1},
    "schema": {"unparsable_ddl": 1, "statement_not_allowed": 1},
    "one_select": {"not_a_query": 1, "unparsable": 1},
    "contamination": {"same_question": 1},
    "duplicate": {"duplicate_question": 1},
    "execution": {"empty": 1, "gold_execution_error": 1, "gold_not_deterministic": 1},
}
ANSWERS = [BEES, *BAD.values(), *GOOD[1:]]


def answer_to(messages: Messages) -> tuple[str, str]:
    """Text and finish reason for the number in the prompt; a question gets the SQL of its answer."""
    content = messages[-1]["content"]
    asked = re.search(r"data point \(number (\d+)\)", content)
    if asked is None:
        return "SELECT 'no idea'", "stop"
    text = ANSWERS[(int(asked.group(1)) - 1) % len(ANSWERS)]
    return text, "length" if text == BAD["cut"] else "stop"


class StrongModel:
    """The same as a generator, without a server.

    Args:
        before: called with the number of prompts of each call of `generate`; may raise.
        answer: what is answered to a prompt.
    """

    name = "pretender"

    def __init__(
        self,
        before: Callable[[int], None] = lambda count: None,
        answer: Callable[[Messages], tuple[str, str]] = answer_to,
    ) -> None:
        self.prompts: list[Messages] = []
        self._before = before
        self._answer = answer

    def generate(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        self._before(len(prompts))
        self.prompts += prompts
        answers = [self._answer(prompt) for prompt in prompts]
        return [
            [Completion(text, 1, reason == "stop")] * sampling.num_generations
            for text, reason in answers
        ]
