"""`sense-trl prune` writes a student that loads, and refuses what cannot be one."""

from pathlib import Path

import pytest
import tiny_models
from transformers import AutoModelForCausalLM, AutoTokenizer

from sense_trl.cli.main import main


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_the_student_has_fewer_layers_and_the_tokenizer(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_models.save_tiny_model(tmp_path / "model", architecture)
    output = tmp_path / "student"
    assert main(["prune", model, "--num-layers", "1", "--output", str(output)]) == 0
    assert "1 of 2 layers" in capsys.readouterr().out
    student = AutoModelForCausalLM.from_pretrained(output)
    assert len(student.model.layers) == student.config.num_hidden_layers == 1
    assert (
        AutoTokenizer.from_pretrained(output).get_vocab()
        == AutoTokenizer.from_pretrained(model).get_vocab()
    )


def test_more_layers_than_there_are_and_a_folder_in_use_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_models.save_tiny_model(tmp_path / "model", "llama")
    output = str(tmp_path / "student")
    assert main(["prune", model, "--num-layers", "3", "--output", output]) == 2
    assert "`num_layers` is 3" in capsys.readouterr().err
    for used in (model, f"{model}/config.json"):
        assert main(["prune", model, "--num-layers", "1", "--output", used]) == 2
        assert "not empty" in capsys.readouterr().err
