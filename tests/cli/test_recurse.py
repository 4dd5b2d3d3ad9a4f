"""`sense-trl recurse`: flags, and messages for unusable input. The rounds: tests/jobs."""

from pathlib import Path

import pytest

from sense_trl.cli.main import EXIT_INPUT, main
from sense_trl.jobs.recursion_config import RecursionConfig


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["recurse", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all("--" + name in text for name in RecursionConfig.__annotations__)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "nowhere"], ["not a model folder"]),
        (["--database", "none.sqlite", "--questions", "q.jsonl"], ["none.sqlite"]),
        (["--min-agreement", "2"], ["`min_agreement` is 2.0"]),
        (["--num-rounds", "0"], ["`num_rounds` is 0"]),
        (["--max-dev-questions", "0"], ["`max_dev_questions` is 0"]),
    ],
)
def test_unusable_input_is_one_paragraph_and_exit_code_2(
    flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main(["recurse", "--output-dir", str(output), *flags]) == EXIT_INPUT
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("error:")
    assert all(word in message for word in words), message
    assert not output.exists()
