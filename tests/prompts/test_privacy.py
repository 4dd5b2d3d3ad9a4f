"""Which columns look like secrets or a person's data."""

import pytest

from sense_trl.prompts.privacy import PrivacyRules, Sensitivity

SECRET, PERSONAL, NONE = Sensitivity.SECRET, Sensitivity.PERSONAL, Sensitivity.NONE


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("users.password", SECRET), ("users.PasswordHash", SECRET), ("login.pwd", SECRET),
        ("app.api_key", SECRET), ("app.accessToken", SECRET), ("card.CVV", SECRET),
        ("payment.credit_card_number", SECRET), ("account.iban", SECRET), ("t.pin_code", SECRET),
        ("t.email", PERSONAL), ("t.EMail_Address", PERSONAL), ("t.phone_number", PERSONAL),
        ("t.first_name", PERSONAL), ("t.LastName", PERSONAL), ("t.ssn", PERSONAL),
        ("t.date_of_birth", PERSONAL), ("customers.name", PERSONAL), ("t.customer_name", PERSONAL),
        ("Student.Fname", PERSONAL), ("t.zip_code", PERSONAL), ("t.ip", PERSONAL),
        ("singer.name", NONE), ("city.name", NONE), ("product.code", NONE), ("t.status", NONE),
        ("flights.airline", NONE), ("t.country", NONE), ("t.shipping_method", NONE),
        ("t.pinned", NONE), ("t.hashtag", NONE), ("customers.status", NONE), ("t.token_ring", SECRET),
    ],
)  # fmt: skip
def test_names_are_judged(name: str, expected: Sensitivity) -> None:
    assert PrivacyRules().judge(*name.split(".")) is expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["ada@example.org", "bob@example.org", "none"], PERSONAL),
        (["+49 30 1234567", "555-867-5309", "(555) 867-5309"], PERSONAL),
        (["192.168.0.1"], PERSONAL),
        (["5f4dcc3b5aa765d61d8327deb882cf99"], SECRET),
        (["$2b$12$abcdefghijklmnopqrstuv"], SECRET),
        (["4111 1111 1111 1111"], SECRET),
        (["DE89 3704 0044 0532 0130 00"], SECRET),
        (["2018-03-17", "2019-01-01"], NONE),
        (["AB12", "CD34"], NONE),
        ([1, 2.5, None], NONE),
        # One address among texts is no column of addresses.
        ([*"abcdefghij", "ada@example.org"], NONE),
    ],
)
def test_values_are_judged(values: list[object], expected: Sensitivity) -> None:
    assert PrivacyRules().judge("t", "x", values) is expected


def test_patterns_decide_and_hiding_wins() -> None:
    rules = PrivacyRules(shown=("Singer.*", "*.email"), hidden=("*.status", "singer.email"))
    assert rules.judge("singer", "First_Name") is NONE
    assert rules.judge("customer", "EMAIL") is NONE
    assert rules.judge("singer", "email") is SECRET
    assert rules.judge("order", "Status") is SECRET
    assert rules.judge("customer", "phone") is PERSONAL
