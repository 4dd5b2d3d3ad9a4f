"""`Stage`: a step of a recipe as a command, run from its YAML file in one process or several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sense_trl.cli.parser import OptionParser, get_class
from sense_trl.cli.stage_help import format_stage_help
from sense_trl.cli.terminal import quieten_libraries
from sense_trl.database.location import PASSWORDS_VARIABLE, dump_passwords
from sense_trl.errors import InputError
from sense_trl.options import option

if TYPE_CHECKING:
    from rich.console import Console

_ACCELERATE_CONFIGS: Final = Path(__file__).resolve().parents[1] / "data" / "accelerate"
_HERE: Final = "none"
_FULL_HELP: Final = "--help_all"


@dataclass
class LaunchArguments:
    """Options of a stage about its processes and its dry run."""

    accelerate_config: str = option(
        "Start the stage with `accelerate launch` and this configuration: a YAML file, or one of "
        "ours: multi_gpu, zero2, fsdp_qlora. 'none' runs it in this process.",
        default=_HERE,
    )
    num_processes: int | None = option(
        "Processes (GPUs) to start, if not as `accelerate_config` says.", default=None
    )
    dry_run: bool = option(
        "Print what would run and end: the settings that differ from their defaults, the number of "
        "examples and their tokens, and the memory that training is estimated to take.",
        default=False,
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a recipe as a command.

    Attributes:
        name: of the command, and of the stage's YAML file.
        help: one line.
        options: the dataclasses that its arguments fill, as `MODULE:CLASS`: they take long to
            import.
        main: runs the stage on them and a console.
        describe: says what `main` would work on.
        optional: those of `options` that are left out where their first field is not given.
        usage: other command lines that it takes, for its help.
        needs_trl: whether its options are TRL's, too, which TRL's parser reads.
    """

    name: str
    help: str
    options: tuple[str, ...]
    main: Callable[..., None]
    describe: Callable[..., str]
    optional: tuple[str, ...] = ()
    usage: tuple[str, ...] = ()
    needs_trl: bool = True

    @property
    def all_options(self) -> tuple[str, ...]:
        """The dataclasses, that of where the stage runs included."""
        return (*self.options, f"{__name__}:LaunchArguments")

    def make_parser(self) -> Any:
        """Parser of the command line and of the YAML file behind `--config`, as TRL's scripts'."""
        texts: dict[str, Any] = {
            "prog": f"sense-trl {self.name}",
            "description": f"{self.help[0].upper()}{self.help[1:]}. Any flag may stand in the YAML "
            "file of --config instead, or in the recipe of --config RECIPE/STAGE; a flag given "
            "here wins over it.",
        }
        if not self.needs_trl:
            return OptionParser(
                self.all_options, takes_config=True, optional=self.optional, **texts
            )
        from sense_trl.cli.config_parser import ConfigParser

        texts["dataclass_types"] = tuple(map(get_class, self.all_options))
        return ConfigParser(**texts)

    def run(self, arguments: Sequence[str], console: Console) -> int:
        """Run the stage with a command line, here or under `accelerate launch`.

        Returns:
            The exit code.

        Raises:
            SenseTRLError: unusable input.
        """
        arguments = split_config_flag(arguments)
        if {"-h", "--help"}.intersection(arguments):
            print(format_stage_help(self.name, self.help, self.all_options, self.usage))  # noqa: T201 - the result
            return 0
        if _FULL_HELP in arguments:
            self.make_parser().print_help()
            return 0
        launch = _get_launch_arguments(arguments)
        # The processes that accelerate starts read the same YAML file.
        is_launched = "LOCAL_RANK" in os.environ
        if launch.accelerate_config != _HERE and not (launch.dry_run or is_launched):
            return _launch(self.name, arguments, launch)
        *groups, _ = _parse(self.make_parser(), arguments)
        if launch.dry_run:
            print(_format_settings(groups))  # noqa: T201 - the result of the command
            print(self.describe(*groups))  # noqa: T201
        else:
            # Files of predictions are read without these libraries.
            if self.needs_trl or all(group is not None for group in groups):
                quieten_libraries()
            self.main(*groups, console)
        return 0


def resolve_accelerate_config(name: str) -> Path:
    """The file of a configuration for `accelerate launch`: one of ours by name, or a path.

    Raises:
        InputError: it is neither.
    """
    for path in (_ACCELERATE_CONFIGS / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    ours = ", ".join(sorted(path.stem for path in _ACCELERATE_CONFIGS.glob("*.yaml")))
    raise InputError(
        f"`accelerate_config` is {name!r}; expected none, a file, or one of {ours}. "
        "`accelerate config` writes such a file."
    )


def split_config_flag(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--config=FILE` as two, the only way that TRL's parser knows."""
    parts = []
    for argument in arguments:
        parts += argument.split("=", 1) if argument.startswith("--config=") else [argument]
    return parts


def _launch(name: str, arguments: Sequence[str], launch: LaunchArguments) -> int:
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--config_file", str(resolve_accelerate_config(launch.accelerate_config))),
    ]
    if launch.num_processes is not None:
        command += ["--num_processes", str(launch.num_processes)]
    command += ["-m", "sense_trl", name, *arguments, "--accelerate_config", _HERE]
    environment = {**os.environ, PASSWORDS_VARIABLE: dump_passwords()}
    return subprocess.run(command, check=False, env=environment).returncode


def _get_launch_arguments(arguments: Sequence[str]) -> LaunchArguments:
    """Only where to run: reading the training arguments would occupy a GPU."""
    parser = OptionParser((LaunchArguments,), takes_config=True, add_help=False, allow_abbrev=False)
    launch: LaunchArguments = _parse(parser, arguments, return_remaining_strings=True)[0]
    return launch


def _parse(parser: Any, arguments: Sequence[str], **options: Any) -> tuple[Any, ...]:
    import yaml  # type: ignore[import-untyped]

    if arguments and arguments[-1] == "--config":
        raise InputError("`--config` stands last; expected a YAML file or RECIPE/STAGE after it.")
    try:
        return tuple(parser.parse_args_and_config(list(arguments), **options))
    # An unknown key, or values that a dataclass of TRL or transformers refuses.
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error


def _format_settings(groups: Sequence[Any]) -> str:
    """The arguments that differ from their defaults, as YAML."""
    import dataclasses

    import yaml

    changed = {}
    for group in filter(None, groups):
        for field in dataclasses.fields(group):
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            value = getattr(group, field.name)
            if field.init and value != default:
                # YAML knows neither the enumerations of transformers nor types of torch.
                changed[field.name] = json.loads(json.dumps(value, default=str))
    return str(yaml.safe_dump(changed, sort_keys=False)).rstrip()
