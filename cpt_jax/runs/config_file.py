"""Config files: Python files with get_config(), named as FILE.py or FILE.py:ARGUMENT."""

import dataclasses
import inspect
import re
import runpy
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import configs
from cpt_jax.runtime.errors import UserError


def load_config(reference: Path | str) -> dict[str, Any]:
    """Returns the config of a file as plain values: for tests, notebooks and your own programs.

    Args:
      reference: 'FILE.py', or 'FILE.py:ARGUMENT' where get_config takes an argument. A file in
        configs/ is found from any directory.

    Raises:
      UserError: the file is missing or broken, or the argument is not one of its own.
    """
    return find_config(reference).load().to_dict()


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A config file that exists, and the argument for its get_config.

    Attributes:
      reference: what the user typed, 'configs/prompteol.py:opt-13b'.
      path: path of the file.
      argument: what follows the colon; None without a colon.
    """

    reference: str
    path: Path
    argument: str | None

    def __str__(self) -> str:
        return self.reference

    @property
    def name(self) -> str:
        """Name of the config, fit for a directory: 'quickstart', 'prompteol-opt-13b'."""
        if self.argument is None:
            return self.path.stem
        return f'{self.path.stem}-{re.sub("[^A-Za-z0-9._=,+-]", "-", self.argument)}'

    def load(self) -> ConfigDict:
        """Runs the file and calls its get_config.

        Raises:
          UserError: the file or get_config raises an exception, there is no get_config, or it does
            not take this argument.
        """
        variables = self._run(lambda: runpy.run_path(str(self.path)))
        get_config = variables.get('get_config')
        if not callable(get_config):
            raise UserError(f'{self}: {self.path.name} defines no function get_config()')
        arguments = self._check_argument(get_config, variables.get('ARGUMENTS', ()))
        config = self._run(lambda: get_config(*arguments))
        if not isinstance(config, ConfigDict | dict):
            raise UserError(
                f'{self}: get_config() returned {config!r}; it must return an '
                f'ml_collections.ConfigDict'
            )
        # Not a copy of a ConfigDict, whose references between keys would be lost.
        return config if isinstance(config, ConfigDict) else ConfigDict(config)

    def _check_argument(self, get_config: Callable, known: Iterable[str]) -> list[str]:
        """Returns the positional arguments of get_config: one or none."""
        names = list(known)
        choices = f': choose one of {", ".join(names)}' if names else ''
        parameters = list(inspect.signature(get_config).parameters.values())
        if self.argument is None:
            if any(parameter.default is inspect.Parameter.empty for parameter in parameters):
                raise UserError(f'{self}: needs an argument, {self}:ARGUMENT{choices}')
            return []
        if not parameters:
            raise UserError(
                f'{self}: {self.path.name} takes no argument; leave out :{self.argument}'
            )
        if names and self.argument not in names:
            raise UserError(f'{self}: no argument {self.argument!r}{choices}')
        return [self.argument]

    def _run(self, step: Callable[[], Any]) -> Any:
        """Calls a part of the user's file. Whatever that raises is the user's mistake."""
        try:
            return step()
        except UserError as error:
            raise UserError(f'{self}: {error}') from error
        except Exception as error:
            calls = traceback.extract_tb(error.__traceback__)
            lines = [call.lineno for call in calls if call.filename == str(self.path)]
            line = f'line {lines[-1]}: ' if lines else ''
            raise UserError(f'{self}: {line}{type(error).__name__}: {error}') from error


def find_config(reference: Path | str) -> ConfigFile:
    """Returns the file that a reference names. A relative path below configs/ that does not exist
    in the current directory is looked up in the installed package `configs`.

    Raises:
      UserError: there is no such file.
    """
    path, argument = _split(str(reference))
    if not path.exists() and path.parts[:1] == ('configs',):
        installed = Path(configs.__file__).parent.joinpath(*path.parts[1:])
        path = installed if installed.is_file() else path
    if path.is_file():
        return ConfigFile(str(reference), path, argument)
    if path.stem in configs.RENAMED:
        raise UserError(f'{reference}: {_renamed(path.stem)}')
    raise UserError(f'{reference}: no such file')


def default_workdir(name: str) -> Path:
    """Returns runs/NAME for the name of a config; or, with a line that says so, the directory of a
    run that began when the config was a file of its own.
    """
    workdir = Path('runs', name)
    if workdir.exists():
        return workdir
    for former, reference in configs.RENAMED.items():
        began = Path('runs', former)
        if ConfigFile(reference, *_split(reference)).name == name and began.is_dir():
            print(f'continuing in {began}, where this config ran by default before', flush=True)
            return began
    return workdir


def _split(reference: str) -> tuple[Path, str | None]:
    """Splits 'FILE.py:ARGUMENT' after the suffix: other colons may belong to folders."""
    before, colon, argument = reference.partition('.py:')
    return (Path(f'{before}.py'), argument) if colon else (Path(reference), None)


def _renamed(former: str) -> str:
    now = f'this config is now configs/{configs.RENAMED[former]}'
    workdir = Path('runs', former)
    if not workdir.is_dir():
        return now
    return f'{now}; the run in {workdir} continues with --workdir {workdir}'
