"""`get_sql_template`: a query without its constants."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from sense_trl.sql.parsing import canonical_sql, parse_sql

__all__ = ["get_sql_template"]


def get_sql_template(sql: str, dialect: str) -> str:
    """Write a query canonically, with `?` for every constant.

    Strings, numbers (with their sign) and the counts of LIMIT and OFFSET are constants; a list of
    them after IN is one `?`, however long. A number by which ORDER BY or GROUP BY names a column
    is none. An unqualified word in double quotes beside a comparison is taken for the string that
    SQLite makes of it where no column has that name. Tables and columns stay.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> get_sql_template("SELECT name FROM singer WHERE age > 30 AND land = 'FR'", "sqlite")
        'SELECT name FROM singer WHERE age > ? AND land = ?'
        >>> get_sql_template('select Name from singer where land in ("FR", "DE") limit 3', "sqlite")
        'SELECT name FROM singer WHERE land IN (?) LIMIT ?'
    """
    tree = parse_sql(canonical_sql(sql, dialect), dialect).transform(_abstract, copy=False)
    text: str = tree.sql(dialect=dialect)
    return text


def _abstract(node: exp.Expression) -> exp.Expression:
    if _is_constant(node):
        return exp.Placeholder()
    if isinstance(node, exp.In) and node.expressions and all(map(_is_constant, node.expressions)):
        node.set("expressions", [exp.Placeholder()])
    return node


def _is_constant(node: Any) -> bool:
    if isinstance(node, exp.Neg):
        return isinstance(node.this, exp.Literal)
    if isinstance(node, exp.Literal):
        return not _names_column(node)
    return isinstance(node, exp.Column) and _is_string(node)


def _names_column(literal: exp.Literal) -> bool:
    """`ORDER BY 2`, `GROUP BY 1`."""
    return not literal.is_string and isinstance(literal.parent, (exp.Ordered, exp.Group))


def _is_string(column: exp.Column) -> bool:
    identifier = column.this
    if column.table or not (isinstance(identifier, exp.Identifier) and identifier.quoted):
        return False
    parent = column.parent
    if isinstance(parent, (exp.In, exp.Between)):
        return column is not parent.this
    return isinstance(parent, exp.Predicate) and column is not parent.this
