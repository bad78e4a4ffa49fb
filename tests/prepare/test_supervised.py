import io
import json

import pytest

from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.prepare.document import Document, TextPair
from cpt_jax.prepare.fields import pair_fields
from cpt_jax.prepare.inputs import find_source_files
from cpt_jax.prepare.readers import supervised
from cpt_jax.prepare.readers.compressed import BrokenFile
from cpt_jax.prepare.records import BadRecord
from cpt_jax.prepare.run import prepare
from cpt_jax.runtime.errors import UserError
from tests.prepare.helpers import make_config


def prepare_pairs(tmp_path, section):
    """Returns {(x, y): negatives} of what a preparation has made of a source, and the summary."""
    config = make_config(a=section | {'pairs': 'fields'})
    config['output'] |= {'holdout': 0.0, 'max_bad_share': 0.5}
    summary = prepare(config, tmp_path / 'output')
    source = TfdsSource(path=str(tmp_path / 'output'), split='train')
    pairs = [source[i] for i in range(len(source))]
    return {(pair.x, pair.y): pair.negatives for pair in pairs}, summary


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_nli(tmp_path):
    rows = [
        ('entailment', 'A man runs.', 'A man moves.'),
        ('neutral', 'A man runs.', 'He is late.'),
        ('contradiction', 'A man runs.', 'A man sleeps.'),
        ('contradiction', 'A dog.', 'A cat.'),  # no entailed sentence
        ('entailment', 'A man runs.', 'Someone runs.'),
        ('-', 'A dog.', 'An animal.'),
    ]
    names = ('gold_label', 'sentence1', 'sentence2')
    bad = {'gold_label': 'entailment', 'sentence1': 'x'}
    write_lines(
        tmp_path / 'snli_train.jsonl', [*(dict(zip(names, row, strict=True)) for row in rows), bad]
    )
    pairs, summary = prepare_pairs(tmp_path, {'reader': 'nli', 'path': f'{tmp_path}/*.jsonl'})
    assert pairs == {
        ('A man runs.', 'A man moves.'): ('A man sleeps.',),
        ('A man runs.', 'Someone runs.'): ('A man sleeps.',),
    }
    assert summary['total']['unreadable'] == {"no field 'sentence2'": 1}
    reason = 'premise without an entailed sentence and a contradiction'
    assert summary['total']['dropped'][reason] == 2


def test_only_files_of_the_split_are_read(tmp_path):
    names = (
        'snli_1.0_train.jsonl', 'snli_1.0_dev.jsonl', 'multinli_1.0_dev_matched.jsonl', 'all.jsonl'
    )  # fmt: skip
    for name in names:
        (tmp_path / name).write_text('{}')
    (tmp_path / 'nq-train.json').write_text('[]')
    (tmp_path / 'nq-dev.json').write_text('[]')

    def find(reader, **arguments):
        found = find_source_files('a', str(tmp_path), reader, arguments)
        return [file.name for file in found.files]

    assert find('nli') == ['all.jsonl', 'snli_1.0_train.jsonl']
    assert find('nli', split='dev') == ['all.jsonl', *sorted(names[1:3])]
    assert find('dpr') == ['nq-train.json'] and find('dpr', split='dev') == ['nq-dev.json']


def test_lost_pairs_are_counted(tmp_path):
    rows = [{'x': 'a', 'y': ['b', ' ']}, {'x': '', 'y': 'c'}, {'x': 'd', 'y': []}]
    write_lines(tmp_path / 'a.jsonl', rows)
    section = {'reader': 'jsonl', 'path': str(tmp_path / 'a.jsonl'), 'text': 'x'}
    pairs, summary = prepare_pairs(tmp_path, section)
    assert pairs == {('a', 'b'): ()}
    dropped = {key: number for key, number in summary['total']['dropped'].items() if number}
    assert dropped == {'blank x or y': 2, 'no text in y': 1}


@pytest.mark.parametrize('value', [5, True, {'a': 'b'}, [1]])
def test_negatives_that_are_no_texts_make_a_bad_record(value):
    with pytest.raises(BadRecord, match="'negatives' is not a list of texts"):
        list(pair_fields(Document('', 'a', {'x': 'a', 'y': 'b', 'negatives': value})))
    # Other rules leave the field alone.
    assert TextPair('a', 'b', {'negatives': 5}).negatives == ()
    assert TextPair('a', 'b', {'negatives': 'c'}).negatives == ('c',)


