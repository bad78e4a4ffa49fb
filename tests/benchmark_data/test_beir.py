"""Collections in BEIR's format and as MS MARCO's original files."""

import json

import pytest
from etils import epath

from cpt_jax.benchmark_data.beir import check_judged, load_collection
from cpt_jax.runtime.errors import UserError

CORPUS = [
    {'_id': '007', 'title': 'Bond', 'text': 'agent'},
    {'_id': '7', 'title': None, 'text': ' seven '},
    {'_id': 'b', 'text': ''},
]
QUERIES = [
    {'_id': '1', 'text': 'one'},
    {'_id': '01', 'text': 'zero one'},
    {'_id': 'unjudged', 'text': 'x'},
]


def write_collection(
    folder,
    corpus=CORPUS,
    queries=QUERIES,
    qrels='query-id\tcorpus-id\tscore\n1\t007\t1\n01\t7\t2\n',
):
    (folder / 'qrels').mkdir(parents=True)
    for name, rows in (('corpus', corpus), ('queries', queries)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
    (folder / 'qrels' / 'test.tsv').write_text(qrels)
    return epath.Path(folder)


def test_collection_has_texts_and_string_ids(tmp_path):
    collection = load_collection(write_collection(tmp_path / 'c'), 'test')
    documents = collection.documents
    texts = dict(zip(documents.names, documents.load_all_texts(), strict=True))
    assert texts == {'007': 'Bond agent', '7': 'seven', 'b': ''}
    assert documents.names == ['b', '7', '007']  # descending, as trec_eval breaks ties
    assert dict(zip(collection.query_ids, collection.queries, strict=True)) == {
        '1': 'one',
        '01': 'zero one',
    }
    assert collection.qrels == {'1': {'007': 1}, '01': {'7': 2}}


@pytest.mark.parametrize('header', ['', 'query-id\tcorpus-id\tscore\n'])
def test_header_is_optional_and_no_judgement_is_skipped(tmp_path, header):
    collection = load_collection(
        write_collection(tmp_path / 'c', qrels=header + '1\t007\t1\n01\t7\t1\n'), 'test'
    )
    assert collection.qrels == {'1': {'007': 1}, '01': {'7': 1}}


def test_fractional_grades_become_integers_and_zero_is_not_relevant(tmp_path):
    qrels = '1\t007\t2.33\n1\t7\t0.5\n1\tb\t-1\n01\tb\t0.0\n'
    collection = load_collection(write_collection(tmp_path / 'c', qrels=qrels), 'test')
    assert collection.qrels == {'1': {'007': 233, '7': 50, 'b': 0}}
    assert collection.facts['grade_scale'] == 100
    assert collection.facts['queries_without_positives'] == 1


def test_integer_grades_are_unchanged(tmp_path):
    collection = load_collection(
        write_collection(tmp_path / 'c', qrels='1\t007\t10\n1\t7\t2.0\n'), 'test'
    )
    assert collection.qrels == {'1': {'007': 10, '7': 2}}


def test_missing_judged_documents_are_counted(tmp_path):
    collection = load_collection(
        write_collection(tmp_path / 'c', qrels='1\t007\t1\n1\tgone\t1\n'), 'test'
    )
    assert collection.qrels == {'1': {'007': 1, 'gone': 1}}
    assert collection.facts['judged_documents_not_in_corpus'] == 1
    assert collection.warnings == (
        "1 of 2 relevant documents of test.tsv are not in corpus.jsonl (such as 'gone'): 0 of 1 "
        'queries have none there and score 0',
    )
    assert load_collection(write_collection(tmp_path / 'd'), 'test').warnings == ()


def test_relevant_documents_with_the_id_of_their_query_are_reported(tmp_path):
    # As in data whose queries and documents are both numbered from 1.
    numbered = [{'_id': '1', 'text': 'apple'}, {'_id': '2', 'text': 'pear'}]
    queries = [{'_id': '1', 'text': 'a round fruit'}, {'_id': '2', 'text': 'not a round one'}]
    folder = write_collection(tmp_path / 'c', numbered, queries, '1\t1\t1\n2\t2\t1\n')
    with pytest.raises(UserError, match='no relevant document is left: 2 of 2 queries of test'):
        load_collection(folder, 'test')
    gone = write_collection(tmp_path / 'gone', numbered, queries, '1\t1\t1\n1\tgone\t1\n')
    with pytest.raises(UserError, match='no relevant document is left: 1 of 1 queries of test'):
        load_collection(gone, 'test')
    folder = write_collection(tmp_path / 'd', numbered, queries, '1\t1\t1\n2\t1\t1\n')
    (warning,) = load_collection(folder, 'test').warnings
    assert warning.startswith('1 of 2 queries of test.tsv have a relevant document with the id')


def test_fingerprint_depends_on_every_file(tmp_path):
    prints = [
        load_collection(write_collection(tmp_path / 'a'), 'test').facts['data'],
        load_collection(
            write_collection(tmp_path / 'b', corpus=[*CORPUS, {'_id': 'c', 'text': ''}]), 'test'
        ).facts['data'],
        load_collection(write_collection(tmp_path / 'c', queries=QUERIES[:2]), 'test').facts[
            'data'
        ],
        load_collection(write_collection(tmp_path / 'd', qrels='1\t007\t1\n'), 'test').facts[
            'data'
        ],
    ]
    assert len(set(prints)) == 4
    assert load_collection(write_collection(tmp_path / 'e'), 'test').facts['data'] == prints[0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'qrels': 'query-id\tcorpus-id\tscore\n1\t007\n'},
            r'test.tsv:2: query id, document id and a grade',
        ),
        ({'qrels': '1\t007\t1\n1\t7\thigh\n'}, r'test.tsv:2: .*high'),
        ({'qrels': '1 007 1\n'}, r'test.tsv:1: .*separated by tabs'),
        ({'qrels': '1\t007\t1\n1\t7\tnan\n'}, r'test.tsv:2: '),
        (
            {'qrels': '1\t007\t1\nnew\t7\t1\n'},
            r"test.tsv:2: the query 'new' is not in queries.jsonl",
        ),
        ({'qrels': '1\t007\t1\n\n1\t007\t2\n'}, r'test.tsv:3: .* a different grade'),
        (
            {'qrels': '1\t007\t1\nnew\t7\t1\nnewer\t7\t1\n'},
            r'test.tsv:2: .*; 2 of the 3 judged queries are not: add them',
        ),
        ({'qrels': '1\t007\t0\n'}, r'test.tsv: no document is relevant'),
        (
            {'qrels': '1\t07\t1\n01\t0b\t1\n01\tb\t0\n'},
            r"test.tsv: none of its 2 relevant documents is in corpus.jsonl \(such as '07'\)",
        ),
        ({'corpus': [*CORPUS, '{"_id": "c", "text"']}, r'corpus.jsonl:4: not JSON'),
        ({'corpus': [*CORPUS, '["c", "text"]']}, r'corpus.jsonl:4: a JSON object'),
        ({'corpus': [*CORPUS, {'_id': 'c'}]}, r'corpus.jsonl:4: the fields "_id" and "text"'),
        (
            {'corpus': [*CORPUS, {'_id': True, 'text': ''}]},
            r'corpus.jsonl:4: the fields "_id" and "text"',
        ),
        (
            {'corpus': [*CORPUS, {'_id': 'c', 'title': ['t'], 'text': ''}]},
            r'corpus.jsonl:4: the field "title" must be a string',
        ),
        (
            {'corpus': [*CORPUS, {'_id': '7', 'text': ''}]},
            r"corpus.jsonl:4: the id '7' is already on an earlier line",
        ),
        ({'corpus': []}, r'corpus.jsonl: the file has no documents'),
    ],
)
def test_invalid_lines_are_errors_with_file_and_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_collection(write_collection(tmp_path / 'c', **change), 'test')


