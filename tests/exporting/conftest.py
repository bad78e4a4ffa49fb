"""Exported runs with random parameters, large enough that vectors of different texts differ."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpt_jax.embed import embedder, row_batching
from cpt_jax.exporting.directory import export
from cpt_jax.model.families.known import find_family
from cpt_jax.text.tokenizer import Tokenizer
from tests.embed.test_embedder import write_run


@contextmanager
def one_row_length() -> Iterator[None]:
    """Makes each loaded model compile a single program, instead of one for every text length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, 'choose_row_length', lambda length, max_length: 40)
        patch.setattr(row_batching, 'COLUMNS_PER_DEVICE', {'cpu': 3 * 40})
        yield


@pytest.fixture(autouse=True)
def in_one_row_length():
    with one_row_length():
        yield


def export_run(
    folder: Path,
    tokenizer: Tokenizer,
    closing: str = 'shared',
    pretrained: dict | None = None,
    dtype: str = 'float32',
    **choices,
) -> tuple[Path, Path]:
    """Exports a run; returns its directory and that of the export.

    Args:
      folder: folder for both.
      tokenizer: tokenizer of the run.
      closing: tokenizer.closing of the run.
      pretrained: config.json that determines the architecture; None: `choices` do.
      dtype: dtype of the exported weights.
      **choices: other arguments of `write_run`.
    """
    if pretrained:
        choices = find_family(pretrained).shape(pretrained) | {'pooling': 'eos'} | choices
    run = write_run(folder / 'run', tokenizer.with_closing(closing), pretrained, **choices)
    with one_row_length():
        export(str(run), folder / 'out', dtype=dtype, shard_bytes=10**9, license_id='mit')
    return run, folder / 'out'


@pytest.fixture(scope='session')
def make_export(tmp_path_factory, tokenizer):
    """Calls `export_run` in a new folder."""

    def make(**choices) -> tuple[Path, Path]:
        return export_run(tmp_path_factory.mktemp('export'), tokenizer, **choices)

    return make


@pytest.fixture(scope='session')
def whole(make_export) -> tuple[Path, Path]:
    """A run with GPT-2's architecture, and its export."""
    return make_export(causal=True, layers=2)


def edit(path: Path, change) -> None:
    """Applies a change to the content of a JSON file."""
    content = json.loads(path.read_text('utf-8'))
    path.write_text(json.dumps(change(content) or content), 'utf-8')
