"""Runs to export: random parameters, large enough for texts to differ."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpt_jax.embed import embedder, row_batching
from cpt_jax.exporting.directory import export
from cpt_jax.model.families.known import family_of
from cpt_jax.text.tokenizer import Tokenizer
from tests.embed.test_embedder import write_run


@contextmanager
def one_row_length() -> Iterator[None]:
    """Every model that is loaded compiles one program, and not one for each length of the texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, 'row_length_of', lambda length, max_length: 40)
        patch.setattr(row_batching, 'COLUMNS', {'cpu': 3 * 40})
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
    """Exports a run of some architecture; returns the run's directory and the export's."""
    if pretrained:
        choices = family_of(pretrained).shape(pretrained) | {'pooling': 'eos'} | choices
    run = write_run(folder / 'run', tokenizer.closed(closing), pretrained, **choices)
    with one_row_length():
        export(str(run), folder / 'out', dtype=dtype, shard_bytes=10**9, license_id='mit')
    return run, folder / 'out'


@pytest.fixture(scope='session')
def make_export(tmp_path_factory, tokenizer):
    """`export_run` in a folder of its own."""

    def make(**choices) -> tuple[Path, Path]:
        return export_run(tmp_path_factory.mktemp('export'), tokenizer, **choices)

    return make


@pytest.fixture(scope='session')
def whole(make_export) -> tuple[Path, Path]:
    """One of GPT-2's kind, with curves and scores."""
    return make_export(causal=True, layers=2)


def edit(path: Path, change) -> None:
    """Changes what a JSON file holds."""
    content = json.loads(path.read_text('utf-8'))
    path.write_text(json.dumps(change(content) or content), 'utf-8')
