"""`StatementCheck`: whether a statement only reads its DuckDB database, decided on its parse."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import duckdb

from sense_trl.database.engine import QueryStatus

Refusal: TypeAlias = tuple[QueryStatus, str]

# Functions of expressions that a query may call: what computes from its arguments alone, the
# clock and random numbers. An allow-list, so that a function that a later DuckDB brings is refused
# until someone has looked at it. Left out on purpose: what reads or changes the state of the
# connection (current_setting, getvariable, setseed, nextval, write_log, txid_current, ...), runs
# text as SQL or takes a statement apart (query, json_execute_serialized_sql, json_serialize_sql),
# waits (sleep_ms, pg_sleep), reads bytes as DuckDB's own structures (combine, finalize,
# to_aggregate_state, remap_struct, variant_bytes_to_variant, __internal_*, geometry from WKB), and
# privileges, object names and object identifiers of PostgreSQL.
FUNCTIONS: Final = frozenset(
    # operators
    """
    !~~ !~~* !__postfix % & && * ** + - ->> / // < <-> << <= <=> <@ = != > >= >> @ @> ^ ^@ | ||
    ~ ~~ ~~* ~~~ ilike_escape like_escape not_ilike_escape not_like_escape
    """
    # numbers
    """
    abs acos acosh add asin asinh atan atan2 atanh bit_count cbrt ceil ceiling cos cosh cot degrees
    divide even exp factorial fdiv floor fmod gamma gcd greatest greatest_common_divisor isfinite
    isinf isnan lcm least least_common_multiple lgamma ln log log10 log2 mod multiply nextafter pi
    pow power radians random round round_even roundbankers sign signbit sin sinh sqrt subtract tan
    tanh trunc xor
    """
    # conditions and types
    """
    alias can_cast_implicitly cast_to_type enum_code enum_first enum_last
    enum_range enum_range_boundary get_type hash if nullif pg_typeof typeof version
    """
    # text and bytes
    """
    array_to_string ascii bar base64 bin bit_length bit_position bitstring char_length
    character_length chr concat concat_ws contains damerau_levenshtein decode editdist3 encode
    ends_with format format_bytes formatReadableDecimalSize formatReadableSize from_base64
    from_binary from_hex get_bit hamming hex instr jaccard jaro_similarity jaro_winkler_similarity
    lcase left left_grapheme len length length_grapheme levenshtein lower lpad ltrim md5
    md5_number md5_number_lower md5_number_upper mismatches nfc_normalize octet_length ord overlay
    parse_dirname parse_dirpath parse_filename parse_formatted_bytes parse_path path_join
    pg_size_pretty position prefix printf regexp_escape regexp_extract regexp_extract_all
    regexp_full_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table
    repeat replace reverse right right_grapheme rpad rtrim set_bit sha1 sha256 split split_part
    starts_with str_split str_split_regex string_split string_split_regex string_to_array
    strip_accents strlen strpos substr substring substring_grapheme suffix to_base to_base64
    to_binary to_hex translate trim ucase unbin unhex unicode upper url_decode url_encode
    """
    # dates and times
    """
    age ago century current_date current_localtime current_localtimestamp date_add date_diff
    date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname dayofmonth
    dayofweek dayofyear days_in_month decade epoch epoch_ms epoch_ns epoch_us era
    get_current_time get_current_timestamp hour isodow isoyear julian last_day make_date make_time
    make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz microsecond millennium
    millisecond minute month monthname nanosecond normalized_interval now quarter second strftime
    strptime time_bucket timezone timezone_hour timezone_minute to_centuries to_days to_decades
    to_hours to_microseconds to_millennia to_milliseconds to_minutes to_months to_quarters
    to_seconds to_timestamp to_weeks to_years today transaction_timestamp try_strptime week weekday
    weekofyear year yearweek
    """
    # identifiers drawn at random
    """
    gen_random_uuid uuid uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7
    """
    # lists
    """
    aggregate apply array_aggr array_aggregate array_append array_apply array_cat array_concat
    array_contains array_cosine_distance array_cosine_similarity array_cross_product
    array_distance array_distinct array_dot_product array_extract array_filter array_grade_up
    array_has array_has_all array_has_any array_indexof array_inner_product array_intersect
    array_length array_negative_dot_product array_negative_inner_product array_pop_back
    array_pop_front array_position array_prepend array_push_back array_push_front array_reduce
    array_resize array_reverse array_reverse_sort array_select array_slice array_sort
    array_transform array_unique array_value array_where array_zip element_at filter flatten
    generate_series generate_subscripts grade_up list_aggr list_aggregate list_any_value
    list_append list_apply list_approx_count_distinct list_avg list_bit_and list_bit_or
    list_bit_xor list_bool_and list_bool_or list_cat list_concat list_contains
    list_cosine_distance list_cosine_similarity list_count list_distance list_distinct
    list_dot_product list_element list_entropy list_extract list_filter list_first list_grade_up
    list_has list_has_all list_has_any list_histogram list_indexof list_inner_product
    list_intersect list_kurtosis list_kurtosis_pop list_last list_mad list_max list_median
    list_min list_mode list_negative_dot_product list_negative_inner_product list_pack
    list_position list_prepend list_product list_reduce list_resize list_reverse
    list_reverse_sort list_select list_sem list_skewness list_slice list_sort list_stddev_pop
    list_stddev_samp list_string_agg list_sum list_transform list_unique list_value list_var_pop
    list_var_samp list_where list_zip range reduce unnest unpivot_list
    """
    # structs, maps and unions
    """
    cardinality map map_concat map_contains map_contains_entry map_contains_value map_entries
    map_extract map_extract_value map_from_entries map_keys map_values row struct_concat
    struct_contains struct_extract struct_extract_at struct_has struct_indexof struct_insert
    struct_keys struct_pack struct_position struct_update struct_values union_extract union_tag
    union_value
    """
    # JSON
    """
    array_to_json from_json from_json_strict json json_array json_array_length json_contains
    json_deep_merge json_exists json_extract json_extract_path json_extract_path_text
    json_extract_string json_group_array json_group_object json_group_structure json_insert
    json_keys json_merge_patch json_merge_patch_diff json_normalize json_object json_pretty
    json_quote json_remove json_replace json_set json_strip_nulls json_structure json_transform
    json_transform_strict json_type json_valid json_value row_to_json to_json
    """
    # aggregates
    """
    any_value approx_count_distinct approx_quantile approx_top_k arbitrary arg_max arg_max_null
    arg_max_nulls_last arg_min arg_min_null arg_min_nulls_last argmax argmin array_agg avg bit_and
    bit_or bit_xor bitstring_agg bool_and bool_or corr count count_if count_star countif covar_pop
    covar_samp entropy equi_width_bins favg first fsum geomean geometric_mean group_concat
    histogram histogram_exact is_histogram_other_bin kahan_sum kurtosis kurtosis_pop last list
    listagg mad max max_by mean median min min_by mode product quantile quantile_cont
    quantile_disc regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx
    regr_sxy regr_syy reservoir_quantile sem skewness stddev stddev_pop stddev_samp string_agg sum
    sum_no_overflow sumkahan var_pop var_samp variance wavg weighted_avg
    """
    # windows
    """
    cume_dist dense_rank fill first_value lag last_value lead nth_value ntile percent_rank rank
    rank_dense row_number
    """.lower().split()
)

# Functions that a query may read from, as it reads from a table.
TABLE_FUNCTIONS: Final = frozenset(
    "generate_series json_each json_tree range repeat repeat_row unnest".split()  # noqa: SIM905
)

# Views of DuckDB that describe the tables of the database, as `sqlite_master` does in SQLite.
_SYSTEM_VIEWS: Final = frozenset(
    {
        ("sqlite_master",),
        ("sqlite_schema",),
        ("information_schema", "columns"),
        ("information_schema", "key_column_usage"),
        ("information_schema", "referential_constraints"),
        ("information_schema", "table_constraints"),
        ("information_schema", "tables"),
        ("information_schema", "views"),
    }
)

# What a parse may consist of; everything else (statements in a CTE that write, nodes of later
# versions) is refused. Expressions have a class, other nodes a type.
_EXPRESSION_CLASSES: Final = frozenset(
    """
    BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA LAMBDA_REF
    OPERATOR POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW
    """.split()  # noqa: SIM905
)
_NODE_TYPES: Final = frozenset(
    """
    SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE CTE_NODE
    BASE_TABLE EMPTY EXPRESSION_LIST JOIN PIVOT SHOW_REF SUBQUERY TABLE_FUNCTION
    DISTINCT_MODIFIER LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER ORDER_MODIFIER
    ORDER_DEFAULT ASCENDING DESCENDING
    """.split()  # noqa: SIM905
)

# One text is run several times: gold for each prediction, a prediction on several instances.
_MAX_KNOWN: Final = 512
_MAX_KNOWN_CHARS: Final = 10_000
# A parse of 8 MB, some 45,000 constants, takes 50 MB and 0.2 s in Python.
_MAX_PARSE_CHARS: Final = 8_000_000


class _RefusedError(Exception):
    def __init__(self, status: QueryStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class StatementCheck:
    """Decides whether a statement only reads one attached database, on DuckDB's own parse of it.

    `json_serialize_sql` gives the tree that the same connection would run, so there are no two
    parsers that could read a text differently. Allowed are queries made of known kinds of nodes,
    the tables and views of the database, names of CTEs, DESCRIBE and SUMMARIZE of such a query,
    and functions on an allow-list, however they are spelled (`x.f()`, `main.f(x)`, quoted). A
    macro of the database is allowed if its definition is. What the definition of a view does is
    not looked at: it belongs to the database.

    A new text costs some 0.5 ms; the last 512 short ones are remembered.

    Args:
        connection: where the statements will run; the check runs queries of its own on it.
        catalog: name under which the database is attached, and whose schema `main` is in use.

    Raises:
        duckdb.Error: the catalog cannot be read.
    """

    def __init__(self, connection: Any, catalog: str) -> None:
        self._connection = connection
        self._catalog = catalog
        self._tables: set[tuple[str, ...]] = set()
        for schema, name in connection.execute(
            "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = $1 "
            "UNION ALL "
            "SELECT schema_name, view_name FROM duckdb_views() WHERE database_name = $1 "
            "AND NOT internal",
            [catalog],
        ).fetchall():
            self._tables |= _paths(catalog, schema.lower(), name.lower())
        self._system_views: set[tuple[str, ...]] = set()
        for schema, name in connection.execute(
            "SELECT DISTINCT schema_name, view_name FROM duckdb_views() WHERE internal"
        ).fetchall():
            for system in (catalog, "system", "temp"):
                self._system_views |= _paths(system, schema.lower(), name.lower())
            self._system_views.add((name.lower(),))
        self._macros: dict[str, list[str]] | None = None
        self._macro_is_allowed: dict[str, bool] = {}
        self._known: OrderedDict[str, Refusal | None] = OrderedDict()

    def refuse(self, sql: str) -> Refusal | None:
        """The reason why the one statement in `sql` must not run, or `None` if it may.

        Raises:
            duckdb.Error: the check was interrupted, or there is no memory for it.
        """
        if sql in self._known:
            self._known.move_to_end(sql)
            return self._known[sql]
        try:
            self._check(sql)
            refusal = None
        except _RefusedError as error:
            refusal = error.status, str(error)
        if len(sql) <= _MAX_KNOWN_CHARS:
            self._known[sql] = refusal
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return refusal

    def _check(self, sql: str) -> None:
        serialized = self._connection.execute(
            "SELECT json_serialize_sql($1::VARCHAR)", [sql]
        ).fetchone()[0]
        if len(serialized) > _MAX_PARSE_CHARS:
            raise _RefusedError(QueryStatus.EXECUTION_ERROR, "the query has too many parts")
        try:
            parse = json.loads(serialized)
        except RecursionError:
            raise _RefusedError(
                QueryStatus.EXECUTION_ERROR, "the query is nested too deeply"
            ) from None
        if parse["error"]:
            message = parse["error_message"]
            if "alloc" in message.lower():
                raise duckdb.OutOfMemoryException(message)
            # What is no query is "not implemented".
            kinds = {"not implemented": QueryStatus.DENIED, "parser": QueryStatus.SYNTAX_ERROR}
            status = kinds.get(parse["error_type"], QueryStatus.EXECUTION_ERROR)
            raise _RefusedError(status, message)
        if len(parse["statements"]) != 1:
            raise _RefusedError(QueryStatus.DENIED, "more than one statement")
        tables: list[dict[str, Any]] = []
        cte_names: set[str] = set()
        for node in _walk(parse["statements"][0]["node"]):
            if "class" in node:
                self._check_expression(node)
            elif isinstance(node.get("type"), str):
                self._check_node(node)
                if node["type"] == "BASE_TABLE":
                    tables.append(node)
            if "cte_map" in node:
                cte_names.update(entry["key"].lower() for entry in node["cte_map"]["map"])
        for table in tables:
            self._check_table(table, cte_names)

    def _check_expression(self, node: dict[str, Any]) -> None:
        kind = node["class"]
        if kind not in _EXPRESSION_CLASSES:
            raise _RefusedError(QueryStatus.DENIED, f"{kind} expressions are not allowed")
        if kind in ("FUNCTION", "WINDOW"):
            if node.get("export_state"):
                # The state of an aggregate is memory of DuckDB in a value.
                raise _RefusedError(QueryStatus.DENIED, "EXPORT_STATE is not allowed")
            name = node["function_name"]
            if name.lower() not in FUNCTIONS and not self._allows_macro(name.lower()):
                raise _RefusedError(QueryStatus.DENIED, f"function {name} is not allowed")

    def _check_node(self, node: dict[str, Any]) -> None:
        kind = node["type"]
        # Types of columns, up to DuckDB 1.5, are described among the nodes.
        if kind not in _NODE_TYPES and not kind.endswith("_TYPE_INFO"):
            raise _RefusedError(QueryStatus.DENIED, f"{kind} is not allowed, only queries")
        if kind == "SHOW_REF" and node["query"] is None:
            # SHOW of a name is a setting where no table has it.
            raise _RefusedError(
                QueryStatus.DENIED, "SHOW is not allowed; DESCRIBE names the columns of a table"
            )
        if kind == "TABLE_FUNCTION":
            name = node["function"].get("function_name", "")
            if name.lower() not in TABLE_FUNCTIONS and not self._allows_macro(name.lower()):
                raise _RefusedError(QueryStatus.DENIED, f"table function {name} is not allowed")

    def _check_table(self, node: dict[str, Any], cte_names: set[str]) -> None:
        path = tuple(part.lower() for part in _path_of(node))
        if path in self._tables or path in _SYSTEM_VIEWS:
            return
        shown = ".".join(_path_of(node))
        if path in self._system_views:
            raise _RefusedError(QueryStatus.DENIED, f"reading {shown} is not allowed")
        # A recursive query with a key calls its rows so far `recurring.name`.
        if path[-1] in cte_names and path[:-1] in ((), ("recurring",)):
            return
        # DuckDB would look further, for a file of that name for example.
        raise _RefusedError(
            QueryStatus.EXECUTION_ERROR, f"Catalog Error: Table with name {shown} does not exist!"
        )

    def _allows_macro(self, name: str) -> bool:
        if self._macros is None:
            # Takes 30 ms, so not before a query calls what is not on the list.
            self._macros = {}
            for macro, kind, definition in self._connection.execute(
                "SELECT function_name, function_type, macro_definition FROM duckdb_functions() "
                "WHERE database_name = $1 AND NOT internal",
                [self._catalog],
            ).fetchall():
                text = definition if kind == "table_macro" else f"SELECT {definition}"
                self._macros.setdefault(macro.lower(), []).append(text)
        if name not in self._macro_is_allowed:
            # Not while it is looked at: no macro may lead back to itself.
            self._macro_is_allowed[name] = False
            definitions = self._macros.get(name, [])
            self._macro_is_allowed[name] = bool(definitions) and all(
                self._is_allowed(definition) for definition in definitions
            )
        return self._macro_is_allowed[name]

    def _is_allowed(self, sql: str) -> bool:
        try:
            self._check(sql)
        except _RefusedError:
            return False
        return True


def _walk(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects of a parse, except the description of a table function as an expression."""
    remaining = [tree]
    while remaining:
        part = remaining.pop()
        if isinstance(part, list):
            remaining += part
        elif isinstance(part, dict):
            yield part
            for name, value in part.items():
                if name == "function" and part.get("type") == "TABLE_FUNCTION":
                    # Its own name is not that of a function of expressions.
                    remaining += value.values()
                else:
                    remaining.append(value)


def _paths(catalog: str, schema: str, name: str) -> set[tuple[str, ...]]:
    """All ways to write the name of a table, in lower case."""
    paths: set[tuple[str, ...]] = {(schema, name), (catalog, schema, name)}
    if schema == "main":
        paths |= {(name,), (catalog, name)}
    return paths


def _path_of(table: dict[str, Any]) -> list[str]:
    if "qualified_name" in table:
        path: list[str] = table["qualified_name"]["path"]
        return path
    # Before DuckDB 2.0.
    parts = (table["catalog_name"], table["schema_name"], table["table_name"])
    return [part for part in parts if part]
