"""`parse_design`, `write_design`: the schema a model wrote, taken apart and written anew.

DDL of a model is hostile: none of it ever reaches a database. It is parsed, only tables with
columns, types, keys and simple checks are taken over, and `write_design` writes new statements
from those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlglot import exp

from sense_trl.database.text import quote_name
from sense_trl.errors import SenseTRLError
from sense_trl.sql.parsing import SQLParseError, parse_statements

# Models mix the words of several databases; the first dialect that reads all of it counts.
_DIALECTS: Final = ("sqlite", "mysql", "postgres")
_MAX_CHARS: Final = 20_000
_MAX_TABLES: Final = 20
_MAX_COLUMNS: Final = 50
_MAX_NAME_CHARS: Final = 64
# Where a statement has no semicolon before the next one, as small models write them.
_NOT_ENDED: Final = re.compile(r"(?<=\))(?=[ \t]*\n\s*CREATE\s+TABLE\b)", re.I)
_NAME: Final = re.compile(r"[^\W\d][\w ]*")


class DesignError(SenseTRLError):
    """A model's DDL is not a schema that can be built.

    Attributes:
        reason: a word to count by.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ColumnKind(StrEnum):
    """The kind of a column's values; as text the type that is declared."""

    INTEGER = "INTEGER"
    REAL = "REAL"
    TEXT = "TEXT"
    DATE = "DATE"
    DATETIME = "DATETIME"
    TIME = "TIME"
    BOOLEAN = "BOOLEAN"

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self in (ColumnKind.INTEGER, ColumnKind.REAL, ColumnKind.BOOLEAN)


