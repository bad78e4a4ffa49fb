"""Exports: their files, and the vectors of sentence-transformers, transformers and cpt_jax.

The vectors of the other libraries are kept in golden data.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cpt_jax.embed.load import load_embedder
from cpt_jax.exporting import transformer
from cpt_jax.exporting.card import ExportedPart, ExportedRun, write_card
from cpt_jax.exporting.check import check
from cpt_jax.exporting.directory import export
from cpt_jax.exporting.golden import GOLDEN_TEXTS, TEXTS, read_golden
from cpt_jax.exporting.output import is_unfinished
from cpt_jax.model.formats.safetensors_files import TensorFiles
from cpt_jax.origin.resolve import resolve_model
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import Representation
from tests.embed.test_embedder import write_run
from tests.exporting.conftest import edit
from tests.exporting.export_inputs import (
    CASES,
    MIXED,
    NAMES,
    TEMPLATE,
    TEMPLATED,
    TEMPLATES,
    choices_of,
    layout_of,
)
from tests.goldens.golden import Golden, restore
from tests.goldens.golden import read_golden as read_expected

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def golden() -> Golden:
    """Expected files of exports, and vectors by sentence-transformers and transformers."""
    return read_expected('export')


@pytest.mark.parametrize('case', CASES)
def test_export_with_prompts_for_both_sides(golden, make_export, case):
    """The files, including each weight bitwise, are those that the other libraries were run on."""
    choices = choices_of(case, golden.facts['pretrained'])
    _, out = make_export(**choices)
    assert layout_of(out) == golden.facts['layouts'][case]
    embed, of_the_run = load_embedder(str(out)), read_golden(out)
    vectors = {side: embed(MIXED, side) for side in NAMES}
    for side, found in vectors.items():
        expected = golden.arrays[f'{case}/{side}']
        np.testing.assert_allclose(found, expected, atol=1e-5)
        texts = len(TEXTS)
        assert list(of_the_run.texts) == [*TEXTS, *GOLDEN_TEXTS[texts:]]
        np.testing.assert_allclose(of_the_run.vectors[side][:texts], expected[:texts], atol=1e-5)
    assert np.abs(vectors['x'] - vectors['y']).max(1).min() > 1e-3
    config = json.loads((out / 'config.json').read_text())
    assert check(out).defects == []
    if 'gemma' not in case:
        assert config['is_causal'] is choices['causal']
        assert config['use_bidirectional_attention'] is not choices['causal']


def test_export_with_a_directory_per_side(golden, make_export):
    run, out = make_export(closing='own', causal=True)
    assert layout_of(out) == golden.facts['layouts']['own']
    embed = load_embedder(str(run))
    for side, name in NAMES.items():
        expected = golden.arrays[f'own/{side}']  # each side with its own maximum
        np.testing.assert_allclose(embed(MIXED, side), expected, atol=1e-5)
        np.testing.assert_allclose(load_embedder(str(out / name))(MIXED, side), expected, atol=1e-5)
    files = [out / name / 'model.safetensors' for name in NAMES.values()]
    assert os.path.samefile(*files)
    assert not (out / 'config.json').exists()
    assert "SentenceTransformer('out/query')" in (out / 'README.md').read_text()
    written = {str(path.relative_to(out)) for path in out.rglob('*') if path.is_file()}
    for names in ({*written, 'training.png'}, *golden.facts['layouts'].values()):
        assert is_unfinished([name for name in names if not name.endswith('config.json')])
        assert not is_unfinished(names)


@pytest.mark.parametrize('kind', TEMPLATES)
def test_export_of_a_run_with_a_template(golden, make_export, kind):
    pretrained = golden.facts['pretrained'][kind] | {'max_position_embeddings': 40}
    run, out = make_export(pretrained=pretrained, causal=True, template=TEMPLATE)
    assert layout_of(out) == golden.facts['layouts'][f'template {kind}']
    expected = load_embedder(str(run))(TEMPLATED, 'x')
    again = load_embedder(str(out), representation=Representation(template=TEMPLATE))
    np.testing.assert_allclose(again(TEMPLATED, 'x'), expected, atol=1e-5)
    # In longer texts, the other libraries would truncate the end of the template.
    fits = [text in golden.facts['fits'][kind] for text in TEMPLATED]
    np.testing.assert_allclose(golden.arrays[f'template {kind}'], expected[fits], atol=1e-5)
    assert sum(fits) > 10
    assert check(out).defects == [] and read_golden(out).template == TEMPLATE
    assert not (out / 'modules.json').exists()
    card = (out / 'README.md').read_text()
    assert f'\n{TEMPLATE}\n' in card and f'template={TEMPLATE!r}' in card
    assert '200 steps of 64 pairs' in card
    edit(out / 'golden.json', lambda golden: golden | {'template': '{text} is'})
    assert any('vectors differ' in defect.what for defect in check(out).defects)


@pytest.mark.parametrize(('dtype', 'close'), [('bfloat16', 5e-2), ('float16', 5e-3)])
def test_export_with_narrow_weights(golden, make_export, dtype, close):
    run, out = make_export(dtype=dtype, causal=True)
    assert layout_of(out) == golden.facts['layouts'][dtype]
    texts, vectors, _ = read_golden(out)
    assert {array.dtype.name for array in load_file(out / 'model.safetensors').values()} == {dtype}
    exported, original = load_embedder(str(out)), load_embedder(str(run), max_tokens=40)
    for side in NAMES:
        found = exported(texts, side)
        expected = golden.arrays[f'{dtype}/{side}']
        np.testing.assert_allclose(expected, found[: len(TEXTS)], atol=1e-5)
        np.testing.assert_allclose(vectors[side], original(texts, side), atol=1e-6)
        assert 1e-6 < np.abs(found - vectors[side]).max() < close
    parity = json.loads((out / 'parity.json').read_text())
    assert parity['weights'] == dtype
    assert 1e-6 < parity['largest_difference_of_a_unit']['x'] < close


def test_weights_out_of_range_of_the_dtype_are_named(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(
        transformer,
        'iterate_tensors',
        lambda *_: iter([('h.0.attn.c_attn.weight', np.full((2, 2), 1e5, np.float32))]),
    )
    with pytest.raises(
        UserError,
        match=r'--dtype float16: h\.0\.attn\.c_attn\.weight has weights up to 1e\+05, which '
        r'float16 cannot represent',
    ):
        export(
            str(whole[0]), tmp_path / 'out', dtype='float16', shard_bytes=10**9, license_id='mit'
        )
    assert list(tmp_path.iterdir()) == []


def test_large_weights_are_split_into_shards(whole, tmp_path):
    run, out = whole
    export(str(run), tmp_path / 'split', dtype='float32', shard_bytes=20_000, license_id='mit')
    split = sorted(path.name for path in (tmp_path / 'split').glob('model*'))
    assert split[0] == f'model-00001-of-{len(split) - 1:05d}.safetensors'
    assert split[-1] == 'model.safetensors.index.json'
    assert len(split) > 4
    one, many = TensorFiles(out), TensorFiles(tmp_path / 'split')
    assert one.names == many.names
    for name in one.names:
        np.testing.assert_array_equal(one.read(name), many.read(name))


def test_unsupported_exports_are_refused(golden, whole, make_export, tokenizer, tmp_path):
    run, out = whole
    choices = {'dtype': 'float32', 'shard_bytes': 10**9, 'license_id': 'mit'}
    with pytest.raises(UserError, match=f'--output {out}: already exists'):
        export(str(run), out, **choices)
    mixed = write_run(tmp_path / 'mixed', tokenizer.with_closing('shared'), norm='rmsnorm')
    with pytest.raises(
        UserError,
        match=r'no other library has .*: model\.positions=learned, model\.norm=rmsnorm, .* Train '
        r'with one of the two',
    ):
        export(str(mixed), tmp_path / 'out', **choices)
    with pytest.raises(UserError, match='transformers runs gpt_neox with causal attention only'):
        make_export(pretrained=golden.facts['pretrained']['neox'], causal=False)
    restore(read_expected('pretrained').facts['plain']['bert'], tmp_path / 'mixed' / 'theirs')
    with pytest.raises(
        UserError, match='theirs: is a pretrained model, which other libraries already load'
    ):
        export(str(tmp_path / 'mixed' / 'theirs'), tmp_path / 'out', **choices)
    with pytest.raises(UserError, match='--model nowhere: no run with a checkpoint'):
        export('nowhere', tmp_path / 'out', **choices)
    assert [path.name for path in tmp_path.iterdir()] == [
        'mixed'
    ]  # nothing is left of the failed exports


def test_card_describes_the_run(tokenizer, tmp_path):
    run = write_run(tmp_path / 'mine', tokenizer.with_closing('shared'), causal=True)
    (run / 'metrics.jsonl').write_text(
        ''.join(
            json.dumps({'step': i, 'loss': 3 / i, 'log_batch': 4.2}) + '\n' for i in range(1, 9)
        )
    )
    (run / 'data.json').write_text(json.dumps({'a': {'summary': '300 pairs of letters'}}))
    row = {
        'main_score': 0.5,
        'settings': {'main_metric': 'ndcg@10'},
        'baselines': {'bm25': {'ndcg@10': 0.25}},
    }
    plain = {'main_score': -0.5, 'settings': {'main_metric': 'effect_size'}, 'baselines': {}}
    (run / 'results.json').write_text(
        json.dumps({'model': 'mine@200', 'tasks': {'retrieval/tiny': row, 'bias/weat1': plain}})
    )
    export(str(run), tmp_path / 'out', dtype='float32', shard_bytes=10**9, license_id='apache-2.0')
    card = (tmp_path / 'out' / 'README.md').read_text()
    for line in [
        'license: apache-2.0', '| retrieval/tiny | nDCG@10 | 50.00 | 25.00 |',
        '| bias/weat1 | effect size d | -0.50 |  |',
        '| a | text | 1.0 | 300 pairs of letters |',
        '200 steps of 64 pairs', r'| query | `<\|query\|>` |', '![Loss and held-out '
                                                              'retrieval](training.png)',
    ]:  # fmt: skip
        assert line in card, line
    assert (tmp_path / 'out' / 'training.png').read_bytes().startswith(b'\x89PNG')
    code = card.split('```python\n# cpt_jax\n')[1].split('```')[0]
    script = f'import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}print(scores.shape)'
    found = subprocess.run(
        [sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout == '(1, 1)\n'
    export(f'{run}@100', tmp_path / 'first', dtype='float32', shard_bytes=10**9, license_id='mit')
    # The scores are those of another checkpoint.
    assert '## Scores' not in (tmp_path / 'first' / 'README.md').read_text()


def test_card_escapes_what_users_typed(tokenizer, tmp_path):
    run = write_run(tmp_path / 'run', tokenizer)
    (run / 'data.json').write_text(json.dumps({'a': {'summary': '<b>|`x`\n* [y](z)'}}))
    earlier = resolve_model(str(run), '--model')
    config = earlier.provenance.config | {'init_from': '`<i>`|x'}
    provenance = dataclasses.replace(earlier.provenance, config=config)
    license_id = 'mit\n---\n# <script>'
    described = ExportedRun(earlier.run_dir, earlier.step, provenance, 'float32', license_id)
    name = "<script>alert('1')</script> *x*"
    part = ExportedPart('', ('x', 'y'), {'query': "'|`\n"}, 9, 0.0, 'gpt2', 8, {})
    write_card(tmp_path, described, name, [part])
    card = (tmp_path / 'README.md').read_text()
    assert card.startswith('---\nlicense: "mit\\n---\\n# <script>"\nlibrary_name')
    assert "\n# &lt;script&gt;alert('1')&lt;/script&gt; \\*x\\*\n" in card
    assert r'| text | 1.0 | &lt;b&gt;\|\`x\` \* \[y\](z) |' in card
    assert r'Training started from `` `<i>`\|x ``, whose' in card
    assert r"| query | ``'\|` `` |" in card
    assert 'text.strip()' not in card
    write_card(tmp_path, described, name, [part._replace(kind='qwen2')])
    assert 'text.strip()' in (tmp_path / 'README.md').read_text()
    code = card.split('```python\n# sentence-transformers 2.3 or later\n')[1].split('```')[0]
    assert f'SentenceTransformer({name!r})' in code


def test_card_of_a_merged_run_names_the_origins_of_all_parts(tokenizer, tmp_path):
    """The weights of its sources are left out, since they are those of several mixtures."""
    run = write_run(tmp_path / 'run', tokenizer)
    earlier = resolve_model(str(run), '--model')
    sources = {'a': {'kind': 'text', 'epochs': 2.0}}
    config = earlier.provenance.config | {'init_from': 'first', 'data': {'sources': sources}}
    part = ExportedPart('', ('x', 'y'), {'query': ''}, 9, 0.0, 'gpt2', 8, {})

    def make_card(merged):
        provenance = dataclasses.replace(earlier.provenance, config=config, merged=merged)
        described = ExportedRun(earlier.run_dir, earlier.step, provenance, 'float32', 'mit')
        write_card(tmp_path, described, 'out', [part])
        return (tmp_path / 'README.md').read_text()

    alone = make_card(None)
    assert 'Training started from `first`, whose license also applies.\n' in alone
    assert '| source | kind | weight | content |\n' in alone
    assert '\n| a | text | 2 epochs |  |\n' in alone
    plain = {'weight': 0.5, 'method': 'linear'}
    parts = [  # the first is of an earlier version, the second was merged itself
        {'model': 'runs/a', **plain},
        {'model': 'runs/b', **plain, 'init_from': ['other', 'first']},
    ]
    merged = make_card(parts)
    assert (
        'Training started from `first`, `other`, whose licenses also apply.\n\n'
        '| source | kind | content |\n| --- | --- | --- |\n| a | text |  |\n'
    ) in merged


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('results.json', {'tasks': []}, r'tasks=\[\]: must be an object'),
        ('results.json', {'tasks': {'t': {'settings': {}}}}, "the row of t has no 'main_score'"),
        ('data.json', {'a': 3}, 'a=3: must be an object'),
    ],
)
def test_file_of_the_run_with_another_structure_is_named(
    tokenizer, tmp_path, name, content, message
):
    run = write_run(tmp_path / 'run', tokenizer)
    (run / name).write_text(json.dumps(content))
    earlier = resolve_model(str(run), '--model')
    described = ExportedRun(earlier.run_dir, earlier.step, earlier.provenance, 'float32', 'mit')
    with pytest.raises(UserError, match=rf'run/{name}: {message}'):
        part = ExportedPart('', ('x', 'y'), {}, 9, 0.0, 'gpt2', 8, {})
        write_card(tmp_path, described, 'out', [part])


@pytest.mark.parametrize('name', ['results.json', 'data.json'])
def test_damaged_file_of_the_run_is_named(tokenizer, tmp_path, name):
    run = write_run(tmp_path / 'run', tokenizer)
    (run / name).write_text('{"model": ')
    earlier = resolve_model(str(run), '--model')
    described = ExportedRun(earlier.run_dir, earlier.step, earlier.provenance, 'float32', 'mit')
    with pytest.raises(UserError, match=rf'run/{name}: not JSON \([^()]*\([^()]*\)\)$'):
        part = ExportedPart('', ('x', 'y'), {}, 9, 0.0, 'gpt2', 8, {})
        write_card(tmp_path, described, 'out', [part])
