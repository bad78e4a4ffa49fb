"""How every program in launch/ starts and ends: absl flags, one line for a user's mistake, exit statuses."""

import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cpt_jax.allocator import keep_freed_memory
from cpt_jax.errors import EXIT_CRASHED, EXIT_MISTAKE, UserError
from cpt_jax.prompt import REPRESENTATIONS, Representation, demonstrations_of

flags.disclaim_key_flags()  # those that are defined here are the programs' own, and stand in their --help

ACCUMULATION = (
    ' Gradient accumulation is not offered: a micro-batch would have its own negatives alone, and a contrastive loss would not be that of'
    ' the batch; train.encode_chunks saves the same memory and is exact.'
)


def run_program(main: Callable[[], int | None]) -> None:
    """Parses the flags, runs `main` and exits with what it returns (None: 0)."""
    if 'JAX_PLATFORMS' not in os.environ and not _may_have_accelerator(Path('/')):
        os.environ['JAX_PLATFORMS'] = 'cpu'  # or libtpu, which launch/plan.py needs, complains on stderr that there is no TPU

    if os.environ.get('JAX_PLATFORMS') == 'cpu':
        keep_freed_memory()

    def run(argv: list[str]) -> int | None:
        if not flags.FLAGS['verbosity'].present:  # our libraries say at level INFO what is of interest to their authors
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


def define_config() -> Callable[[], tuple[str, ConfigDict]]:
    """Defines the flag --config FILE.py, whose keys are set with --config.section.key=value; returns its reader.

    The reader gives the file's name without its suffix, and the config. It raises UserError where the file is missing or broken.
    """
    holder = config_flags.DEFINE_config_file('config', None, 'A file with get_config(), such as configs/quickstart.py.', lock_config=True)

    def read() -> tuple[str, ConfigDict]:
        path = flags.FLAGS['config'].config_filename if flags.FLAGS['config'].present else None
        if not path:
            raise UserError('--config is missing: give a file such as configs/quickstart.py')
        if not Path(path).is_file():
            raise UserError(f'--config {path}: no such file')
        try:
            return Path(path).stem, ConfigDict(holder.value)
        except Exception as error:  # whatever the user's file raises
            reason = error.__cause__ or error
            raise UserError(f'--config {path}: {type(reason).__name__}: {reason}') from error

    return read


def define_model(evaluation: bool = False, required: bool = True) -> tuple[flags.FlagHolder[str], Callable[[], dict[str, Any]]]:
    """Defines --model and the flags that say how texts become vectors, for all programs that load a model.

    Args:
      evaluation: texts in a template are cleaned as the PromptEOL paper does, unless --nocleanup is given.
      required: whether --model must be given.

    Returns:
      --model, and the reader of the others: keyword arguments of `load_embedder`. It raises UserError where they do not go together.
    """
    reference = 'A model reference: a run, run@step, run@best:TASK (after evaluate.py --follow), or the directory of a pretrained model.'
    pooling = 'Of a pretrained model whose directory says none; else mean for BERT, last (eos) for decoders.'
    representation = (
        'How a causal language model represents a text: prompteol or prompt (last token of a template), last, mean (of the text alone);'
        ' own: as it was trained.'
    )
    template = 'Your own in place of the one of --representation, with the slot {text} for the text; its last token counts.'
    demonstration = "A sentence and its word, 'A jockey riding a horse.=Equestrian', shown before each text; may be repeated."
    cleanup = 'Of texts in a template: a full stop at the end, no double quotes, no question mark at the end, as the paper evaluates.'
    model = flags.DEFINE_string('model', None, reference, required=required)
    pooled = flags.DEFINE_enum('pooling', None, ['eos', 'last', 'mean', 'cls'], pooling)
    name = flags.DEFINE_enum('representation', 'own', ['own', *REPRESENTATIONS], representation)
    own = flags.DEFINE_string('template', '', template)
    shown = flags.DEFINE_multi_string('demonstration', [], demonstration)
    clean = flags.DEFINE_boolean('cleanup', evaluation, cleanup)
    fsdp = flags.DEFINE_integer(
        'fsdp', 1, 'Devices that share one copy of the parameters: for models that one does not hold.', lower_bound=1
    )

    def read() -> dict[str, Any]:
        chosen = Representation(name.value, own.value, demonstrations_of(shown.value), clean.value)
        return {'pooling': pooled.value or '', 'representation': chosen, 'fsdp': fsdp.value}

    return model, read


def define_processes() -> Callable[[], AbstractContextManager[None]]:
    """Defines the flags of a program that several processes run together, one a host; returns what joins them, for a `with` block.

    Within the block an exception on one process ends all of them (cpt_jax/processes.py).
    """
    coordinator = flags.DEFINE_string('coordinator', '', 'host:port of process 0, where no cluster tells it.')
    processes = flags.DEFINE_integer('processes', 1, 'Number of processes, with --coordinator.')
    process = flags.DEFINE_integer('process', 0, 'Number of this process, from 0, with --coordinator.')

    def join() -> AbstractContextManager[None]:
        from cpt_jax.processes import join_processes, shared_fate

        join_processes(coordinator.value, processes.value, process.value)
        return shared_fate()

    return join


def load_config(path: Path | str) -> dict[str, Any]:
    """The config of a file, as plain values: for tests and notebooks."""
    return runpy.run_path(str(path))['get_config']().to_dict()


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS([_from_root(word) for word in argv])
    except SystemExit:  # --help, which absl ends with 1
        sys.exit(0)
    except flags.Error as error:
        sys.exit(_fail(error))
    except Exception as error:
        sys.exit(_fail(_config_mistake(error, argv)))


def _config_mistake(error: Exception, argv: list[str]) -> str:
    """What is wrong with --config: a key that it does not have, or whatever the user's file raised."""
    raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, KeyError | AttributeError) and 'ml_collections' in raised_by and 'get_config' not in str(error):
        words = re.sub(r'[\\\'"]', '', re.sub(r'\\n|\n', '. ', str(error.args[0])))  # with the nearest known key
        given = next((word for word in argv if re.match(rf'--config\.(\w+\.)*{re.escape(words)}(\.|=|$)', word)), '')
        if given:  # no known key is near
            words += f' ({given}).' + ('' if 'accum' in words else ' configs/base.py holds every key')
        return f'--config has no key {words}' + (ACCUMULATION if 'accum' in words else '')
    return f'--config: {type(error).__name__}: {error}'


def _from_root(word: str) -> str:
    """Lets configs/x.py be named from any directory: what is not found here is looked for beside launch/."""
    flag, equals, path = word.rpartition('=')
    at_root = Path(__file__).parents[1] / path
    found = path.endswith('.py') and not Path(path).exists() and at_root.is_file()
    return f'{flag}{equals}{at_root}' if found else word


def _fail(error: object) -> int:
    logging.flush()
    print('error:', ' '.join(str(error).split()), file=sys.stderr, flush=True)
    return EXIT_MISTAKE


def _may_have_accelerator(root: Path) -> bool:
    """Anything that hints at one: JAX finds out which. A plug-in of JAX (GPUs), a device of Google's on the bus, TPU settings."""
    chips = [*(root / 'dev').glob('accel*'), *(root / 'dev/vfio').glob('[0-9]*')]
    google = any(path.read_text().strip() == '0x1ae0' for path in (root / 'sys/bus/pci/devices').glob('*/vendor'))
    return bool(chips) or google or any(name.startswith('TPU_') for name in os.environ) or find_spec('jax_plugins') is not None


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start need not compile."""
    import jax

    from cpt_jax.data.cache import cache_folder

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', os.fspath(cache_folder() / 'xla'))
