"""What a pair policy promises, for every small size and limit."""

import random
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.pairs.candidates import Candidate
from sense_trl.pairs.policies import grouped_any


def _candidates(name: str, count: int) -> list[Candidate]:
    return [Candidate("q", i, f"{name}{i}", f"{name}{i}", "weak", "m") for i in range(count)]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32))
def test_no_query_is_used_twice_before_every_one_was_used_once(
    num_correct: int, num_erroneous: int, seed: int
) -> None:
    correct, erroneous = _candidates("c", num_correct), _candidates("e", num_erroneous)
    previous: list[tuple[Candidate, Candidate]] = []
    for limit in range(num_correct * num_erroneous + 2):
        pairs = grouped_any(correct, erroneous, limit, random.Random(seed))
        assert len(pairs) == min(limit, num_correct * num_erroneous)
        assert len(set(pairs)) == len(pairs)
        assert all(chosen in correct and rejected in erroneous for chosen, rejected in pairs)
        for side, every in ((0, correct), (1, erroneous)):
            uses = Counter(pair[side] for pair in pairs)
            # At any limit, nobody has been used more than once oftener than anybody else.
            assert not pairs or max(uses.values()) - min(uses[c] for c in every) <= 1
        assert pairs[: len(previous)] == previous
        previous = pairs


def test_a_limit_of_one_takes_any_query_on_either_side() -> None:
    correct, erroneous = _candidates("c", 3), _candidates("e", 2)
    first = [grouped_any(correct, erroneous, 1, random.Random(seed))[0] for seed in range(60)]
    assert set(first) == {(c, e) for c in correct for e in erroneous}
    assert any(a != b for a, b in pairwise(first))