def test_text_that_is_not_utf_8_is_an_error(tmp_path):
    folder = write_collection(tmp_path / 'c')
    (tmp_path / 'c' / 'queries.jsonl').write_bytes(
        b'{"_id": "1", "text": "one"}\n{"_id": "01", "text": "caf\xe9"}\n'
    )
    with pytest.raises(UserError, match=r'queries.jsonl:2: not UTF-8'):
        load_collection(folder, 'test')


def test_missing_files_are_named(tmp_path):
    folder = write_collection(tmp_path / 'c')
    with pytest.raises(UserError, match=r'c: no qrels/dev.tsv; a BEIR folder has'):
        load_collection(folder, 'dev')


def test_original_files_of_ms_marco_are_read(tmp_path):
    """The files are collection.tsv and those of dev.small, which have no header."""
    (tmp_path / 'collection.tsv').write_text('0\tThe first  passage\n007\tbond \n7\tseven\n')
    (tmp_path / 'queries.dev.small.tsv').write_text('1048585\twhat is it\n2\tunjudged\n')
    (tmp_path / 'qrels.dev.small.tsv').write_text('1048585\t0\t7\t1\n1048585\t0\t007\t1\n')
    collection = load_collection(epath.Path(tmp_path), 'dev')
    assert collection.documents.names == ['7', '007', '0']
    assert collection.documents.load_all_texts() == ['seven', 'bond', 'The first  passage']
    assert collection.queries == ['what is it']
    assert collection.qrels == {'1048585': {'7': 1, '007': 1}}
    with pytest.raises(
        UserError,
        match=r'no queries.test.tsv, qrels.test.tsv; a MS MARCO folder has collection.tsv, '
        r'queries.test.tsv and',
    ):
        load_collection(epath.Path(tmp_path), 'test')
    (tmp_path / 'collection.tsv').write_text('0\tx\nno tab\n')
    with pytest.raises(
        UserError, match=r"collection.tsv:2: an id, a tab and a text are expected, not 'no tab'"
    ):
        load_collection(epath.Path(tmp_path), 'dev')


def test_query_without_judgement_is_an_error_with_its_line(tmp_path):
    folder = write_collection(tmp_path / 'c')
    with pytest.raises(
        UserError,
        match=r"queries.jsonl:3: the query 'unjudged' has no judgement in qrels/test.tsv: "
        r'.*--unjudged=',
    ):
        check_judged(folder)
    trec = write_collection(tmp_path / 'trec', qrels='1\t0\t007\t1\n01\t0\t7\t2\n')
    with pytest.raises(UserError, match="the query 'unjudged' has no judgement"):
        check_judged(trec)
    (folder / 'qrels' / 'train.tsv').write_text('unjudged\t7\t0\n')  # grade 0 is a judgement, too
    check_judged(folder)
    # load_collection reports the lines without an id and with spaces instead of tabs.
    check_judged(write_collection(tmp_path / 'lines', queries=['{"text": "no id"}', *QUERIES[:2]]))
    check_judged(write_collection(tmp_path / 'torn', qrels='1\t007\t1\n01 7 1\n'))
    for missing in ('queries.jsonl', 'qrels/test.tsv', 'qrels/train.tsv'):
        (folder / missing).unlink()
        check_judged(folder)