def test_dpr(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, '_BLOCK_BYTES', 50)  # objects and characters are cut
    rows = [
        {
            'question': f'Who é{i}?', 'answers': ['x'],
            'positive_ctxs': [{'title': 'A', 'text': f'one {i}'}, {'title': 'B', 'text': 'two'}],
            'negative_ctxs': [],
            'hard_negative_ctxs': [{'title': '', 'text': f'no {j}'} for j in range(9)],
        }
        for i in range(5)
    ]  # fmt: skip
    path = tmp_path / 'in/biencoder-nq-train.json'
    path.parent.mkdir()
    path.write_text(json.dumps([*rows, {'question': 'bad'}], indent=4, ensure_ascii=False))
    section = {'reader': 'dpr', 'path': str(path.parent), 'hard_negatives': 2}
    pairs, summary = prepare_pairs(tmp_path, section)
    assert pairs == {(f'Who é{i}?', f'A one {i}'): ('no 0', 'no 1') for i in range(5)}
    assert summary['total']['unreadable'] == {"no list 'positive_ctxs'": 1}


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        (b'[{"a": 1}, {"b"', 'truncated file'),
        (b'{"a": 1}', 'not a JSON list'),
        (b'[1]', 'not a list'),
    ],
)
def test_broken_json_lists(content, problem):
    with pytest.raises(BrokenFile, match=problem):
        list(supervised.iterate_json_list(io.BytesIO(content)))
    assert list(supervised.iterate_json_list(io.BytesIO(b' [ ] '))) == []


@pytest.mark.parametrize('form', ['beir', 'msmarco'])
def test_collections(tmp_path, form):
    folder = tmp_path / 'in' / form
    if form == 'beir':
        corpus = [{'_id': f'd{i}', 'title': 'T', 'text': f'text {i}'} for i in range(4)]
        write_lines(folder / 'corpus.jsonl', corpus)
        write_lines(
            folder / 'queries.jsonl', [{'_id': f'q{i}', 'text': f'query {i}'} for i in range(3)]
        )
        (folder / 'qrels').mkdir()
        header = 'query-id\tcorpus-id\tscore\n'
        (folder / 'qrels/train.tsv').write_text(
            f'{header}q0\td0\t1\nq0\td1\t1\nq1\td2\t0\nq2\td3\t2\nq1\tgone\t1\n'
        )
        (folder / 'qrels/test.tsv').write_text(f'{header}q1\td2\t1\n')
        title = 'T '
    else:
        folder.mkdir(parents=True)
        (folder / 'collection.tsv').write_text(''.join(f'd{i}\ttext {i}\n' for i in range(4)))
        (folder / 'queries.train.tsv').write_text(''.join(f'q{i}\tquery {i}\n' for i in range(3)))
        (folder / 'qrels.train.tsv').write_text('q0\t0\td0\t1\nq0\t0\td1\t1\nq2\t0\td3\t1\n')
        title = ''
    pairs, summary = prepare_pairs(tmp_path, {'reader': 'beir', 'path': str(tmp_path / 'in')})
    if form == 'beir':
        assert summary['total']['dropped']['query without a document'] == 1
        assert summary['total']['dropped']['relevant document that is not in the corpus'] == 1
    assert {*pairs} == {
        ('query 0', f'{title}text 0'), ('query 0', f'{title}text 1'), ('query 2', f'{title}text 3')
    }  # fmt: skip


def test_folder_without_the_split_is_an_error(tmp_path):
    (tmp_path / 'qrels').mkdir()
    (tmp_path / 'qrels/test.tsv').write_text('q0\td0\t1\n')
    config = make_config(a={'reader': 'beir', 'path': str(tmp_path), 'pairs': 'fields'})
    with pytest.raises(UserError, match="has 1 files and none that reader 'beir' reads"):
        prepare(config, tmp_path / 'output')


def test_tables(tmp_path):
    (tmp_path / 'nli.csv').write_text(
        '\ufeffsent0,sent1,hard_neg\n"A, b",c,d\ne,"f\ng",\nonly,two\n', encoding='utf-8'
    )
    section = {
        'reader': 'csv', 'path': str(tmp_path / 'nli.csv'), 'text': ('sent0', 'sent1'),
        'x': 'sent0', 'y': 'sent1', 'negatives': 'hard_neg',
    }  # fmt: skip
    pairs, summary = prepare_pairs(tmp_path, section)
    assert pairs == {('A, b', 'c'): ('d',), ('e', 'f\ng'): ()}
    kind = 'the number of cells differs from the header'
    assert summary['total']['examples'][kind] == ['nli.csv:5: 2, not 3']
    config = make_config(a=section | {'pairs': 'fields', 'separator': 'tab'})
    with pytest.raises(UserError, match="sources.a: separator='tab': must be a single character"):
        prepare(config, tmp_path / 'output2')
