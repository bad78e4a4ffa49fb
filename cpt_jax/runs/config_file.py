"""Config files: Python files with get_config(), given as FILE.py or FILE.py:ARGUMENT."""

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
    """Returns the config of a file as plain values, for tests, notebooks and your own programs.

    Args:
      reference: 'FILE.py', or 'FILE.py:ARGUMENT' if get_config takes an argument. A file in
        configs/ is found from any directory.

    Raises:
      UserError: the file is missing, it raises an exception, or it does not accept the argument.
    """
    return find_config(reference).load().to_dict()


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """An existing config file, and the argument for its get_config.

    Attributes:
      reference: the reference from the user, such as 'configs/prompteol.py:opt-13b'.
      path: path of the file.
      argument: text after the colon; None if there is no colon.
    """

    reference: str
    path: Path
    argument: str | None

    def __str__(self) -> str:
        return self.reference

    @property
    def name(self) -> str:
        """Name of the config for a directory, such as 'quickstart' or 'prompteol-opt-13b'."""
        if self.argument is None:
            return self.path.stem
        return f'{self.path.stem}-{re.sub("[^A-Za-z0-9._=,+-]", "-", self.argument)}'

    def load(self) -> ConfigDict:
        """Runs the file and calls its get_config.

        Raises:
          UserError: the file or get_config raises an exception, there is no get_config, or it does
            not accept the argument.
        """
        variables = self._run_user_code(lambda: runpy.run_path(str(self.path)))
        get_config = variables.get('get_config')
        if not callable(get_config):
            raise UserError(f'{self}: {self.path.name} defines no function get_config()')
        arguments = self._make_arguments(get_config, variables.get('ARGUMENTS', ()))
        config = self._run_user_code(lambda: get_config(*arguments))
        if not isinstance(config, ConfigDict | dict):
            raise UserError(
                f'{self}: get_config() returned {config!r}; it must return an '
                f'ml_collections.ConfigDict'
            )
        # A ConfigDict is not copied: a copy would lose its references between keys.
        return config if isinstance(config, ConfigDict) else ConfigDict(config)

    def _make_arguments(self, get_config: Callable, known: Iterable[str]) -> list[str]:
        """Returns the positional arguments for get_config: one or none.

        Args:
          get_config: the function of the file.
          known: ARGUMENTS of the file, the valid arguments; if empty, any argument is valid.

        Raises:
          UserError: the argument is missing, not accepted or not in `known`.
        """
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

    def _run_user_code(self, step: Callable[[], Any]) -> Any:
        """Returns `step()`, which runs code of the user's file; turns its errors into UserError."""
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
    """Returns the config file of a reference, 'FILE.py' or 'FILE.py:ARGUMENT'.

    If a relative path in configs/ does not exist in the current directory, it is looked up in the
    installed package `configs`.

    Raises:
      UserError: there is no such file.
    """
    path, argument = _split_reference(str(reference))
    if not path.exists() and path.parts[:1] == ('configs',):
        installed = Path(configs.__file__).parent.joinpath(*path.parts[1:])
        path = installed if installed.is_file() else path
    if path.is_file():
        return ConfigFile(str(reference), path, argument)
    if path.stem in configs.RENAMED:
        raise UserError(f'{reference}: {_describe_rename(path.stem)}')
    raise UserError(f'{reference}: no such file')


def find_default_workdir(name: str) -> Path:
    """Returns runs/NAME for the name of a config.

    If a run was started when the config was still a separate file (`configs.RENAMED`), prints a
    line and returns the directory of that run.
    """
    workdir = Path('runs', name)
    if workdir.exists():
        return workdir
    for former, reference in configs.RENAMED.items():
        former_workdir = Path('runs', former)
        config_file = ConfigFile(reference, *_split_reference(reference))
        if config_file.name == name and former_workdir.is_dir():
            print(f'continuing in {former_workdir}, the former default of this config', flush=True)
            return former_workdir
    return workdir


def _split_reference(reference: str) -> tuple[Path, str | None]:
    """Splits 'FILE.py:ARGUMENT' after '.py', because folder names may contain colons too."""
    before, colon, argument = reference.partition('.py:')
    return (Path(f'{before}.py'), argument) if colon else (Path(reference), None)


def _describe_rename(former: str) -> str:
    """Returns a message for the name of a former config file: its new name, and how to resume."""
    now = f'this config is now configs/{configs.RENAMED[former]}'
    workdir = Path('runs', former)
    if not workdir.is_dir():
        return now
    return f'{now}; the run in {workdir} continues with --workdir {workdir}'
