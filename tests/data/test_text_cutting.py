import contextlib
import gc
import logging
import multiprocessing
import os
import re
import tracemalloc

import numpy as np
import pytest

from cpt_jax.data import text_cutting
from cpt_jax.data.files import InputFile
from cpt_jax.data.piece_shards import read_contents
from cpt_jax.data.sources.text import TextSource
from cpt_jax.data.text_cutting import CutProgress, SeenContents
from cpt_jax.data.text_documents import Position, iterate_documents
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.locks import LocksNotSupported


class WordTokenizer:
    fingerprint = 'words'

    def count(self, texts):
        return [text.count(' ') + 1 for text in texts]


class KillingTokenizer(WordTokenizer):
    """Ends the process after some calls."""

    def __init__(self, calls):
        self.calls = calls

    def count(self, texts):
        self.calls -= 1
        if self.calls < 0:
            os._exit(9)
        return super().count(texts)


def write_documents(path, documents, sentences=30, separator='DOC'):
    lines = [
        f'{separator} {i}\n' + f'In document {i} this is one of the sentences.\n' * sentences
        for i in range(documents)
    ]
    path.write_text(''.join(lines))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with 60 documents in three files, which are cut into small shards."""
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(text_cutting, 'SHARD_BYTES', 8000)
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)
    docs = tmp_path / 'docs'
    docs.mkdir()
    for i, name in enumerate('abc'):
        write_documents(docs / f'{name}.txt', 20, separator=f'DOC {i}')
    (docs / 'd.txt').write_bytes(b'DOC latin \xe9\n' + b'A sentence of Latin-1.\n' * 40)
    return docs


def make_source(folder, split='all', tokenizer=None, **more):
    return TextSource(
        str(folder), split, tokenizer or WordTokenizer(), 40, 5, separator='^DOC ', **more
    )


def get_everything(source):
    pairs = [source[i] for i in range(len(source))]
    pieces = source.get_pieces()
    return pairs, [pieces[i] for i in range(len(pieces))], source.fingerprint, source.summary()


def get_cache_entry(tmp_path):
    (entry,) = (tmp_path / 'cache').glob('text_*')
    return entry


@pytest.mark.parametrize('split, holdout', [('all', 0.0), ('train', 0.3), ('heldout', 0.3)])
def test_pairs_do_not_depend_on_the_shards(folder, tmp_path, monkeypatch, split, holdout):
    in_shards = get_everything(make_source(folder, split, holdout=holdout))
    assert read_contents(get_cache_entry(tmp_path)).shards > 5
    monkeypatch.setattr(text_cutting, 'SHARD_BYTES', 10**9)
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'other'))
    assert get_everything(make_source(folder, split, holdout=holdout)) == in_shards


@pytest.mark.parametrize('calls', [0, 3, 20, 50])
def test_cut_that_was_killed_resumes_at_a_shard(folder, tmp_path, calls):
    process = multiprocessing.get_context('fork').Process(
        target=make_source, args=(folder, 'all', KillingTokenizer(calls))
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    before = {path: path.stat().st_mtime_ns for path in get_cache_entry(tmp_path).glob('*.bin')}
    resumed = get_everything(make_source(folder))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (len(before) > 1) == (calls >= 20)
    assert not list(get_cache_entry(tmp_path).glob('*.part'))
    os.environ['CPT_JAX_CACHE'] = str(tmp_path / 'other')
    assert get_everything(make_source(folder)) == resumed


@pytest.mark.parametrize('which', ['pieces', 'starts', 'documents', 'split', 'contents'])
@pytest.mark.parametrize('verify', [False, True])
def test_damaged_file_is_written_again(folder, tmp_path, which, verify):
    expected = get_everything(make_source(folder))
    entry = get_cache_entry(tmp_path)
    path = max(entry.glob(f'{which}*'))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert get_everything(make_source(folder, verify=verify)) == expected


def test_copied_cache_is_used(folder, tmp_path, monkeypatch):
    expected = get_everything(make_source(folder))
    entry = get_cache_entry(tmp_path)
    for path in entry.iterdir():
        os.utime(path, (1, 1))
    monkeypatch.setattr('cpt_jax.data.sources.text.cut_into_shards', None)  # a call would fail
    assert get_everything(make_source(folder)) == expected


def test_cache_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    expected = get_everything(make_source(folder))
    monkeypatch.setenv('CPT_JAX_CACHE', str(tmp_path / 'file'))
    assert get_everything(make_source(folder)) == expected


def test_finished_cache_that_cannot_be_written_is_used(folder, monkeypatch):
    expected = get_everything(make_source(folder, 'all'))

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('cpt_jax.storage.cache_entry.wait_for_lock', refuse)
    monkeypatch.setattr('cpt_jax.data.piece_splits.open_atomically', refuse)
    monkeypatch.setattr('cpt_jax.data.sources.text.cut_into_shards', None)  # a call would fail
    assert get_everything(make_source(folder, 'all')) == expected
    train = make_source(folder, 'train', holdout=0.3)  # whose files do not exist
    assert 0 < len(train) < len(expected[0])


def test_two_processes_without_locks(folder, monkeypatch):
    """Both cut, and neither removes what the other is writing."""
    expected = get_everything(make_source(folder, min_pieces=1))

    @contextlib.contextmanager
    def refuse(*args):
        raise LocksNotSupported('no locks')
        yield

    monkeypatch.setattr('cpt_jax.storage.cache_entry.wait_for_lock', refuse)
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=make_source, args=(folder,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert get_everything(make_source(folder, min_pieces=1)) == expected


def test_second_process_waits_for_the_first(folder, tmp_path):
    context = multiprocessing.get_context('fork')
    cuts = context.Value('i', 0)

    class CountingTokenizer(WordTokenizer):
        def count(self, texts):
            with cuts.get_lock():
                cuts.value += 1
            return super().count(texts)

    processes = [
        context.Process(target=make_source, args=(folder, 'all', CountingTokenizer()))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert cuts.value == 61  # one call for each document


def test_memory_does_not_grow_with_the_text(folder, monkeypatch):
    monkeypatch.setattr('cpt_jax.data.text_documents._BLOCK_BYTES', 4096)
    monkeypatch.setattr(text_cutting, 'SHARD_BYTES', 50_000)
    monkeypatch.setattr('cpt_jax.data.piece_shards._BLOCK_BYTES', 4096)
    # Threads read the files for their stamps; how many of their buffers exist at a time varies.
    for module in ('file_stamp', 'file_checksums'):
        monkeypatch.setattr(f'cpt_jax.storage.{module}._READ_BYTES', 4096)

    context = multiprocessing.get_context('fork')
    peak = context.Value('q')

    def cut():
        # Each shard leaves reference cycles, those of the headers of its arrays. They are collected
        # at once here; by default, those of 70,000 objects come together.
        gc.freeze()
        gc.set_threshold(100, 1, 1)
        tracemalloc.start()
        make_source(folder)
        peak.value = tracemalloc.get_traced_memory()[1]

    def measure_peak() -> int:
        """Measures in a process without the threads that earlier tests have left."""
        process = context.Process(target=cut)
        process.start()
        process.join()
        assert process.exitcode == 0
        return peak.value

    write_documents(folder / 'small.txt', 50, 200, 'DOC 9')  # more than a shard
    small = measure_peak()
    write_documents(folder / 'large.txt', 150, 200, 'DOC 8')
    size = (folder / 'large.txt').stat().st_size
    assert measure_peak() - small < 0.05 * size


def test_lines_are_those_of_the_whole_text(tmp_path, monkeypatch):
    monkeypatch.setattr('cpt_jax.data.text_documents._BLOCK_BYTES', 3)
    text = 'a\r\nbé\r\r\n\n\x0bc\u2028d\x85 e\x1c\n\nDOC f\rDOC g\n \nno end'
    for content, name in (
        (text.encode(), 'a'),
        (text.encode('utf-8-sig'), 'b'),
        (b'\xef\xbb', 'c'),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        documents = iterate_documents(
            [InputFile(name, path)], re.compile('^DOC '), {}, lambda size: None, Position(0, 0)
        )
        found = [document.text for document in documents]
        whole = content.decode('utf-8-sig' if name != 'c' else 'latin-1').splitlines()
        assert '\n'.join(found) == '\n'.join(whole)
        assert [text.splitlines()[0] for text in found] == (
            ['a', 'DOC f', 'DOC g'] if name != 'c' else ['ï»']
        )


def test_seen_contents_are_a_set(monkeypatch):
    monkeypatch.setattr(text_cutting, '_MAX_NEW_KEYS', 7)
    seen = SeenContents()
    known = set()
    for key in np.random.default_rng(0).integers(0, 60, 200).tolist():
        key += 2**64 - 100
        assert seen.add(key) == (key not in known)
        known.add(key)


class FakeBar:
    disable = True

    def update(self, size):
        pass


def test_long_cut_is_announced_with_its_time(tmp_path, monkeypatch, caplog):
    clock = iter([0.0, 1.0, 6.0, 7.0, 700.0])
    monkeypatch.setattr(text_cutting.time, 'monotonic', lambda: next(clock))
    progress = CutProgress(tmp_path, 3, 10**9, FakeBar())
    progress.skip(100_000_000)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            progress.update(500_000)
    first, second = (record.message for record in caplog.records)
    assert first.startswith(
        'cutting 1 GB of text in 3 files into pieces takes about 1.5 hours on this machine, at '
        '0.2 MB/s, and as much space in '
    )
    assert first.endswith('use launch/prepare.py')
    assert second == 'cutting 1 GB of text in 3 files: 10 %, about 87.3 hours remaining'


def test_text_that_does_not_fit_on_the_disk_is_refused(folder, monkeypatch):
    monkeypatch.setattr(text_cutting, 'get_free_bytes', lambda path: 1000)
    with pytest.raises(UserError, match='do not fit into .* set CPT_JAX_CACHE to a folder on a la'):
        make_source(folder)


def test_shard_per_document(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(text_cutting, 'SHARD_BYTES', 1)
    assert len(make_source(folder, min_pieces=1).get_pieces()) > 61
    assert read_contents(get_cache_entry(tmp_path)).shards == 62  # the last one is empty
