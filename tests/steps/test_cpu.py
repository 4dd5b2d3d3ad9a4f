"""What is chosen by the instructions that a CPU has."""

from typing import Any

import pytest
import torch

from sense_trl.steps.cpu import fastest_sampling_dtype, multiplies_bfloat16
from sense_trl.steps.training import get_unattended_options


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides, not the CPU")
@pytest.mark.parametrize(
    ("found", "has_it"),
    [
        ({"avx2": True}, False),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({}, False),
    ],
)
def test_bfloat16_is_used_only_where_the_cpu_multiplies_it(
    found: dict[str, Any], has_it: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert multiplies_bfloat16() is has_it
    assert fastest_sampling_dtype() == ("bfloat16" if has_it else "float32")
    options = get_unattended_options(
        tmp_path, num_rows=80, num_epochs=1.0, batch_size=8, group_by_columns=["db_id"], seed=0
    )
    assert options["bf16"] is has_it
