import json

import numpy as np
import pytest

from cpt_jax.data.prepared import find_cleaned_sources
from cpt_jax.data.sources.tfds_pairs import TfdsSource
from cpt_jax.evals.registry import KINDS, find_tasks
from cpt_jax.prepare import benchmark_texts
from cpt_jax.prepare.decontamination import Decontaminator, index_test_texts
from cpt_jax.prepare.document import TextPair
from cpt_jax.prepare.run import prepare
from cpt_jax.prepare.words import hash_words, iterate_windows, split_normalized_words
from cpt_jax.runtime.errors import UserError
from tests.prepare.helpers import (
    get_texts,
    make_config,
    make_document,
    read_pairs,
    write_texts,
)

CLAIM = 'Zinc slows the growth of cortical neurons in ageing mice.'
ABSTRACT = (
    'We measured, in forty mice of both sexes, how zinc in the diet changes cortical neurons over '
    'two years of life. Growth was slower.'
)
SENTENCES = [
    'A man is slicing a ripe tomato, slowly.',
    "The dog doesn't like the green ball at all",
]
SHORT = 'A man plays.'


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """A folder with one retrieval set and STS-B."""
    root = tmp_path_factory.mktemp('data')
    scifact = root / 'retrieval/scifact'
    (scifact / 'qrels').mkdir(parents=True)
    rows = [{'_id': 'd1', 'text': ABSTRACT}, {'_id': 'd2', 'text': make_document(3)}]
    (scifact / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    (scifact / 'queries.jsonl').write_text(json.dumps({'_id': 'q', 'text': CLAIM}))
    (scifact / 'qrels/test.tsv').write_text('query-id\tcorpus-id\tscore\nq\td1\t1\n')
    stsb = root / 'senteval/STS/STSBenchmark'
    stsb.mkdir(parents=True)
    lines = [
        f'main\tfile\t2017\t1\t2.5\t{SENTENCES[0]}\t{SHORT}',
        f"main\tfile\t2017\t2\t4.0\tThe dog does n't like the green ball at all .\t{SENTENCES[1]}",
    ]
    (stsb / 'sts-test.csv').write_text('\n'.join(lines) + '\n')
    return root


def plant(text, leak):
    """Returns a document with another text between two of its sentences."""
    first, *rest = text.split('\n')
    return '\n'.join([first, leak, *rest])


def test_planted_texts_are_found_and_nothing_else(data_dir, tmp_path):
    clean = write_texts(tmp_path / 'texts', 12)
    plain = prepare(make_config(text={'path': str(clean)}), tmp_path / 'plain')
    config = make_config(text={'path': str(clean)})
    config['decontamination'] = {'data_dir': str(data_dir)}
    summary = prepare(config, tmp_path / 'clean')
    assert summary['contents'] == plain['contents']
    assert all(not found['pairs'] for found in summary['decontamination']['sets'].values())

    leaks = {
        'query': f'It was shown: {CLAIM.upper()} And so on.',
        'document': ABSTRACT.replace('forty', '40').replace('over two', 'over... two'),
        'punctuation': 'a man -- is slicing a "ripe" tomato slowly!',
        'contraction': 'The dog doesn’t like\n the green ball at all',
        'short': SHORT,
    }
    planted = tmp_path / 'planted'
    planted.mkdir()
    for i, (name, leak) in enumerate(leaks.items()):
        (planted / f'{name}.txt').write_text(plant(make_document(100 + i), leak))
    config['sources']['planted'] = config['sources']['text'] | {'path': str(planted)}
    summary = prepare(config, tmp_path / 'output')
    found = summary['decontamination']['sets']
    kept = {*get_texts(tmp_path / 'output')}
    assert kept >= {*get_texts(tmp_path / 'plain')}
    assert 'contaminated' not in summary['sources']['text']['dropped']
    text = '\n'.join(x + y for x, y in kept).lower()
    assert 'cortical neurons in ageing' not in text and 'ripe' not in text
    assert 'green ball' not in text and SHORT.lower() in text
    assert found['retrieval/scifact']['texts'] == 2 and found['retrieval/scifact']['pairs'] >= 2
    assert found['sts/STSBenchmark'] == {
        'texts': 4, 'short': 1, 'searched': 3, 'queries_only': False, 'negatives': 0,
        'pairs': found['sts/STSBenchmark']['pairs'],
        'examples': found['sts/STSBenchmark']['examples'],
    }  # fmt: skip
    examples = [text for _, text in found['sts/STSBenchmark']['examples']]
    assert 'a man is slicing a ripe tomato slowly' in examples
    source = TfdsSource(path=str(tmp_path / 'output'), split='train')
    scope = {'queries_only': False}
    assert find_cleaned_sources({'a': source, 'b': object()}) == {
        'a': {
            'retrieval/scifact': {'texts': 2, 'searched': 2} | scope,
            'sts/STSBenchmark': {'texts': 4, 'searched': 3} | scope,
        }
    }
    assert 'with texts of 2 test sets were removed' in source.summary()
    source = TfdsSource(path=str(tmp_path / 'plain'), split='train')
    assert find_cleaned_sources({'a': source}) == {'a': None}
    assert source.summary().endswith('not compared with test sets')
    card = (tmp_path / 'output/card.md').read_text()
    assert '| retrieval/scifact | 2 | 0 | all texts |' in card


def test_documents_of_a_collection_may_be_kept(data_dir):
    task = benchmark_texts.find_test_sets(str(data_dir))['retrieval/scifact']
    assert [*benchmark_texts.iterate_test_texts(task)] == [CLAIM, ABSTRACT]
    assert [*benchmark_texts.iterate_test_texts(task, documents=False)] == [CLAIM]


def test_a_text_across_the_end_of_x_is_found():
    tests = index_test_texts({'set': ['one two three four five']})
    assert tests.find(hash_words('zero one two three four five six')) == {0: (1, 5)}
    assert tests.find(hash_words('one two three four six five')) == {}


def test_hard_negatives_with_a_test_text_are_removed():
    cleaner = Decontaminator(index_test_texts({'set': ['one two three four five']}))
    pair = TextPair('x', 'y', {'negatives': ['a b', 'Zero, one two three four five!', 'six']})
    assert not cleaner.is_contaminated(pair, 'a')
    assert cleaner.remove_negatives(pair, 'a').negatives == ('a b', 'six')
    assert cleaner.found['set'] == {
        'pairs': 0, 'negatives': 1, 'examples': [['a, negative 1', 'one two three four five']]
    }  # fmt: skip
    clean = pair._replace(fields={'negatives': ['a']})
    assert cleaner.remove_negatives(clean, 'a') is clean


def test_written_hard_negatives_have_no_test_text(data_dir, tmp_path):
    row = {'x': 'a question', 'y': 'an answer', 'negatives': [SENTENCES[0], 'no answer']}
    (tmp_path / 'a.jsonl').write_text(json.dumps(row))
    section = {'path': str(tmp_path / 'a.jsonl'), 'reader': 'jsonl', 'text': 'x'}
    config = make_config(a=section | {'pairs': 'fields'})
    config['decontamination'] = {'data_dir': str(data_dir)}
    config['decontamination']['documents'] = False
    config['output']['holdout'] = 0.0
    summary = prepare(config, tmp_path / 'output')
    source = TfdsSource(path=str(tmp_path / 'output'), split='train')
    assert {name: scope['queries_only'] for name, scope in source.searched_sets.items()} == {
        'retrieval/scifact': True, 'sts/STSBenchmark': False
    }  # fmt: skip
    card = (tmp_path / 'output/card.md').read_text()
    assert '| retrieval/scifact | 1 | 0 | queries only |' in card
    assert [pair.negatives for pair in read_pairs(tmp_path / 'output')] == [('no answer',)]
    assert summary['total']['dropped']['contaminated hard negative'] == 1
    assert summary['pairs'] == {'train': 1}


def test_windows_are_those_of_a_loop():
    words = hash_words('a b c d a b c')
    sums = {n: windows for n, windows in iterate_windows(words, 4)}
    multiplier = 0x9E3779B97F4A7C15
    for n, windows in sums.items():
        expected = [
            sum(int(words[i + j]) * multiplier**j for j in range(n)) % 2**64
            for i in range(len(words) - n + 1)
        ]
        assert windows.tolist() == expected
    assert sums[3][0] == sums[3][4] and len({*sums[2].tolist()}) == 4
    assert not [*iterate_windows(np.zeros(0, np.uint64), 3)]


def test_words_without_case_and_punctuation():
    assert split_normalized_words("The ﬁrst “don’t”, or: do n't!") == [
        'the', 'first', 'dont', 'or', 'dont'
    ]  # fmt: skip


def test_underscores_are_punctuation_and_unspaced_scripts_have_words():
    assert split_normalized_words('the _quick_ snake_case') == ['the', 'quick', 'snake', 'case']
    assert split_normalized_words('GPT能做，什么？') == ['gpt', *'能做什么']
    assert split_normalized_words('ひらカナ 語') == [*'ひらカナ語']
    assert split_normalized_words('ภาษาไทย') == [*'ภาษาไทย']
    assert split_normalized_words('Ünïcode _é_ 한국어 слово') == ['ünïcode', 'é', '한국어', 'слово']
    tests = index_test_texts({'set': ['锌减缓老年小鼠皮质神经元的生长。']})
    assert tests.find(
        hash_words('研究表明,锌减缓老年小鼠皮质神经元的生长;等等')
    ) and not tests.find(hash_words('研究表明,锌减缓老年大鼠皮质神经元的生长;等等'))


def test_texts_of_every_kind_of_task_are_known(data_dir):
    """A new kind of task must be added to benchmark_texts.py."""
    modules = {kind.__module__ for kind in benchmark_texts._READERS}
    assert modules == {kind.find.__module__ for kind in KINDS}
    assert benchmark_texts.iterate_test_texts(object()) is None
    assert benchmark_texts.find_test_sets(str(data_dir)).keys() == {
        'retrieval/scifact', 'sts/STSBenchmark'
    }  # fmt: skip
    assert 'codesearch/python_source' in find_tasks(None)


def test_folder_without_test_sets_is_an_error(tmp_path):
    config = make_config(text={'path': str(write_texts(tmp_path / 'texts', 2))})
    config['decontamination'] = {'data_dir': str(tmp_path)}
    with pytest.raises(UserError, match='has no test set'):
        prepare(config, tmp_path / 'output')
    config['decontamination'] = {'data_dir': str(tmp_path / 'none')}
    with pytest.raises(UserError, match='no such directory'):
        prepare(config, tmp_path / 'output2')
