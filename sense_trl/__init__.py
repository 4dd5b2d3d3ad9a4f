"""From a database and questions to a better text-to-SQL model.

Two halves that never import each other, so that pairs can be built and verified without torch:

* SQL half: `database, sql -> schema, questions -> prompts -> generation; verification -> pairs ->
  evaluation`;
* tensor half: `losses -> collators -> trainers`, which knows no SQL.

They meet in dataset columns, and in `steps`, `jobs`, `cli` and the recipes. `tests/
test_import_direction.py` holds the whole table. The public names stand in `__init__.pyi` and load
on first use: importing `sense_trl` imports nothing else. What is not among them is imported from
its module.
"""

import lazy_loader

from sense_trl._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
