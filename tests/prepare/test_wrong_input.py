"""Each mistake is counted, or ends the program with one line that says what to do."""

import errno
import gzip
import json
import os
import resource
import signal

import pytest

from cpt_jax.prepare import executors, stages
from cpt_jax.prepare.counts import Counts, add_counts, check_unreadable
from cpt_jax.prepare.document import Unreadable
from cpt_jax.prepare.plan import parse_source
from cpt_jax.prepare.record_files import open_records
from cpt_jax.prepare.run import prepare
from cpt_jax.prepare.source_trees import read_sources
from cpt_jax.runs.config_file import load_config
from cpt_jax.runtime.errors import UserError
from tests.prepare.helpers import get_texts, make_config, make_document, write_texts


def test_unreadable_files_are_counted_and_named(tmp_path):
    folder = write_texts(tmp_path / 'texts', 40)
    packed = gzip.compress(make_document(100).encode())
    (folder / 'cut.txt.gz').write_bytes(packed[:-20])
    (folder / 'binary.txt').write_bytes(b'\0\1\2')
    (folder / 'whole.txt.gz').write_bytes(packed)
    (folder / 'link.txt').symlink_to(tmp_path / 'gone')  # not a file, so not found
    (folder / 'latin.txt').write_bytes('caf\xe9 au lait.'.encode('latin-1'))
    config = make_config(text={'path': str(folder)})
    with pytest.raises(UserError, match=r'2 of 44 records cannot be read.* first: binary.txt'):
        prepare(config, tmp_path / 'strict')
    config['output']['max_bad_share'] = 0.1
    summary = prepare(config, tmp_path / 'output')
    assert summary['total']['unreadable'] == {'not text': 1, 'truncated file': 1}
    assert summary['total']['examples']['truncated file'][0].startswith('cut.txt.gz: ')
    assert summary['pairs']['train'] > 0
    assert '- truncated file: 1 (first: cut.txt.gz' in (tmp_path / 'output/card.md').read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every file')
def test_file_without_rights_is_counted(tmp_path):
    folder = write_texts(tmp_path / 'texts', 40)
    (folder / '0003.txt').chmod(0)
    config = make_config(text={'path': str(folder)})
    config['output']['max_bad_share'] = 0.1
    summary = prepare(config, tmp_path / 'output')
    assert summary['total']['unreadable'] == {'unreadable file': 1}


def test_records_of_jsonl_are_counted(tmp_path):
    lines = [json.dumps({'title': f'title {i}', 'body': make_document(i)}) for i in range(20)]
    bad = ['{"title": "x"}', 'nonsense', '[1]', '{"title": 3, "body": "a"}']
    (tmp_path / 'a.jsonl').write_text('\n'.join([*lines, *bad, '', json.dumps({'a': 1})]) + '\n')
    section = {'reader': 'jsonl', 'path': str(tmp_path / 'a.jsonl'), 'text': 'body'}
    config = make_config(a=section | {'pairs': 'fields', 'x': 'title', 'y': 'body'})
    with pytest.raises(UserError, match=r"5 of 25 records .* no field 'body' .*a.jsonl:21"):
        prepare(config, tmp_path / 'strict')
    config['output']['max_bad_share'] = 0.2
    summary = prepare(config, tmp_path / 'output')
    assert summary['total']['unreadable'] == {
        "no field 'body'": 2, 'not JSON': 1, 'not a JSON object': 1, "'title' is not text": 1
    }  # fmt: skip
    assert len(get_texts(tmp_path / 'output')) == 20


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'path': 'no/such/*.txt'}, r"sources.a.path: 'no/such/\*.txt' is not a file"),
        ({'reader': 'word'}, "sources.a.reader is 'word' and must be one of text"),
        ({'pairs': 'triples'}, "sources.a.pairs is 'triples' and must be one of neighbours"),
        ({'peace_characters': 3}, 'unknown config key sources.a.peace_characters: reader'),
        (
            {'reader': 'jsonl', 'separator': '^a'},
            "sources.a.separator='\\^a': neither reader 'jsonl' nor .* default ''",
        ),
        ({'piece_characters': 'many'}, 'sources.a.piece_characters=.* must be an integer'),
        ({'min_characters': 100}, 'sources.a: piece_characters is 160 and must be at least twice'),
        ({'piece_tokens': 50}, 'sources.a: piece_tokens needs a tokenizer: set tokenizer.path'),
        ({'separator': '('}, "sources.a: separator: '\\(' is not a valid regular expression"),
    ],
)
def test_mistakes_of_a_source_are_named(tmp_path, changes, message):
    config = make_config(a={'path': str(write_texts(tmp_path / 'texts', 1))} | changes)
    with pytest.raises(UserError, match=message):
        prepare(config, tmp_path / 'output')
    assert not (tmp_path / 'output').exists()


