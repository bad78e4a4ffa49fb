"""NomicBERT and GTE: directories of transformers give its vectors, start runs, and are exported as
directories and adapters that transformers and PEFT load.
"""

import json
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import sentence_transformers
import torch
import transformers

from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting.adapter import export_adapter
from cpt_jax.exporting.adapter_check import check_adapter
from cpt_jax.exporting.directory import export
from cpt_jax.exporting.golden import read_golden
from cpt_jax.origin.pretrained import open_pretrained
from cpt_jax.runs.config_file import load_config
from cpt_jax.training import loop
from tests.conftest import sentences
from tests.goldens.writers.pretrained import SIZES, make_bert_tokenizer
from tests.training.conftest import write_config

KINDS = {'nomic_bert': 'NomicBert', 'gte': 'Gte'}
TEXTS = [*sentences(8, words=20), 'list', '', 'list ' * 100]


def write_model(folder: Path, kind: str, head: str = 'Model', **options) -> Path:
    """Writes a model with random weights and a tokenizer."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_bert_tokenizer(),
        pad_token='[PAD]',
        cls_token='[CLS]',
        sep_token='[SEP]',
        model_max_length=64,
    )
    tokenizer.save_pretrained(folder)
    model_class = getattr(transformers, f'{KINDS[kind]}{head}')
    config = model_class.config_class(vocab_size=len(tokenizer), initializer_range=0.2, **SIZES)
    torch.manual_seed(0)
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if name.endswith('bias'):
            torch.nn.init.normal_(parameter, 0, 0.2)
    model.save_pretrained(folder, **options)
    return folder


def embed_with_transformers(model: torch.nn.Module, folder: Path, texts: list[str]) -> np.ndarray:
    """Returns normalized means of the states of texts in one padded batch, float32[B, D]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors='pt')
    with torch.no_grad():
        states = model.eval()(**batch).last_hidden_state
    mask = batch['attention_mask'][..., None]
    means = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(means, dim=-1).numpy()


@pytest.mark.parametrize('kind', KINDS)
def test_directories_give_the_vectors_of_transformers(tmp_path, kind):
    """Published names, those of transformers' modules, and those of a model with a head."""
    forms = {
        'published': {},
        'modules': {'save_original_format': False},
        'head': {'head': 'ForMaskedLM'},
    }
    for form, options in forms.items():
        folder = write_model(tmp_path / form, kind, **options)
        model = transformers.AutoModel.from_pretrained(folder)
        expected = embed_with_transformers(model, folder, TEXTS)
        embed = load_embedder(str(folder))
        np.testing.assert_allclose(embed(TEXTS, 'x'), expected, atol=1e-5, err_msg=form)
        alone = embed(TEXTS[1:2], 'x')
        np.testing.assert_allclose(alone, expected[1:2], atol=1e-5, err_msg=form)
    assert any('dense' in name for name in open_pretrained(str(folder)).passed_over)


def train(folder: Path, base: Path, rank: int) -> str:
    config = load_config(write_config(folder.parent))
    config['init_from'] = str(base)
    config['lora']['rank'] = rank
    config['optimizer'] |= {'peak_lr': 1e-2, 'warmup_steps': 0}
    config['train'] |= {'steps': 2, 'batch_pairs': 4}
    config['evaluation']['every_steps'] = 0
    assert loop.train(config, folder) == 0
    return str(folder)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('rank', [0, 2])
def test_trained_models_are_exported(tmp_path, monkeypatch, kind, rank):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, 'devices', lambda: devices)  # compiles faster
    base = write_model(tmp_path / 'base', kind)
    run = train(tmp_path / 'run', base, rank)
    out = tmp_path / 'export'
    export(run, out, dtype='float32', shard_bytes=1 << 30, license_id='mit')
    expected = load_embedder(run)(TEXTS, 'x')
    untrained = load_embedder(str(base))(TEXTS, 'x')
    assert np.abs(expected - untrained).max() > 1e-3
    whole = sentence_transformers.SentenceTransformer(str(out), device='cpu')
    np.testing.assert_allclose(whole.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(load_embedder(str(out))(TEXTS, 'x'), expected, atol=1e-5)
    assert json.loads((out / 'config.json').read_text())['model_type'] == kind
    if rank:
        export_adapter(run, tmp_path / 'adapter')
        model = transformers.AutoModel.from_pretrained(base)
        adapted = peft.PeftModel.from_pretrained(model, tmp_path / 'adapter')
        *short, _ = TEXTS  # an adapter's files cannot store that the run truncates texts earlier
        found = embed_with_transformers(adapted, base, short)
        np.testing.assert_allclose(found, expected[:-1], atol=1e-5)
        golden = read_golden(tmp_path / 'adapter')
        found = embed_with_transformers(adapted, base, golden.texts)
        np.testing.assert_allclose(found, golden.vectors['x'], atol=1e-5)
        assert check_adapter(tmp_path / 'adapter').defects == []
