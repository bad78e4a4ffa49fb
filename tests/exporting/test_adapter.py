"""What an exported adapter needs before PEFT loads it, and its check."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpt_jax.exporting.adapter import ExportedAdapter, export_adapter
from cpt_jax.exporting.adapter_check import check_adapter
from cpt_jax.origin.earlier_run import EarlierRun
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from cpt_jax.training import loop
from tests.exporting.conftest import edit, one_row_length
from tests.goldens.golden import read_golden, restore
from tests.training.conftest import write_config

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


@pytest.mark.parametrize(
    ('written', 'expected'),
    [
        (('/models/base', 0, ''), []),
        (('gs://bucket/base', 0, ''), ['PEFT cannot read gs://bucket/base: copy it']),
        (('base', 0, "the 'text'"), ["--template 'the '\"'\"'text'\"'\"''"]),
        (('gs://b/base', 99, ''), ['--base COPY', 'model.resize_token_embeddings(99)']),
    ],
)
def test_notes_are_those_that_apply(written, expected):
    notes = ExportedAdapter(*written).list_notes()
    assert len(notes) == len(expected)
    for note, part in zip(notes, expected, strict=True):
        assert part in note and '\n' not in note


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> Path:
    """A folder with a base and with the adapter that a run of one step trained."""
    folder = tmp_path_factory.mktemp('adapter')
    base = restore(read_golden('pretrained').facts['whole']['bert mean'], folder / 'base')
    set_key('query_length', 9, 'sentence_bert_config.json')(base)  # of x alone
    config = load_config(write_config(folder))
    config['init_from'] = str(base)
    config['lora']['rank'] = 2
    config['optimizer'] |= {'peak_lr': 1e-2, 'warmup_steps': 0}
    config['train'] |= {'steps': 1, 'batch_pairs': 4}
    config['evaluation']['every_steps'] = 0
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch, one_row_length():
        patch.setattr(jax, 'devices', lambda: devices)  # compiles faster
        assert loop.train(config, folder / 'run') == 0
        export_adapter(str(folder / 'run'), folder / 'adapter')
    return folder


def find_defects(exported: Path, tmp_path: Path, change: Callable[[Path], object]) -> list[str]:
    """Returns the lines of the defects of a changed copy of the adapter."""
    folder = shutil.copytree(exported / 'adapter', tmp_path / 'adapter')
    change(folder)
    report = check_adapter(folder)
    return report.format_table().splitlines()[1 + len(report.checked_files) :]


def change_tensors(folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    (path,) = folder.glob('*.safetensors')
    tensors = {name: change(name, array) for name, array in load_file(path).items()}
    save_file(tensors, path, metadata={'format': 'pt'})


def test_check_compares_the_vectors_of_the_run(exported, tmp_path):
    report = check_adapter(exported / 'adapter')
    assert report.defects == [] and report.checked_files == [CONFIG, WEIGHTS, 'golden.json']

    def double(name: str, array: np.ndarray) -> np.ndarray:
        return array * (2 if 'query' in name else 1)

    (line,) = find_defects(
        exported,
        tmp_path,
        lambda folder: use_changed_base(folder, lambda base: change_tensors(base, double)),
    )
    assert line.startswith('golden.json: its vectors differ from those of the model by ')


def test_tolerance_is_that_of_the_weights_of_the_base(exported, tmp_path):
    """Whatever `dtype` of its config.json says."""

    def round_weights(base: Path) -> None:
        set_key('dtype', 'float32', 'config.json')(base)
        change_tensors(base, lambda name, array: array.astype(np.float16))

    assert not find_defects(
        exported, tmp_path, lambda folder: use_changed_base(folder, round_weights)
    )


def test_no_golden_if_the_run_rounds_the_weights_of_the_base(exported, tmp_path, monkeypatch):
    base = shutil.copytree(exported / 'base', tmp_path / 'base')
    set_key('dtype', 'bfloat16', 'config.json')(base)
    lora = EarlierRun.lora.fget
    assert lora
    monkeypatch.setattr(
        EarlierRun, 'lora', property(lambda run: dataclasses.replace(lora(run), base='bfloat16'))
    )
    export_adapter(str(exported / 'run'), tmp_path / 'out', str(base))
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {CONFIG, WEIGHTS}


@pytest.mark.parametrize('has_delimiters', [False, True])
def test_attention_of_the_run_is_that_of_the_base(exported, tmp_path, monkeypatch, has_delimiters):
    """The fields of a run that was started with another model.causal."""
    trained = EarlierRun.encoder_config
    monkeypatch.setattr(
        EarlierRun,
        'encoder_config',
        lambda run, size, **changed: trained(run, size, **changed, causal=True),
    )
    if has_delimiters:
        tokenizer = open_pretrained(str(exported / 'base')).load_tokenizer('own')
        monkeypatch.setattr(EarlierRun, 'load_tokenizer', lambda run: tokenizer)
    with pytest.raises(UserError, match=r'the run has another model\.causal, which an adapter'):
        export_adapter(str(exported / 'run'), tmp_path / 'out')


def set_key(key: str, value: object, file: str = CONFIG) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, lambda content: content | {key: value})


def use_changed_base(folder: Path, change: Callable[[Path], object]) -> None:
    """Makes an adapter refer to a changed copy of its base."""
    base = json.loads((folder / CONFIG).read_text())['base_model_name_or_path']
    copy = shutil.copytree(base, folder.parent / 'changed base')
    change(copy)
    set_key('base_model_name_or_path', str(copy))(folder)


@pytest.mark.parametrize(
    ('change', 'parts'),
    [
        (
            set_key('base_model_name_or_path', 'org/base'),
            ["base_model_name_or_path='org/base' is not a directory", '(breaks: cpt_jax)'],
        ),
        (set_key('use_dora', True), ['not supported: use_dora=True', '(breaks: cpt_jax)']),
        (
            lambda folder: change_tensors(
                folder, lambda name, array: array[:, :-1].copy() if 'lora_A' in name else array
            ),
            ['has shape [24, 23], but the base has [24, 24]', '(breaks: PEFT, cpt_jax)'],
        ),
        (
            lambda folder: change_tensors(
                folder, lambda name, array: array[:-1].copy() if 'lora_A' in name else array
            ),
            ['have the shapes [1, 24] and [24, 2], which cannot be multiplied'],
        ),
        (
            lambda folder: (folder / WEIGHTS).unlink(),
            [f'{WEIGHTS}: ', 'copy it again', '(breaks: PEFT, cpt_jax)'],
        ),
        (
            lambda folder: use_changed_base(folder, set_key('model_type', 'phi', 'config.json')),
            [f'{CONFIG}: base_model_name_or_path: ', "model_type='phi'", '(breaks: cpt_jax)'],
        ),
    ],
)
def test_defects_are_named_with_their_readers(exported, tmp_path, change, parts):
    (line,) = find_defects(exported, tmp_path, change)
    assert all(part in line for part in parts), line


def test_weights_in_the_format_of_torch_have_their_own_name(exported, tmp_path):
    folder = shutil.copytree(exported / 'adapter', tmp_path / 'adapter')
    (folder / WEIGHTS).unlink()
    (folder / 'adapter_model.bin').write_bytes(b'cut')
    report = check_adapter(folder)
    assert report.checked_files == [CONFIG, 'adapter_model.bin', 'golden.json']
    ((where, _, readers),) = report.defects
    assert (where, readers) == ('adapter_model.bin', 'PEFT, cpt_jax')


def test_rows_beyond_the_token_table_of_the_base_are_named(exported, tmp_path):
    rows = json.loads((exported / 'base' / 'config.json').read_text())['vocab_size']

    def add_rows(folder: Path) -> None:
        name = 'base_model.model.embeddings.word_embeddings.token_adapter.trainable_tokens_delta'
        tensors = load_file(folder / WEIGHTS) | {name: np.ones((2, 24), np.float32)}
        save_file(tensors, folder / WEIGHTS)
        set_key('trainable_token_indices', [rows, rows + 1])(folder)
        (folder / 'golden.json').unlink()

    (line,) = find_defects(exported, tmp_path, add_rows)
    assert f'call model.resize_token_embeddings({rows + 2}) before PeftModel' in line
    assert line.endswith('(breaks: PEFT)')


@pytest.mark.parametrize('shape', [(2, 24), (3, 23)])
def test_rows_of_tokens_are_compared_with_the_ids_and_the_base(exported, tmp_path, shape):
    def add_rows(folder: Path) -> None:
        name = 'base_model.model.embeddings.word_embeddings.token_adapter.trainable_tokens_delta'
        tensors = load_file(folder / WEIGHTS) | {name: np.ones(shape, np.float32)}
        save_file(tensors, folder / WEIGHTS)
        set_key('trainable_token_indices', [3, 4, 5])(folder)

    (line,) = find_defects(exported, tmp_path, add_rows)
    assert f'{WEIGHTS}: its rows for ' in line and line.endswith('(breaks: PEFT, cpt_jax)')
    assert f'have shape {list(shape)}, but {CONFIG} has 3 trainable_token_indices' in line
    files = open_pretrained(str(tmp_path / 'adapter')).files
    with pytest.raises(UserError, match='its rows for .* have shape'):
        files.read('embeddings.word_embeddings.weight')
