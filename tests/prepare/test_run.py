import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cpt_jax.data.cutting import Cut
from cpt_jax.data.mixture import make_batches, make_sources
from cpt_jax.data.sources.documents import DocumentSource
from cpt_jax.data.sources.prepared_texts import PreparedTexts
from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.prepare import executors, stages
from cpt_jax.prepare.neighbours import CharacterCounter
from cpt_jax.prepare.run import prepare
from cpt_jax.runtime.errors import UserError
from tests.prepare.helpers import get_texts, make_config, make_document, read_pairs, write_texts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A folder of 30 documents."""
    return write_texts(tmp_path_factory.mktemp('corpus'), 30)


@pytest.fixture(scope='module')
def prepared(corpus, tmp_path_factory):
    """The corpus, prepared with a fifth of its documents held out."""
    output = tmp_path_factory.mktemp('prepared') / 'output'
    config = make_config(text={'path': str(corpus)})
    config['output'] |= {'holdout': 0.2, 'fields': ('path',)}
    output.mkdir()
    prepare(config, output)
    return output


def test_pairs_are_the_neighbouring_pieces_of_each_document(prepared):
    expected = []
    for i in range(30):
        pieces = Cut(160, 20).split(make_document(i), CharacterCounter())
        assert max(map(len, pieces)) <= 160
        expected += zip(pieces, pieces[1:], strict=False)
    assert get_texts(prepared) == sorted(expected)


def test_plain_tfds_reads_the_output(prepared):
    data = tfds.builder_from_directory(prepared).as_data_source('train')
    assert {key: type(value) for key, value in data[0].items()}.keys() == {
        'x', 'y', 'id', 'source', 'negatives', 'path'
    }  # fmt: skip
    assert data[0]['path'].decode().endswith('.txt') and data[0]['source'] == b'text'


@pytest.mark.parametrize('kind', ['tfds', 'text'])
def test_no_batch_has_two_pairs_of_a_document(prepared, kind):
    sections = {'prepared': {'kind': kind, 'path': str(prepared), 'weight': 1.0}}
    if kind == 'text':  # as in configs/cpt_s.py
        sections['prepared'] |= {'piece_tokens': 254, 'separator': '', 'holdout': 0.01}
    names = {}
    for split in ('train', 'heldout'):
        sources, weights = make_sources(sections, split, CharacterCounter())
        source = sources['prepared']
        ids = [source[i].id for i in range(len(source))]
        names[split] = [name.rpartition('#')[0] for name in _read_ids(prepared, split)]
        assert len(ids) == len(names[split]) and source.documents[-1] == len(source)
    assert names['train'] and names['heldout'] and not {*names['train']} & {*names['heldout']}
    sources, weights = make_sources(sections, 'train', CharacterCounter())
    batches = make_batches(sources, weights, seed=0, batch_pairs=10)
    seen = set()
    for step in range(60):
        documents = [names['train'][i] for i in batches[step].pairs]
        assert len({*documents}) == 10
        seen |= {*batches[step].pairs.tolist()}
    assert len(seen) == len(sources['prepared'])


def _read_ids(output, split):
    data = tfds.builder_from_directory(output).as_data_source(
        {'train': 'train', 'heldout': 'test'}[split]
    )
    return [example['id'].decode() for example in data]


def test_a_language_model_reads_each_piece_once(prepared, tmp_path):
    pieces = []
    for i in range(30):
        pieces += Cut(160, 20).split(make_document(i), CharacterCounter())
    texts = []
    for split in ('train', 'heldout'):
        source = DocumentSource(TfdsSource(path=str(prepared), split=split))
        texts += [source[i].x for i in range(len(source))]
        assert f'{len(source):,} texts (pieces)' in source.summary()
    assert sorted(texts) == sorted(pieces)
    whole = DocumentSource(TfdsSource(path=str(prepared), split='all'))
    assert [whole[i].x for i in range(len(whole))] == texts
    # A data set of the first version is read as its runs have read it.
    old = shutil.copytree(prepared, tmp_path / 'old')
    summary = json.loads((old / 'summary.json').read_text())
    del summary['version']
    (old / 'summary.json').write_text(json.dumps(summary))
    pairs = TfdsSource(path=str(old), split='train')
    assert len(DocumentSource(pairs)) == len(pairs)


def test_texts_of_several_rules():
    documents = np.array([0, 2, 3, 4, 6, 7])
    texts = PreparedTexts(
        [('fields', 2), ('neighbours', 2), ('a', 0), ('neighbours', 3)], documents
    )
    assert [texts.locate(i) for i in range(len(texts))] == [
        (0, 'both'), (1, 'both'), (2, 'x'), (2, 'y'), (3, 'x'), (3, 'y'), (4, 'x'), (5, 'x'),
        (5, 'y'), (6, 'x'), (6, 'y'),
    ]  # fmt: skip


@pytest.mark.parametrize(
    'splits', [{'train_split': 'train[:95%]'}, {'heldout_split': 'train[95%:]'}]
)
def test_a_part_of_a_split_is_an_error(prepared, splits):
    with pytest.raises(UserError, match=f'{next(iter(splits))}=.* which are read as a whole'):
        TfdsSource(path=str(prepared), split='train', **splits)


@pytest.mark.parametrize('key', ['scores', 'score'])
def test_numbers_cannot_be_read_from_texts(prepared, key):
    """The field 'path' exists, so that only the first batch would fail."""
    with pytest.raises(UserError, match=f'^{key}=path: .* which keeps no numbers: remove {key}'):
        TfdsSource(path=str(prepared), split='train', **{key: 'path'})


def test_prepared_rows_are_not_checked_again(prepared, monkeypatch):
    monkeypatch.setattr(TfdsSource, '_index_rows', lambda self: 1 / 0)
    source = TfdsSource(path=str(prepared), split='train')
    assert len(source.fingerprint) == 32 and len(source) > 50


@pytest.mark.parametrize('kind', ['tfds', 'text'])
def test_output_is_read_from_a_bucket(prepared, kind):
    store = fsspec.filesystem('memory')
    try:
        store.put(str(prepared), '/bucket/pairs', recursive=True)
        section = {'kind': kind, 'weight': 1.0}
        found = [
            make_sources({'a': section | {'path': path}}, 'train', CharacterCounter())[0]['a']
            for path in ('memory://bucket/pairs', str(prepared))
        ]
        assert found[0].fingerprint == found[1].fingerprint
        assert [found[0][i].x for i in range(9)] == [found[1][i].x for i in range(9)]
        assert found[0].documents.tolist() == found[1].documents.tolist()
    finally:
        store.rm('/bucket', recursive=True)


def test_corpus_is_read_from_a_bucket(corpus, prepared, tmp_path):
    store = fsspec.filesystem('memory')
    try:
        store.put(str(corpus), '/bucket/corpus', recursive=True)
        prepare(make_config(text={'path': 'memory://bucket/corpus'}), tmp_path)
        assert get_texts(tmp_path) == get_texts(prepared)
    finally:
        store.rm('/bucket', recursive=True)


def test_text_needs_held_out_documents_if_it_has_a_holdout(corpus, tmp_path):
    config = make_config(text={'path': str(corpus)})
    config['output']['holdout'] = 0.0
    prepare(config, tmp_path)
    section = {'kind': 'text', 'weight': 1.0, 'path': str(tmp_path), 'holdout': 0.01}
    with pytest.raises(UserError, match='prepared without held-out documents'):
        make_sources({'a': section}, 'train', CharacterCounter())
    sources, _ = make_sources({'a': section | {'holdout': 0.0}}, 'train', CharacterCounter())
    assert len(sources['a']) == len(get_texts(tmp_path))


def test_duplicates_of_all_sources_are_removed(tmp_path):
    a = write_texts(tmp_path / 'a', 6)
    b = write_texts(tmp_path / 'b', 4, first=4)  # 0004 and 0005 are in both
    (b / 'spaces.txt').write_text('\n\n'.join(make_document(0).upper().split(' ')))
    expected = get_texts_of(tmp_path / 'plain', write_texts(tmp_path / 'all', 8))
    config = make_config(a={'path': str(a)}, b={'path': str(b)})
    summary = prepare(config, _make(tmp_path / 'output'))
    assert summary['total']['dropped']['duplicate'] == 3
    assert get_texts(tmp_path / 'output') == expected
    assert summary['sources']['a']['dropped']['duplicate'] == 0  # the first one is kept
    card = (tmp_path / 'output/card.md').read_text()
    assert '- duplicate: 3' in card and 'Personal data' in card


def _make(path):
    path.mkdir()
    return path


def get_texts_of(output, folder):
    prepare(make_config(text={'path': str(folder)}), _make(output))
    return get_texts(output)


def test_keys_are_compared_in_partitions(tmp_path, monkeypatch):
    """As for a corpus of terabytes."""
    monkeypatch.setattr('cpt_jax.prepare.plan._PARTITION_BYTES', 1000)
    folder = write_texts(tmp_path / 'a', 8)
    for i in range(8):
        (folder / f'copy{i}.txt').write_text(make_document(i) + '\n')
    config = make_config(a={'path': str(folder)})
    config['output']['shard_mb'] = 0.002  # two files a task
    summary = prepare(config, _make(tmp_path / 'output'))
    assert summary['total']['dropped']['duplicate'] == 8
    assert len([*(tmp_path / 'output').glob('*.array_record*')]) > 2
    assert len({pair.x for pair in read_pairs(tmp_path / 'output')}) == len(
        read_pairs(tmp_path / 'output')
    )


@pytest.mark.parametrize('stage', ['judge', 'compare', 'write', 'finish'])
def test_a_stopped_preparation_goes_on(corpus, prepared, tmp_path, monkeypatch, stage):
    config = make_config(text={'path': str(corpus)})
    config['output'] |= {'holdout': 0.2, 'fields': ('path',)}
    done = []

    def stop(output, name, rank):
        done.append((name, rank))
        if name == stage and len(done) == 1 + [n for n, _ in done].index(stage):
            raise KeyboardInterrupt
        return stages.run_task(output, name, rank)

    monkeypatch.setattr(executors, 'run_task', stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, tmp_path)
    monkeypatch.undo()
    prepare(config, tmp_path)
    names = sorted(path.name for path in prepared.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes(), name


def test_an_output_is_not_prepared_twice_nor_mixed(corpus, tmp_path):
    config = make_config(text={'path': str(corpus)})
    first = prepare(config, tmp_path)
    assert prepare(config, tmp_path) == first
    config['sources']['text']['piece_characters'] = 200
    with pytest.raises(UserError, match='was prepared with another config or from other files'):
        prepare(config, tmp_path)
    (tmp_path / 'summary.json').unlink()
    with pytest.raises(UserError, match='and is no preparation'):
        prepare(config, tmp_path)


def start(config_flags, output):
    command = [
        sys.executable, 'launch/prepare.py', '--config', 'configs/prepare_text.py',
        '--output', str(output), '--workers', '2', *config_flags,
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def find_workers(parent: int) -> set[int]:
    """Returns the processes whose command line names the fork server, started by a program."""
    found = set()
    for path in Path('/proc').glob('[0-9]*/environ'):
        try:
            if f'PREPARE_TEST={parent}'.encode() in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs /proc')
def test_two_workers_and_a_kill_give_the_same_result(tmp_path, monkeypatch):
    corpus = write_texts(tmp_path / 'corpus', 400)
    flags = [
        f'--config.sources.text.path={corpus}', '--config.sources.text.piece_characters=160',
        '--config.sources.text.min_characters=20', '--config.output.shard_mb=0.005',
    ]  # fmt: skip
    monkeypatch.setenv('PREPARE_TEST', str(os.getpid()))
    program = start(flags, tmp_path / 'output')
    done = tmp_path / 'output/_work/executor/judge/completions'
    while not done.is_dir() or len([*done.iterdir()]) < 3:
        assert program.poll() is None, program.communicate()
        time.sleep(0.01)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    deadline = time.monotonic() + 20
    while find_workers(os.getpid()) - {os.getpid()}:
        assert time.monotonic() < deadline, 'workers outlive their parent'
        time.sleep(0.05)
    assert not (tmp_path / 'output/summary.json').exists()
    program = start(flags, tmp_path / 'output')
    output, errors = program.communicate()
    assert program.returncode == 0, errors.decode()
    assert b'pairs of' in output
    config = make_config(text={'path': str(corpus)})
    config['output']['shard_mb'] = 0.005
    summary = prepare(config, _make(tmp_path / 'one'))
    stored = json.loads((tmp_path / 'output/summary.json').read_text())
    assert stored['contents'] == summary['contents']
    assert get_texts(tmp_path / 'output') == get_texts(tmp_path / 'one')


def test_starts_of_documents_are_stored(prepared):
    starts = np.load(prepared / 'documents-train.npy')
    ids = [name.rpartition(':')[0] for name in _read_ids(prepared, 'train')]
    assert [ids[start] for start in starts[:-1]] == [*dict.fromkeys(ids)]
