"""Identifiers as English."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.schema.naming import get_words, normalise, plural, singular


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("song_release_year", "song release year"),
        ("DepartmentID", "department id"),
        ("Home Games", "home games"),
        ("CMI_details", "cmi details"),
        ("airportcode", "airportcode"),
        ("Høyde_m2", "høyde m 2"),
    ],
)
def test_an_identifier_is_split_into_words(identifier: str, words: str) -> None:
    assert " ".join(get_words(identifier)) == words


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("singer", "singers"), ("country", "countries"), ("class", "classes"), ("box", "boxes"),
        ("campus", "campuses"), ("person", "people"), ("aircraft", "aircraft"), ("day", "days"),
    ],
)  # fmt: skip
def test_plurals_and_back(one: str, many: str) -> None:
    assert plural(one) == plural(many) == many
    assert singular(many) == one
    assert singular(one) == one


@given(st.text(max_size=60))
def test_the_normal_form_is_its_own(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
