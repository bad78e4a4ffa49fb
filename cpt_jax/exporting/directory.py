"""From a run to a directory that other libraries load."""

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from cpt_jax.embed.embedder import Embedder
from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.card import ExportedRun, Written, write_card
from cpt_jax.exporting.golden import TEXTS, differences, golden_of, write_golden
from cpt_jax.exporting.sentence_transformers import write_layout, write_tokenizer
from cpt_jax.exporting.tokenizer import PADDING, PROMPT_NAMES, exported, prompted
from cpt_jax.exporting.transformer import config_json, write_weights
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.origin.resolve import resolve_model
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.json_files import write_json
from cpt_jax.text.tokenizer import Side

SIDES: tuple[Side, ...] = ('x', 'y')
PARITY = 'parity.json'


def export(
    reference: str, output: Path, *, dtype: str, shard_bytes: int, license_id: str
) -> list[Written]:
    """Writes a run as one directory, or as `query/` and `document/` where each side has a closing
    delimiter of its own.

    A run whose texts stand in a template becomes a plain model of transformers: the prompts of
    sentence-transformers have no end, and the words around a text are one text with it. Its card
    and golden.json say the template.

    Args:
      reference: a run, or run@step.
      output: must not be there yet; it is whole or not there.
      dtype: of the weights, a key of DTYPES.
      shard_bytes: above it the weights are split.
      license_id: for the model card.

    Raises:
      UserError: there is no such run, no other library has its parts, or `output` is there.
    """
    refuse_existing(output)
    run = resolve_model(reference, '--model')
    if isinstance(run, Pretrained):
        raise UserError(
            f'--model {reference}: a pretrained model, as others load it already; --model is a '
            f'run of launch/train.py'
        )
    provenance, template = run.provenance, run.provenance.template
    tokenizer = run.load_tokenizer()
    limits = {
        side: 0 if template else provenance.config['data'][f'max_tokens_{side}'] for side in SIDES
    }
    # (directory within the output, sides that it serves, side whose delimiters stand around every
    # text)
    parts: list[tuple[str, tuple[Side, ...], Side | None]] = [
        (PROMPT_NAMES[side], (side,), side) for side in SIDES
    ]
    if template:
        parts = [('', ('x',), None)]
    elif tokenizer.closing == 'shared':
        parts = [('', SIDES, None)]
    with whole(output) as folder:
        found: list[Written] = []
        for name, sides, side in parts:
            directory = folder / name
            directory.mkdir(exist_ok=True)
            embed = load_embedder(
                reference, dtype='float32', max_tokens=max(limits[one] for one in sides)
            )
            family, config = config_json(embed.encoder.config, provenance.pretrained, dtype)
            longest, width = embed.settings['max_tokens_y'], embed.encoder.config.embedding_width
            if template:
                text = prompted(tokenizer, provenance.begin or ())
                write_tokenizer(directory, text, longest, {'pad_token': PADDING})
            else:
                text = exported(tokenizer, side)
                write_layout(directory, text, width, longest)
            write_json(directory / 'config.json', config | text.ids)
            if found:  # the other side has the same weights
                for path in (folder / found[0].name).glob('model*'):
                    _link(path, directory / path.name)
            else:
                write_weights(
                    family, embed.encoder, tokenizer.vocab_size, directory, dtype, shard_bytes
                )
            golden = golden_of(embed, sides)
            write_golden(directory, golden)
            parity = differences(directory, golden)
            # A model that gives NaN is written all the same, for whoever looks for the reason.
            write_json(directory / PARITY, _parity(embed, parity, dtype), allow_nan=True)
            found.append(Written(name, sides, text.prompts, longest, max(parity.values())))
        exported_run = ExportedRun(run.run_dir, run.step, provenance, dtype, license_id)
        write_card(folder, exported_run, output.name, config['model_type'], width, found)
    return found


def refuse_existing(output: Path) -> None:
    """Raises UserError where an export cannot be written: it is there, or there are several
    processes.
    """
    if jax.process_count() > 1:
        raise UserError(
            'an export is written by one process: start it on one host, with JAX_PLATFORMS=cpu '
            'where that cannot see all chips'
        )
    if output.exists():
        raise UserError(f'--output {output}: is there already; remove it, or give another')


def _parity(embed: Embedder, parity: Mapping[Side, float], dtype: str) -> dict[str, Any]:
    return {
        'model': embed.model_name,
        'weights': dtype,
        'computed_in': 'float32',
        'texts_a_side': len(TEXTS),
        'largest_difference_of_a_unit': parity,
        'against': "the run's own vectors, after a reload by cpt_jax's importer",
        'libraries': {
            name: importlib.metadata.version(name)
            for name in ('jax', 'flax', 'tokenizers', 'safetensors')
        },
    }


def _link(path: Path, other: Path) -> None:
    """The same file under another name, or a copy where the file system has no such thing."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """A directory to fill that becomes `output` at the end; nothing stays of one that was cut
    short.
    """
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f'.{output.name}.', dir=output.absolute().parent))
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp lets nobody else in
        beside.rename(output.absolute())
    except BaseException:
        shutil.rmtree(beside)
        raise