@dataclass(frozen=True, slots=True)
class ColumnDesign:
    """One column; `choices` are the words of an ENUM, () where it is none."""

    name: str
    kind: ColumnKind
    not_null: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ForeignKeyDesign:
    """`columns` refer to `referenced_columns` of `referenced_table`, in this order."""

    columns: tuple[str, ...]
    referenced_table: str
    referenced_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableDesign:
    """One table.

    Attributes:
        name: as written.
        columns: in the order of the declaration.
        primary_key: its columns, () if there is none.
        unique: column groups that are declared UNIQUE.
        foreign_keys: what they refer to is a table of the schema and a key of it.
        checks: conditions on a row, as sqlglot trees.
    """

    name: str
    columns: tuple[ColumnDesign, ...]
    primary_key: tuple[str, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    foreign_keys: tuple[ForeignKeyDesign, ...] = ()
    checks: tuple[exp.Expression, ...] = ()

    def column(self, name: str) -> ColumnDesign:
        """The column of that name, in any case.

        Raises:
            KeyError: there is none.
        """
        for column in self.columns:
            if column.name.lower() == name.lower():
                return column
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class SchemaDesign:
    """Tables, those that others refer to before those that refer to them."""

    tables: tuple[TableDesign, ...]


def parse_design(ddl: str) -> SchemaDesign:
    """Read CREATE TABLE statements, with semicolons between them or not.

    Taken over are tables, columns, types (by what they hold), NOT NULL, PRIMARY KEY, UNIQUE,
    FOREIGN KEY, ENUM and checks made of columns, constants, comparisons and logic. Left out, as
    they change nothing about which queries can be asked: defaults, collations, AUTOINCREMENT,
    names of constraints, what to do on delete, indices of MySQL, storage options.

    Raises:
        DesignError: by `reason`: `"too_long"`, `"unparsable_ddl"`, `"no_table"`,
            `"statement_not_allowed"` (whatever else than a plain CREATE TABLE), `"too_wide"`,
            `"bad_name"`, `"duplicate_name"`, `"type_not_supported"`, `"constraint_not_supported"`,
            `"unknown_column"`, `"two_primary_keys"`, `"broken_foreign_key"` (no such table, or no
            key of it, or of other types) or `"cyclic_foreign_keys"`. (`create_database` adds
            `"refused_by_sqlite"`.)
    """
    if len(ddl) > _MAX_CHARS:
        raise DesignError("too_long", f"{len(ddl)} characters of DDL; at most {_MAX_CHARS}")
    ddl = _NOT_ENDED.sub(";", ddl)
    problem = DesignError("unparsable_ddl", "no dialect reads the DDL")
    for dialect in _DIALECTS:
        try:
            return _read_tables(_parse_creations(ddl, dialect))
        except DesignError as error:
            # What stopped the first dialect that could read it says most.
            if problem.reason == "unparsable_ddl":
                problem = error
    raise problem


def write_design(design: SchemaDesign) -> list[str]:
    """The statements that create the schema in SQLite, in an order in which they can run.

    Example:
        >>> print(*write_design(parse_design("create table pet (id int primary key, name text)")))
        CREATE TABLE "pet" ("id" INTEGER, "name" TEXT, PRIMARY KEY ("id"))
    """
    return [_create_table(table) for table in design.tables]


# ---------------------------------------------------------------------- reading


def _parse_creations(ddl: str, dialect: str) -> list[exp.Create]:
    try:
        creations = parse_statements(ddl, dialect)
    except SQLParseError as error:
        raise DesignError("unparsable_ddl", str(error)[:200]) from error
    for tree in creations:
        # sqlglot makes a command of whatever it cannot read.
        if isinstance(tree, exp.Command):
            raise DesignError("unparsable_ddl", str(tree)[:80])
        if not _is_plain_creation(tree):
            raise DesignError("statement_not_allowed", f"only CREATE TABLE is: {str(tree)[:80]}")
    return creations


def _read_tables(creations: Sequence[exp.Create]) -> SchemaDesign:
    if not creations:
        raise DesignError("no_table", "the DDL creates no table")
    if len(creations) > _MAX_TABLES:
        raise DesignError("too_wide", f"{len(creations)} tables; at most {_MAX_TABLES}")
    readers = [_TableReader(creation) for creation in creations]
    _check_distinct([reader.name for reader in readers], "tables")
    tables = {reader.name.lower(): reader.read() for reader in readers}
    resolved = {
        name: _with_keys_resolved(table, reader.references, tables)
        for (name, table), reader in zip(tables.items(), readers, strict=True)
    }
    return SchemaDesign(tuple(_parents_first(resolved)))


def _is_plain_creation(tree: Any) -> bool:
    if not isinstance(tree, exp.Create) or tree.kind != "TABLE" or tree.args.get("expression"):
        return False
    if not isinstance(tree.this, exp.Schema) or not isinstance(tree.this.this, exp.Table):
        return False
    if tree.this.this.args.get("db"):
        return False
    properties = tree.args.get("properties")
    return properties is None or not properties.find(exp.TemporaryProperty, exp.VirtualProperty)


class _TableReader:
    """Takes one CREATE TABLE apart."""

    def __init__(self, creation: exp.Create) -> None:
        self.name = _checked_name(creation.this.this.this)
        self.references: list[tuple[list[str], exp.Reference]] = []
        self._items: list[Any] = creation.this.expressions
        self._columns: list[ColumnDesign] = []
        self._primary: list[list[str]] = []
        self._unique: list[list[str]] = []
        self._checks: list[exp.Expression] = []

    def read(self) -> TableDesign:
        """The table, whose foreign keys are still in `references`."""
        definitions = [item for item in self._items if isinstance(item, exp.ColumnDef)]
        # A column without a type is a bare name.
        definitions += [item for item in self._items if isinstance(item, exp.Identifier)]
        for item in self._items:
            if item in definitions:
                self._read_column(item)
        if not self._columns or len(self._columns) > _MAX_COLUMNS:
            raise DesignError("too_wide", f"{self.name} has {len(self._columns)} columns")
        _check_distinct([column.name for column in self._columns], f"columns of {self.name}")
        for item in self._items:
            if item not in definitions:
                self._read_constraint(item)
        if len(self._primary) > 1:
            raise DesignError("two_primary_keys", f"{self.name} has {len(self._primary)}")
        return TableDesign(
            self.name,
            tuple(self._columns),
            primary_key=self._known(self._primary[0]) if self._primary else (),
            unique=tuple(dict.fromkeys(map(self._known, self._unique))),
            checks=tuple(map(self._checked, self._checks)),
        )

    def _read_column(self, item: Any) -> None:
        if isinstance(item, exp.Identifier):
            self._columns.append(ColumnDesign(_checked_name(item), ColumnKind.TEXT))
            return
        name = _checked_name(item.this)
        not_null = False
        for constraint in item.constraints:
            kind = constraint.kind
            if isinstance(kind, exp.NotNullColumnConstraint):
                not_null = not kind.args.get("allow_null")
            elif isinstance(kind, exp.PrimaryKeyColumnConstraint):
                self._primary.append([name])
            elif isinstance(kind, exp.UniqueColumnConstraint):
                self._unique.append([name])
            elif isinstance(kind, exp.CheckColumnConstraint):
                self._checks.append(kind.this)
            elif isinstance(kind, exp.Reference):
                self.references.append(([name], kind))
            elif not isinstance(kind, _IDLE_CONSTRAINTS):
                raise DesignError("constraint_not_supported", f"{name}: {kind.sql()[:80]}")
        declared = item.args.get("kind")
        choices = ()
        if declared is not None and declared.this.name == "ENUM":
            choices = tuple(word.name for word in declared.expressions)
        self._columns.append(ColumnDesign(name, _kind(name, declared), not_null, choices))

    def _read_constraint(self, item: Any) -> None:
        if isinstance(item, exp.Constraint):
            for inner in item.expressions:
                self._read_constraint(inner)
        elif isinstance(item, exp.PrimaryKey):
            self._primary.append(_names(item.expressions))
        elif isinstance(item, exp.UniqueColumnConstraint) and isinstance(item.this, exp.Schema):
            self._unique.append(_names(item.this.expressions))
        elif isinstance(item, exp.CheckColumnConstraint):
            self._checks.append(item.this)
        elif isinstance(item, exp.ForeignKey):
            reference = item.args.get("reference")
            if reference is None:
                raise DesignError("broken_foreign_key", f"{self.name}: {item.sql()[:80]}")
            self.references.append((_names(item.expressions), reference))
        elif not isinstance(item, exp.IndexColumnConstraint):
            raise DesignError("constraint_not_supported", f"{self.name}: {str(item)[:80]}")

    def _known(self, names: Sequence[str]) -> tuple[str, ...]:
        """The columns of these names, as they are declared."""
        declared = {column.name.lower(): column.name for column in self._columns}
        for name in names:
            if name.lower() not in declared:
                raise DesignError("unknown_column", f"{self.name} has no column {name!r}")
        found = [declared[name.lower()] for name in names]
        _check_distinct(found, f"key columns of {self.name}")
        return tuple(found)

    def _checked(self, condition: exp.Expression) -> exp.Expression:
        for node in condition.walk():
            if not isinstance(node, _CHECK_NODES):
                text = condition.sql()[:80]
                raise DesignError("constraint_not_supported", f"{self.name}: CHECK ({text})")
            node.comments = None
            if isinstance(node, exp.Like) and not _is_short_pattern(node.expression):
                raise DesignError(
                    "constraint_not_supported", f"{self.name}: LIKE {node.sql()[:80]}"
                )
        for column in list(condition.find_all(exp.Column)):
            (name,) = self._known([column.name])
            column.set("table", None)
            column.set("this", exp.to_identifier(name))
        return condition


def _is_short_pattern(node: Any) -> bool:
    # Each further % multiplies the work by the length of the value, and nothing interrupts it.
    return isinstance(node, exp.Literal) and str(node.this).count("%") <= 3


_IDLE_CONSTRAINTS: Final = (
    exp.AutoIncrementColumnConstraint,
    exp.CollateColumnConstraint,
    exp.CommentColumnConstraint,
    exp.DefaultColumnConstraint,
)
_CHECK_NODES: Final = (
    exp.Column,
    exp.Identifier,
    exp.Literal,
    exp.Boolean,
    exp.Null,
    exp.Paren,
    exp.Neg,
    exp.Not,
    exp.And,
    exp.Or,
    exp.Between,
    exp.In,
    exp.Is,
    exp.Like,
    exp.EQ,
    exp.NEQ,
    exp.LT,
    exp.LTE,
    exp.GT,
    exp.GTE,
    exp.Add,
    exp.Sub,
    exp.Mul,
    exp.Length,
    exp.Lower,
    exp.Upper,
)

_KINDS: Final = {
    kind: re.compile(pattern)
    for kind, pattern in (
        (ColumnKind.BOOLEAN, r"BOOLEAN|BIT"),
        (ColumnKind.INTEGER, r"U?(?:TINY|SMALL|MEDIUM|BIG)?INT\d*|(?:SMALL|BIG)?SERIAL|YEAR"),
        (ColumnKind.REAL, r"FLOAT|U?DOUBLE|U?DECIMAL\d*|BIGDECIMAL|(?:SMALL)?MONEY|BIGNUM"),
        (ColumnKind.TEXT, r"N?(?:VAR|BP)?CHAR|NAME|(?:TINY|MEDIUM|LONG)?TEXT|ENUM|UUID"),
        (ColumnKind.DATETIME, r"DATETIME\w*|TIMESTAMP\w*|SMALLDATETIME"),
        (ColumnKind.DATE, r"DATE|DATE32"),
        (ColumnKind.TIME, r"TIME|TIMETZ"),
    )
}


def _kind(name: str, declared: exp.DataType | None) -> ColumnKind:
    if declared is None:
        return ColumnKind.TEXT
    # SQLite takes any word for a type, so sqlglot keeps those it does not know as they are.
    own_word = declared.args.get("kind")
    word = declared.this.name if own_word is None else str(own_word).upper()
    for kind, pattern in _KINDS.items():
        if pattern.fullmatch(word):
            return kind
    raise DesignError("type_not_supported", f"{name} {declared.sql()}")


def _names(items: Iterable[Any]) -> list[str]:
    """Names in a list of columns, some of which carry an order."""
    return [item.this.name if isinstance(item, exp.Ordered) else item.name for item in items]


def _checked_name(identifier: Any) -> str:
    name = identifier.name if isinstance(identifier, exp.Identifier) else ""
    if (
        not _NAME.fullmatch(name)
        or len(name) > _MAX_NAME_CHARS
        or name.lower().startswith("sqlite_")
        or name != name.strip()
    ):
        raise DesignError("bad_name", f"{str(identifier)[:80]!r} cannot name a table or column")
    return name


def _check_distinct(names: Sequence[str], what: str) -> None:
    if len({name.lower() for name in names}) < len(names):
        raise DesignError("duplicate_name", f"{what}: {list(names)}")


# ---------------------------------------------------------------------- foreign keys


def _with_keys_resolved(
    table: TableDesign,
    references: Sequence[tuple[list[str], exp.Reference]],
    tables: dict[str, TableDesign],
) -> TableDesign:
    keys = [_resolve_key(table, names, reference, tables) for names, reference in references]
    return TableDesign(
        table.name,
        table.columns,
        table.primary_key,
        table.unique,
        tuple(dict.fromkeys(keys)),
        table.checks,
    )


def _resolve_key(
    table: TableDesign, names: list[str], reference: exp.Reference, tables: dict[str, TableDesign]
) -> ForeignKeyDesign:
    target = reference.this
    wanted = _names(target.expressions) if isinstance(target, exp.Schema) else []
    referenced = tables.get(target.find(exp.Table).name.lower())
    problem = DesignError("broken_foreign_key", f"{table.name}: {names} {reference.sql()[:80]}")
    if referenced is None:
        raise problem
    try:
        columns = [table.column(name) for name in names]
        targets = [referenced.column(name) for name in wanted or referenced.primary_key]
    except KeyError:
        raise problem from None
    key = tuple(column.name for column in targets)
    # SQLite asks for a key whose columns are these, in any order.
    if sorted(key) not in [sorted(k) for k in (referenced.primary_key, *referenced.unique)]:
        raise problem
    if [column.kind for column in columns] != [column.kind for column in targets]:
        raise problem
    return ForeignKeyDesign(tuple(column.name for column in columns), referenced.name, key)


def _parents_first(tables: dict[str, TableDesign]) -> Iterator[TableDesign]:
    done: set[str] = set()
    left = dict(tables)
    while left:
        ready = [name for name, table in left.items() if _parents(table) <= done]
        if not ready:
            raise DesignError("cyclic_foreign_keys", f"among {', '.join(left)}")
        for name in ready:
            yield left.pop(name)
        done.update(ready)


def _parents(table: TableDesign) -> set[str]:
    names = {key.referenced_table.lower() for key in table.foreign_keys}
    return names - {table.name.lower()}


# ---------------------------------------------------------------------- writing


def _create_table(table: TableDesign) -> str:
    items = [
        f"{quote_name(column.name)} {column.kind}{' NOT NULL' if column.not_null else ''}"
        for column in table.columns
    ]
    if table.primary_key:
        items.append(f"PRIMARY KEY ({_name_list(table.primary_key)})")
    items += [f"UNIQUE ({_name_list(names)})" for names in table.unique]
    items += [
        f"FOREIGN KEY ({_name_list(key.columns)}) REFERENCES "
        f"{quote_name(key.referenced_table)} ({_name_list(key.referenced_columns)})"
        for key in table.foreign_keys
    ]
    items += [
        f"CHECK ({condition.sql(dialect='sqlite', identify=True)})" for condition in table.checks
    ]
    return f"CREATE TABLE {quote_name(table.name)} ({', '.join(items)})"


def _name_list(names: Iterable[str]) -> str:
    return ", ".join(map(quote_name, names))
