"""Code that starts and ends every program in launch/: flags, one-line errors, exit statuses."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from absl import app, flags, logging

from cpt_jax.runtime.allocator import keep_freed_memory
from cpt_jax.runtime.errors import EXIT_CRASHED, EXIT_MISTAKE, UserError

# absl lists these flags in the --help of the program that calls define_process_flags.
flags.disclaim_key_flags()


def run_program(main: Callable[[], int | None], list_flag: str = '') -> None:
    """Parses the flags, calls `main` and exits with the status that it returns (None means 0).

    --help shows the docstring and the flags of the module that defines `main`.

    Args:
      main: the program.
      list_flag: list flag whose value may continue with the words after it, as in --compare A B;
        optional.
    """
    _describe_module_in_help(sys.modules[main.__module__])
    if 'JAX_PLATFORMS' not in os.environ and not _may_have_accelerator(Path('/')):
        # Otherwise libtpu, which launch/plan.py needs, reports on stderr that it found no TPU.
        os.environ['JAX_PLATFORMS'] = 'cpu'

    if os.environ.get('JAX_PLATFORMS') == 'cpu':
        keep_freed_memory()

    def run(argv: list[str]) -> int | None:
        # At level INFO, the libraries log details that only concern their developers.
        if not flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)
        try:
            if list_flag and flags.FLAGS[list_flag].present:
                words: list[str] = flags.FLAGS[list_flag].value or []
                flags.FLAGS[list_flag].value = words + argv[1:]
            elif len(argv) > 1:
                raise UserError(f'{argv[1]}: not a flag; flags start with --')
            return main()
        except UserError as error:
            return _print_error(error)
        except Exception:
            traceback.print_exc()
            return EXIT_CRASHED

    app.run(run, flags_parser=_parse_flags)


def _describe_module_in_help(module: ModuleType) -> None:
    """Makes absl's --help describe `module`.

    absl describes the script that Python was started with, which here is a launch/ shim of a few
    lines or a console script.
    """
    sys.modules['__main__'].__doc__ = module.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(module.__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def define_process_flags() -> Callable[[], AbstractContextManager[None]]:
    """Defines the flags of a program that runs as several processes, one per host.

    Returns:
      A function that joins the processes and returns a context manager. Within its `with` block, an
      exception in one process ends all of them (cpt_jax/runtime/multihost.py).
    """
    coordinator = flags.DEFINE_string(
        'coordinator',
        '',
        'Address of process 0 as host:port. Default: detected by JAX on TPU pods and clusters.',
    )
    processes = flags.DEFINE_integer(
        'processes', 1, 'Number of processes; used with --coordinator.'
    )
    process = flags.DEFINE_integer(
        'process', 0, 'Index of this process, from 0; used with --coordinator.'
    )

    def join() -> AbstractContextManager[None]:
        from cpt_jax.runtime.multihost import exit_together, join_processes

        join_processes(coordinator.value, processes.value, process.value)
        return exit_together()

    return join


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # from --help, for which absl exits with 1
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        hint = ''
        if 'config' in flags.FLAGS:
            from cpt_jax.cli.config_flag import suggest_config_key

            hint = suggest_config_key(error.flagname)
        sys.exit(_print_error(f'{error}{hint}'))
    except (flags.Error, UserError) as error:
        sys.exit(_print_error(_explain_value_error(str(error))))
    except Exception as error:
        # ml_collections raises these while it sets keys of --config, for example for a key of a
        # section that another flag has just replaced.
        sys.exit(_print_error(f'--config: {type(error).__name__}: {error}'))


# Ends of messages of Python and absl about the value of a flag -> what the value must be.
_VALUE_ERRORS = {
    'invalid literal for int()': 'an integer',
    'could not convert string to float': 'a number',
    "('Non-boolean argument to boolean flag'": 'True or False',
}


def _explain_value_error(message: str) -> str:
    """Returns the message about the value of a flag, with what it must be."""
    for words, allowed in _VALUE_ERRORS.items():
        flag, separator, _ = message.partition(f': {words}')
        if separator:
            return f'{flag.removeprefix("flag ")}: must be {allowed}'
    return message


def _print_error(error: object) -> int:
    """Prints an error on one line of stderr; returns the exit status."""
    logging.flush()
    print('error:', ' '.join(str(error).split()), file=sys.stderr, flush=True)
    return EXIT_MISTAKE


def _may_have_accelerator(root: Path) -> bool:
    """Returns whether this machine shows any sign of an accelerator; JAX then detects its kind.

    Signs are: a JAX plug-in (GPUs), a TPU device file, a Google device on the PCI bus, and
    environment variables that start with TPU_.

    Args:
      root: root directory of the file system.
    """
    device_files = [*(root / 'dev').glob('accel*'), *(root / 'dev/vfio').glob('[0-9]*')]
    vendor_files = (root / 'sys/bus/pci/devices').glob('*/vendor')
    has_google_device = any(path.read_text().strip() == '0x1ae0' for path in vendor_files)
    return (
        bool(device_files)
        or has_google_device
        or any(name.startswith('TPU_') for name in os.environ)
        or find_spec('jax_plugins') is not None
    )


def use_compilation_cache() -> None:
    """Makes JAX keep compiled programs in the user's cache folder, so that restarts do not compile.

    Does nothing if a folder is already configured. Warns if the folder cannot be created.

    Raises:
      UserError: the cache folder is in an unknown home directory.
    """
    import jax

    from cpt_jax.storage.cache import get_cache_folder

    setting = 'jax_compilation_cache_dir'
    if getattr(jax.config, setting) is None:
        folder = get_cache_folder() / 'xla'
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logging.warning(
                '%s cannot be created (%s), so each start compiles again: set CPT_JAX_CACHE to a '
                'folder that can be written',
                folder,
                error.strerror,
            )
        else:
            jax.config.update(setting, os.fspath(folder))
