"""The kinds of pairs that are mined, and their texts in a file."""

import json

import pytest
from etils import epath

from cpt_jax.data.equality import EQUALITY_RULES
from cpt_jax.mining.pairs_to_mine import open_pairs
from cpt_jax.mining.text_table import build_text_table, compute_merged_key
from cpt_jax.runtime.errors import UserError
from tests.data.sources.test_tfds_pairs import TinyPairs


def read(found) -> list[tuple[str, str, str]]:
    return [(pair.id, pair.x, pair.y) for pair in map(found.pairs.__getitem__, range(2))]


def test_beir_folder_gives_its_train_split_and_its_corpus(tmp_path):
    folder = tmp_path / 'beir'
    (folder / 'qrels').mkdir(parents=True)
    corpus = [{'_id': f'd{i}', 'title': 'T', 'text': f'text {i}'} for i in range(4)]
    queries = [{'_id': f'q{i}', 'text': f' query {i}'} for i in range(3)]
    for name, rows in [('corpus', corpus), ('queries', queries)]:
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (folder / 'qrels' / 'train.tsv').write_text('q0\td2\t1\nq0\td1\t0\nq2\td0\t2\n')
    (folder / 'qrels' / 'test.tsv').write_text('q1\td0\t1\n')
    found = open_pairs(str(folder))
    assert read(found) == [('q0/d2', 'query 0', 'T text 2'), ('q2/d0', 'query 2', 'T text 0')]
    assert len(found.pairs) == 2
    assert list(found.iterate_corpus()) == [f'T text {i}' for i in range(4)]
    assert found.notes == ('beir/train: 2 pairs of 2 queries, 4 documents',)
    assert open_pairs(str(folder), split='test').pairs[0].id == 'q1/d0'
    with pytest.raises(UserError, match='no qrels/dev.tsv; a BEIR folder has'):
        open_pairs(str(folder), split='dev')
    with pytest.raises(UserError, match='--corpus: pairs of kind beir have no such setting'):
        open_pairs(str(folder), corpus='c.txt')


def test_files_of_pairs_are_read_by_their_names(tmp_path):
    rows = [{'query': f'x{i}', 'pos': [f'y{i}'], 'neg': ['n']} for i in range(2)]
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (tmp_path / 'csv').mkdir()
    (tmp_path / 'csv' / 'a.csv').write_text('x,y\nx0,y0\nx1,y1\n')
    (tmp_path / 'a.tsv').write_text('question\tanswer\nx0\ty0\nx1\ty1\n')
    (tmp_path / 'more.txt').write_text('z0\nz1\n')
    found = [
        open_pairs(str(tmp_path / 'a.jsonl')),
        open_pairs(str(tmp_path / 'csv')),
        open_pairs(str(tmp_path / 'a.tsv'), x='question', y='answer'),
    ]
    for pairs in found:
        assert [row[1:] for row in read(pairs)] == [('x0', 'y0'), ('x1', 'y1')]
        assert list(pairs.iterate_corpus()) == []
    assert found[0].read_fields(1) == rows[1]
    more = open_pairs(str(tmp_path / 'a.jsonl'), corpus=str(tmp_path / 'more.txt'))
    assert [list(more.iterate_corpus()) for _ in range(2)] == [['z0', 'z1']] * 2


def test_folders_are_read_by_the_suffixes_of_their_files(tmp_path):
    folder = tmp_path / 'tsv' / 'inner'
    folder.mkdir(parents=True)
    (folder / 'a.tsv').write_text('x\ty\nx,0\ty0\nx,1\ty1\n')
    (folder / '_notes.jsonl').write_text('hidden files are not read')
    for path in (folder, folder.parent, folder / '*.tsv', folder.parent / '**' / '*'):
        assert [row[1] for row in read(open_pairs(str(path)))] == ['x,0', 'x,1']
    (folder / 'b.csv').write_text('x,y\nx0,y0\n')
    with pytest.raises(UserError, match='has .csv and .tsv files, whose separators differ: give'):
        open_pairs(str(folder))
    (folder / 'c.jsonl').write_text('{"x": "x0", "y": "y0"}\n{"x": "x1", "y": "y1"}\n')
    with pytest.raises(UserError, match='has .jsonl and .csv or .tsv files: add --kind=jsonl or'):
        open_pairs(str(folder))
    assert [row[1] for row in read(open_pairs(str(folder), 'jsonl'))] == ['x0', 'x1']


def test_tfds_data_set_gives_one_split(tmp_path):
    TinyPairs(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
    given = {'x': 'question/text', 'y': 'answer', 'data_dir': str(tmp_path)}
    found = open_pairs('tiny_pairs', 'tfds', 'test', **given)
    assert len(found.pairs) == 5
    assert {row[1:] for row in read(found)} <= {
        (f'question {i}', f'answer test {i} é') for i in range(5)
    }


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'path': 'nowhere'}, '--data nowhere: no such file or folder; for a data set of Tensor'),
        ({'path': 'none/*.jsonl'}, r'--data none/\*.jsonl: .* is not a file'),
        ({'path': 'a.jsonl', 'separator': ';'}, '--separator: pairs of kind jsonl have no such'),
        ({'path': 'a.jsonl', 'split': 'test'}, '--split: pairs of kind jsonl have no such'),
        ({'path': 'a.jsonl', 'corpus_field': 'a'}, '--corpus_field a: needs --corpus'),
        ({'path': 'msmarco', 'kind': 'tfds'}, '--data msmarco: a tfds data set needs --x and --y'),
    ],
)
def test_pairs_that_cannot_be_read_are_one_line_errors(given, message):
    with pytest.raises(UserError, match=message):
        open_pairs(**given)


@pytest.mark.parametrize('rule', EQUALITY_RULES)
def test_table_keeps_the_first_of_equal_texts(tmp_path, rule):
    texts = ['b', 'Ü \U0001f389', 'a', ' b ', 'B', 'a', 'a\n b']
    table, indices = build_text_table(tmp_path / 'texts', iter(texts), rule)
    folds = rule == 'normalized'
    assert indices.tolist() == ([0, 1, 2, 0, 0, 2, 3] if folds else [0, 1, 2, 0, 3, 2, 4])
    kept = ['b', 'Ü \U0001f389', 'a', *([] if folds else ['B']), 'a\n b']
    assert table.read_texts(range(table.size)) == kept
    assert table.read_texts([2, 0]) == ['a', 'b']
    keys = [compute_merged_key(text, rule) for text in ('A', 'a', 'none', 'A B')]
    found = table.find_keys(table.keys_N.dtype.type(keys))
    assert found.tolist() == ([2, 2, -1, 3] if folds else [-1, 2, -1, -1])
    cased, _ = build_text_table(tmp_path / 'cased', iter(texts), rule, fold_case=False)
    assert 'B' in cased.read_texts(range(cased.size))
    other, _ = build_text_table(epath.Path(tmp_path / 'other'), [*texts[:-1], 'a b'], rule)
    assert other.fingerprint != table.fingerprint
