"""Exports, read by sentence-transformers, transformers and our own importer: the vectors of the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cpt_jax.embed import load_embedder
from cpt_jax.errors import UserError
from cpt_jax.export import transformer
from cpt_jax.export.check import check
from cpt_jax.export.directory import export
from cpt_jax.export.golden import TEXTS, read_golden
from cpt_jax.model.families.files import Files
from cpt_jax.prompt import Representation
from tests.conftest import sentences
from tests.export.conftest import LLAMA, edit
from tests.test_embed import write_run

torch = pytest.importorskip('torch', reason='sentence-transformers is the oracle (requirements-dev.txt)')
transformers = pytest.importorskip('transformers')
sentence_transformers = pytest.importorskip('sentence_transformers')
transformers.logging.disable_progress_bar()

ROOT = Path(__file__).parents[2]
MIXED = [*TEXTS, *sentences(20, seed=5, words=30)]
ALONE = len(TEXTS)  # of them, those that sentence-transformers is given one at a time too
NAMES = {'x': 'query', 'y': 'document'}


def of_transformers(directory: Path, texts: list[str]) -> np.ndarray:
    """The state of the last token, made unit length, as the model card tells."""
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(directory), transformers.AutoModel.from_pretrained(directory)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors='pt')
    with torch.no_grad():
        states = model(**batch).last_hidden_state.float()
    last = batch['attention_mask'].sum(1) - 1
    return torch.nn.functional.normalize(states[torch.arange(len(last)), last], dim=-1).numpy()


def readings(directory: Path, side: str, prompt_name: str | None) -> dict[str, np.ndarray]:
    theirs = sentence_transformers.SentenceTransformer(str(directory), device='cpu')
    prompt = theirs.prompts[prompt_name] if prompt_name else ''
    return {
        'ours': load_embedder(str(directory))(MIXED, side),
        'sentence-transformers': theirs.encode(MIXED, prompt_name=prompt_name, batch_size=7),
        'one at a time': np.concatenate([theirs.encode([text], prompt_name=prompt_name) for text in MIXED[:ALONE]]),
        'transformers': of_transformers(directory, [prompt + text for text in MIXED]),
    }


QWEN3 = {
    'hidden_size': 24,
    'intermediate_size': 40,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 10,
}
OPT = {'hidden_size': 24, 'ffn_dim': 40, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'word_embed_proj_dim': 10}
LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 500.0, 'factor': 4.0, 'low_freq_factor': 1.0, 'high_freq_factor': 2.0}
PRETRAINED = {
    'llama 3': lambda: transformers.LlamaConfig(
        vocab_size=77, max_position_embeddings=64, rope_parameters=LLAMA3 | {'original_max_position_embeddings': 16}, **QWEN3
    ),
    'qwen3': lambda: transformers.Qwen3Config(vocab_size=77, max_position_embeddings=64, **QWEN3),
    'gemma3': lambda: transformers.Gemma3TextConfig(
        vocab_size=77,
        max_position_embeddings=64,
        sliding_window=10,
        query_pre_attn_scalar=12,
        **QWEN3 | {'num_hidden_layers': 3},
        layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
    ),
    'opt': lambda: transformers.OPTConfig(vocab_size=77, max_position_embeddings=64, do_layer_norm_before=False, **OPT),
}
CASES = {
    'gpt2': {'causal': True, 'layers': 2},
    'gpt2, every token sees all': {'causal': False, 'activation': 'relu', 'hidden': 72},
    'llama': LLAMA | {'causal': True, 'layers': 3},
    'llama, every token sees all': LLAMA | {'causal': False, 'layers': 1},
    'qwen3': {'pretrained': 'qwen3', 'causal': True},
    'qwen3, every token sees all': {'pretrained': 'qwen3', 'causal': False},
    'gemma3': {'pretrained': 'gemma3', 'causal': True},
    'gemma3, every token sees all': {'pretrained': 'gemma3', 'causal': False},
    'embeddinggemma': {'pretrained': 'gemma3', 'use_bidirectional_attention': True, 'causal': False},
    'llama 3': {'pretrained': 'llama 3', 'causal': True},
    'opt 350m': {'pretrained': 'opt', 'causal': True},
}


@pytest.mark.parametrize('case', CASES)
def test_both_sides_in_one_directory(make_export, case):
    choices = dict(CASES[case])
    if 'pretrained' in choices:
        choices['pretrained'] = json.loads(PRETRAINED[choices['pretrained']]().to_json_string(use_diff=False))
        if choices.pop('use_bidirectional_attention', False):
            choices['pretrained'] |= {'use_bidirectional_attention': True}
    run, out = make_export(**choices)
    embed = load_embedder(str(run), max_tokens=40)
    for side, name in NAMES.items():
        expected = embed(MIXED, side)
        for reader, vectors in readings(out, side, name).items():
            np.testing.assert_allclose(vectors, expected[: len(vectors)], atol=1e-5, err_msg=reader)
    assert np.abs(embed(MIXED, 'x') - embed(MIXED, 'y')).max(1).min() > 1e-3
    config = json.loads((out / 'config.json').read_text())
    assert check(out).defects == []
    if 'gemma' not in case:
        assert config['is_causal'] is choices['causal'] and config['use_bidirectional_attention'] is not choices['causal']


def test_a_directory_for_each_side(make_export):
    run, out = make_export(closing='own', causal=True)
    embed = load_embedder(str(run))
    for side, name in NAMES.items():
        expected = embed(MIXED, side)  # each side with its own maximum
        for reader, vectors in readings(out / name, side, None).items():
            np.testing.assert_allclose(vectors, expected[: len(vectors)], atol=1e-5, err_msg=reader)
    files = [out / name / 'model.safetensors' for name in NAMES.values()]
    assert os.path.samefile(*files)
    assert not (out / 'config.json').exists() and "SentenceTransformer('out/query')" in (out / 'README.md').read_text()


@pytest.mark.parametrize('kind', ['opt', 'llama 3'])
def test_texts_in_a_template(make_export, kind):
    pretrained = json.loads(PRETRAINED[kind]().to_json_string(use_diff=False)) | {'max_position_embeddings': 40}
    template = 'This "{text}" means:"'
    run, out = make_export(pretrained=pretrained, causal=True, template=template)
    texts = [text for text in MIXED if len(text) < 40] + sentences(9, words=4)
    expected = load_embedder(str(run))(texts, 'x')
    again = load_embedder(str(out), representation=Representation(template=template))
    np.testing.assert_allclose(again(texts, 'x'), expected, atol=1e-5)
    filled, tokenizer = [template.replace('{text}', text) for text in texts], transformers.AutoTokenizer.from_pretrained(out)
    fits = [len(ids) <= 40 for ids in tokenizer(filled)['input_ids']]  # of others the template's end would be cut
    np.testing.assert_allclose(of_transformers(out, filled)[fits], expected[fits], atol=1e-5)
    assert tokenizer('a')['input_ids'][0] == 1 and sum(fits) > 10
    assert check(out).defects == [] and read_golden(out).template == template and not (out / 'modules.json').exists()
    card = (out / 'README.md').read_text()
    assert f'\n{template}\n' in card and f'template={template!r}' in card and '200 steps of 64 pairs' in card
    edit(out / 'golden.json', lambda golden: golden | {'template': '{text} is'})
    assert any('vectors differ' in defect.what for defect in check(out).defects)


@pytest.mark.parametrize(('dtype', 'close'), [('bfloat16', 5e-2), ('float16', 5e-3)])
def test_narrow_weights(make_export, dtype, close):
    run, out = make_export(dtype=dtype, causal=True)
    texts, vectors, _ = read_golden(out)
    assert {array.dtype.name for array in load_file(out / 'model.safetensors').values()} == {dtype}
    for side, name in NAMES.items():
        theirs = sentence_transformers.SentenceTransformer(str(out), device='cpu', model_kwargs={'dtype': 'float32'})
        found = load_embedder(str(out))(texts, side)
        np.testing.assert_allclose(theirs.encode(texts, prompt_name=name), found, atol=1e-5)
        np.testing.assert_allclose(vectors[side], load_embedder(str(run), max_tokens=40)(texts, side), atol=1e-6)
        assert 1e-6 < np.abs(found - vectors[side]).max() < close
    told = json.loads((out / 'parity.json').read_text())
    assert told['weights'] == dtype and 1e-6 < told['largest_difference_of_a_unit']['x'] < close


def test_weights_that_a_dtype_cannot_hold_are_named(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, 'written', lambda *_: iter([('h.0.attn.c_attn.weight', np.full((2, 2), 1e5, np.float32))]))
    with pytest.raises(UserError, match=r'--dtype float16: h\.0\.attn\.c_attn\.weight has weights up to 1e\+05, which it cannot hold'):
        export(str(whole[0]), tmp_path / 'out', dtype='float16', shard_bytes=10**9, license_id='mit')
    assert list(tmp_path.iterdir()) == []


def test_large_weights_are_split(whole, tmp_path):
    run, out = whole
    export(str(run), tmp_path / 'split', dtype='float32', shard_bytes=20_000, license_id='mit')
    split = sorted(path.name for path in (tmp_path / 'split').glob('model*'))
    assert split[0] == f'model-00001-of-{len(split) - 1:05d}.safetensors' and split[-1] == 'model.safetensors.index.json' and len(split) > 4
    one, many = Files(out), Files(tmp_path / 'split')
    assert one.names == many.names
    for name in one.names:
        np.testing.assert_array_equal(one.read(name), many.read(name))
    states = transformers.AutoModel.from_pretrained(tmp_path / 'split').state_dict()
    assert all(torch.equal(states[name], torch.from_numpy(one.read(name))) for name in one.names)


def test_what_cannot_be_exported(whole, make_export, tokenizer, tmp_path):
    run, out = whole
    choices = {'dtype': 'float32', 'shard_bytes': 10**9, 'license_id': 'mit'}
    with pytest.raises(UserError, match=f'--output {out}: is there already'):
        export(str(run), out, **choices)
    mixed = write_run(tmp_path / 'mixed', tokenizer.closed('shared'), norm='rmsnorm')
    with pytest.raises(UserError, match=r'no other library has .*: model\.positions=learned, model\.norm=rmsnorm, .* Train with either'):
        export(str(mixed), tmp_path / 'out', **choices)
    neox = {'vocab_size': 77, 'hidden_size': 32, 'intermediate_size': 40, 'num_hidden_layers': 1, 'num_attention_heads': 2}
    neox = json.loads(transformers.GPTNeoXConfig(**neox).to_json_string(use_diff=False))
    with pytest.raises(UserError, match='transformers has no gpt_neox in which every token sees its whole text'):
        make_export(pretrained=neox, causal=False)
    (tmp_path / 'mixed' / 'theirs').mkdir()
    (tmp_path / 'mixed' / 'theirs' / 'config.json').write_text('{}')
    with pytest.raises(UserError, match='theirs: a pretrained model, as others load it already'):
        export(str(tmp_path / 'mixed' / 'theirs'), tmp_path / 'out', **choices)
    with pytest.raises(UserError, match='--model nowhere: no run with a checkpoint'):
        export('nowhere', tmp_path / 'out', **choices)
    assert [path.name for path in tmp_path.iterdir()] == ['mixed']  # nothing of what was begun


def test_the_card_tells_of_the_run(tokenizer, tmp_path):
    run = write_run(tmp_path / 'mine', tokenizer.closed('shared'), causal=True)
    (run / 'metrics.jsonl').write_text(''.join(json.dumps({'step': i, 'loss': 3 / i, 'log_batch': 4.2}) + '\n' for i in range(1, 9)))
    (run / 'data.json').write_text(json.dumps({'a': {'summary': '300 pairs of letters'}}))
    row = {'main_score': 0.5, 'settings': {'main_metric': 'ndcg@10'}, 'baselines': {'bm25': {'ndcg@10': 0.25}}}
    plain = {'main_score': -0.5, 'settings': {'main_metric': 'effect_size'}, 'baselines': {}}
    (run / 'results.json').write_text(json.dumps({'model': 'mine@200', 'tasks': {'retrieval/tiny': row, 'bias/weat1': plain}}))
    export(str(run), tmp_path / 'out', dtype='float32', shard_bytes=10**9, license_id='apache-2.0')
    card = (tmp_path / 'out' / 'README.md').read_text()
    for line in [
        'license: apache-2.0', '| retrieval/tiny | nDCG@10 | 50.00 | 25.00 |', '| bias/weat1 | effect size d | -0.50 |  |',
        '| a | text | 1.0 | 300 pairs of letters |',
        '200 steps of 64 pairs', '| query | `<|query|>` |', '![Loss and held-out retrieval](training.png)',
    ]:  # fmt: skip
        assert line in card, line
    assert (tmp_path / 'out' / 'training.png').read_bytes().startswith(b'\x89PNG')
    code = card.split('```python\n# cpt_jax\n')[1].split('```')[0]
    script = f'import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}print(scores.shape)'
    found = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == '(1, 1)\n'
    export(f'{run}@100', tmp_path / 'first', dtype='float32', shard_bytes=10**9, license_id='mit')
    assert '## Scores' not in (tmp_path / 'first' / 'README.md').read_text()  # they are of another checkpoint
