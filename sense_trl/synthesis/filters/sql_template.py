"""`get_sql_template`: a query without its constants."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from sense_trl.sql.parsing import canonical_sql, parse_sql, write_sql


def get_sql_template(sql: str, dialect: str) -> str:
    """Write a query canonically, with `?` for every constant.

    Strings, numbers (with their sign) and the counts of LIMIT and OFFSET are constants; a list of
    them after IN is one `?`, however long. A number by which ORDER BY or GROUP BY names a column
    is none, nor is the 1 of COUNT(1). An unqualified word in double quotes beside a comparison is
    taken for the string that SQLite makes of it where no column has that name. Tables and columns
    stay.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> get_sql_template("SELECT name FROM singer WHERE age > 30 AND land = 'FR'", "sqlite")
        'SELECT name FROM singer WHERE age > ? AND land = ?'
        >>> get_sql_template('select Name from singer where land in ("FR", "DE") limit 3', "sqlite")
        'SELECT name FROM singer WHERE land IN (?) LIMIT ?'
    """
    tree = parse_sql(canonical_sql(sql, dialect), dialect).transform(_abstract, copy=False)
    return write_sql(tree, dialect)


def is_constant(node: Any) -> bool:
    """Whether a node is what `get_sql_template` puts a `?` for."""
    if isinstance(node, exp.Neg):
        return isinstance(node.this, exp.Literal)
    if isinstance(node, exp.Literal):
        return node.is_string or not isinstance(node.parent, (exp.Ordered, exp.Group, exp.Count))
    return isinstance(node, exp.Column) and _is_string(node)


def _abstract(node: exp.Expression) -> exp.Expression:
    if is_constant(node):
        return exp.Placeholder()
    if isinstance(node, exp.In) and node.expressions and all(map(is_constant, node.expressions)):
        node.set("expressions", [exp.Placeholder()])
    return node


def _is_string(column: exp.Column) -> bool:
    identifier = column.this
    if column.table or not (isinstance(identifier, exp.Identifier) and identifier.quoted):
        return False
    parent = column.parent
    if isinstance(parent, (exp.In, exp.Between)):
        return column is not parent.this
    return isinstance(parent, exp.Predicate) and column is not parent.this