@pytest.mark.parametrize(
    ('section', 'value', 'message'),
    [
        ('output', {'holdout': 1.5}, 'output.holdout=1.5'),
        ('output', {'fields': ('x',)}, "output.fields: 'x' is stored with every pair"),
        ('output', {'holdup': 1}, 'unknown config key output.holdup'),
        ('filters', {'min_characters': -1}, 'filters.min_characters=-1'),
        ('duplicate', {}, 'unknown config key duplicate'),
        ('sources', {}, 'name at least one source'),
    ],
)
def test_mistakes_of_a_section_are_named(tmp_path, section, value, message):
    config = make_config(a={'path': str(write_texts(tmp_path / 'texts', 1))})
    config[section] = value
    with pytest.raises(UserError, match=message):
        prepare(config, tmp_path / 'output')


def test_nothing_left_is_an_error(tmp_path):
    config = make_config(a={'path': str(write_texts(tmp_path / 'texts', 2))})
    config['filters']['min_characters'] = 10_000
    with pytest.raises(UserError, match=r'no pair for training is left \(dropped: 2 too short'):
        prepare(config, tmp_path / 'output')


def test_changed_input_stops_a_restart(tmp_path, monkeypatch):
    folder = write_texts(tmp_path / 'texts', 3)
    config = make_config(a={'path': str(folder)})
    monkeypatch.setattr(executors, 'run_task', lambda output, stage, rank: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config, tmp_path / 'output')
    monkeypatch.undo()
    (folder / 'new.txt').write_text('a b c')
    with pytest.raises(UserError, match='was begun with another config or from other files'):
        prepare(config, tmp_path / 'output')


def test_reader_of_a_flag_ignores_defaults_of_another():
    """As --config.sources.text.reader=jsonl with configs/prepare_text.py."""
    section = load_config('configs/prepare_text.py')['sources']['text']
    rules = parse_source('text', dict(section) | {'reader': 'jsonl', 'pairs': 'fields'}, '')
    assert not rules.reader_arguments and not rules.pair_arguments


def test_an_edit_between_the_stages_is_noticed(tmp_path, monkeypatch):
    folder = write_texts(tmp_path / 'texts', 3)

    def edit(output, stage, rank):
        if stage == 'write':  # with as many items as before
            (folder / '0001.txt').write_text(make_document(77))
        return stages.run_task(output, stage, rank)

    monkeypatch.setattr(executors, 'run_task', edit)
    message = r'0000.txt or one of 2 files with it has changed since this preparation began'
    with pytest.raises(UserError, match=message):
        prepare(make_config(a={'path': str(folder)}), tmp_path / 'output')


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    def write(path, *rest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr('cpt_jax.prepare.judge.save_array', write)
    config = make_config(a={'path': str(write_texts(tmp_path / 'texts', 2))})
    with pytest.raises(UserError, match='No space left on device: free space .* same command'):
        prepare(config, tmp_path / 'output')
    monkeypatch.undo()
    assert prepare(config, tmp_path / 'output')['pairs']['train']


def test_a_file_that_cannot_grow_is_one_line(tmp_path):
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / 'records'
    try:
        with pytest.raises(OSError, match='File too large'):
            with open_records(path) as records:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
                for _ in range(100):
                    records.write(os.urandom(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not [*tmp_path.iterdir()]


def test_errors_of_a_block_stay_what_they_are(tmp_path):
    with pytest.raises(RecursionError):
        with open_records(tmp_path / 'records') as records:
            records.write(b'a')
            raise RecursionError('of the model, not of the disk')
    assert not [*tmp_path.iterdir()]


def test_files_that_end_early_are_counted_as_files(tmp_path):
    """A file with thousands of records that breaks off is one bad record."""
    counts = Counts(files=10)
    counts.records = 100_000
    counts.add_unreadable(Unreadable('a.gz', 'truncated file', 'the end', ends_file=True))
    counts = Counts.from_json(add_counts([counts, Counts()]).to_json())
    with pytest.raises(UserError, match='1 of 10 files cannot be read to their end, .*a.gz'):
        check_unreadable({'a': counts}, 0.001)
    check_unreadable({'a': counts}, 0.1)


def test_a_source_that_vanishes_is_counted(tmp_path):
    (found,) = read_sources(tmp_path / 'gone.py', 'gone.py')
    assert (found.where, found.kind) == ('gone.py', 'unreadable file')


def test_missing_datatrove_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr('cpt_jax.prepare.packages.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"needs datatrove: pip install 'cpt_jax\[prepare\]'"):
        prepare(make_config(), tmp_path / 'output')


def test_another_program_prepares(tmp_path):
    from cpt_jax.storage.locks import try_lock

    config = make_config(a={'path': str(write_texts(tmp_path / 'texts', 2))})
    (tmp_path / 'output').mkdir()
    with try_lock(tmp_path / 'output/.preparing'):
        with pytest.raises(UserError, match='another program is preparing it'):
            prepare(config, tmp_path / 'output')
