"""How every program in launch/ starts and ends: flags, one line for a user's mistake, exit
statuses.
"""

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

# Key flags of the program that calls define_processes, which shows them in its --help.
flags.disclaim_key_flags()


def run_program(main: Callable[[], int | None]) -> None:
    """Parses the flags, runs `main` and exits with what it returns (None: 0).

    --help shows the docstring and the flags of the module that defines `main`.
    """
    _show_help_of(sys.modules[main.__module__])
    if 'JAX_PLATFORMS' not in os.environ and not _may_have_accelerator(Path('/')):
        # Or libtpu, which launch/plan.py needs, complains on stderr that there is no TPU.
        os.environ['JAX_PLATFORMS'] = 'cpu'

    if os.environ.get('JAX_PLATFORMS') == 'cpu':
        keep_freed_memory()

    def run(argv: list[str]) -> int | None:
        # Our libraries say at level INFO what is of interest to their authors.
        if not flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)
        try:
            if len(argv) > 1:
                raise UserError(f'{argv[1]}: not a flag; flags start with --')
            return main()
        except UserError as error:
            return _fail(error)
        except Exception:
            traceback.print_exc()
            return EXIT_CRASHED

    app.run(run, flags_parser=_parse)


def _show_help_of(module: ModuleType) -> None:
    """Makes absl's --help describe `module`: absl describes the script that Python was started
    with, which is a file of a few lines in launch/ or a console script.
    """
    sys.modules['__main__'].__doc__ = module.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(module.__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def define_processes() -> Callable[[], AbstractContextManager[None]]:
    """Defines the flags of a program that several processes run together, one a host; returns what
    joins them, for a `with` block.

    Within the block an exception on one process ends all of them (cpt_jax/runtime/multihost.py).
    """
    coordinator = flags.DEFINE_string(
        'coordinator', '', 'host:port of process 0, where no cluster tells it.'
    )
    processes = flags.DEFINE_integer('processes', 1, 'Number of processes, with --coordinator.')
    process = flags.DEFINE_integer(
        'process', 0, 'Number of this process, from 0, with --coordinator.'
    )

    def join() -> AbstractContextManager[None]:
        from cpt_jax.runtime.multihost import join_processes, shared_fate

        join_processes(coordinator.value, processes.value, process.value)
        return shared_fate()

    return join


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # --help, which absl ends with 1
        sys.exit(0)
    except (flags.Error, UserError) as error:
        sys.exit(_fail(error))
    except Exception as error:
        # From ml_collections, which sets the keys of --config: for instance a key of a section that
        # another flag has just replaced.
        sys.exit(_fail(f'--config: {type(error).__name__}: {error}'))


def _fail(error: object) -> int:
    logging.flush()
    print('error:', ' '.join(str(error).split()), file=sys.stderr, flush=True)
    return EXIT_MISTAKE


def _may_have_accelerator(root: Path) -> bool:
    """Anything that hints at one: JAX finds out which. A plug-in of JAX (GPUs), a device of
    Google's on the bus, TPU settings.
    """
    chips = [*(root / 'dev').glob('accel*'), *(root / 'dev/vfio').glob('[0-9]*')]
    google = any(
        path.read_text().strip() == '0x1ae0'
        for path in (root / 'sys/bus/pci/devices').glob('*/vendor')
    )
    return (
        bool(chips)
        or google
        or any(name.startswith('TPU_') for name in os.environ)
        or find_spec('jax_plugins') is not None
    )


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start need not
    compile.
    """
    import jax

    from cpt_jax.storage.cache import cache_folder

    setting = 'jax_compilation_cache_dir'
    if getattr(jax.config, setting) is None:
        jax.config.update(setting, os.fspath(cache_folder() / 'xla'))
