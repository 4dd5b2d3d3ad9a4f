"""The text in which a model reads a schema and a question."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, TableInfo
from sense_trl.linking.reading import SchemaBlock, repeat_items, split_question, write_blocks
from sense_trl.schema import DatabaseSchema

NAMES = st.text(st.sampled_from("ab _<|>\n\udce9é"), min_size=1, max_size=8)


def make_schema(*tables: tuple[str, list[str]], key: tuple[str, ...] = ()) -> DatabaseSchema:
    keys = (ForeignKeyInfo((key[1],), key[2], (key[3],)),) if key else ()
    return DatabaseSchema(
        "d",
        "sqlite",
        tuple(
            TableInfo(
                name,
                tuple(ColumnInfo(c, "", False, 0) for c in columns),
                keys if key and name == key[0] else (),
                False,
            )
            for name, columns in tables
        ),
    )


def read(block: SchemaBlock) -> list[str]:
    return [block.text[start:end] for start, end in block.spans]


def test_keys_among_the_tables_of_a_block_are_written() -> None:
    schema = make_schema(
        ("pet", ["id", "owner id"]), ("person", ["id"]), key=("pet", "owner id", "person", "id")
    )
    (block,) = write_blocks(schema)
    assert block.text.splitlines()[1:] == [
        'pet(id, "owner id")',
        "person(id)",
        'pet."owner id" = person.id',
        "",
        "Question:",
    ]
    assert block.items[:3] == (("pet", ""), ("pet", "id"), ("pet", "owner id"))
    first, second = write_blocks(schema, max_chars=20)
    assert "=" not in first.text + second.text
    assert (read(first), read(second)) == (["pet", "id", '"owner id"'], ["person", "id"])


def test_a_wide_table_stands_in_several_blocks() -> None:
    schema = make_schema(("wide", [f"column_{i}" for i in range(50)]))
    blocks = write_blocks(schema, max_chars=100)
    assert len(blocks) > 5
    assert all(len(block.text) < 160 for block in blocks)
    assert [block.items[0] for block in blocks] == [("wide", "")] * len(blocks)
    assert [item for block in blocks for item in block.items[1:]] == [
        ("wide", f"column_{i}") for i in range(50)
    ]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(NAMES, st.lists(NAMES, min_size=1, max_size=5)), min_size=1, max_size=4),
    st.integers(5, 60),
)
def test_every_item_stands_where_its_span_says(
    tables: list[tuple[str, list[str]]], max_chars: int
) -> None:
    schema = make_schema(*tables)
    expected = {(name.lower(), c.lower()) for name, columns in tables for c in ["", *columns]}
    blocks = write_blocks(schema, max_chars=max_chars)
    assert {item for block in blocks for item in block.items} == expected
    for block in blocks:
        assert block.text.isprintable() or "\n" in block.text
        ends = 0
        for start, end in block.spans:
            assert ends <= start < end
            ends = end
        assert len(block.items) == len(block.spans)


def test_words_of_a_question_stand_where_their_spans_say() -> None:
    text, spans = split_question("  What's the\nname? ")
    assert [text[s:e] for s, e in spans] == ["What", "'", "s", "the", "name", "?", "\n"]
    # Of a text without end its end is read.
    long, places = split_question("x " * 100_000 + "age")
    assert len(long) < 2_100
    assert long[slice(*places[-2])] == "age"


@settings(max_examples=20)
@given(st.lists(st.lists(NAMES, max_size=8), min_size=1, max_size=4), st.integers(1, 60))
def test_every_item_is_repeated_between_two_marks(names: list[list[str]], max_chars: int) -> None:
    tables = [(f"t{i}", list(dict.fromkeys(columns))) for i, columns in enumerate(names)]
    (block,) = write_blocks(make_schema(*tables), max_chars=100_000)
    asked, words = split_question("How old?")
    texts = repeat_items("How old?", block, max_chars=max_chars)
    between = []
    for text, spans in texts:
        assert text.startswith(asked)
        assert spans[: len(words)] == words
        marks = spans[len(words) :]
        for opened, closed in zip(marks[::2], marks[1::2], strict=True):
            assert text[slice(*opened)] + text[slice(*closed)] == "[]"
            between.append(text[opened[1] + 1 : closed[0] - 1])
        # What is cut has room for no further item.
        assert len(marks) == 2 or len(text) - len(asked) <= max_chars
    own = [block.text[start:end] for start, end in block.spans]
    assert [name.endswith(end) for name, end in zip(between, own, strict=True)] == [True] * len(own)
