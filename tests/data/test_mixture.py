from collections import Counter

import grain
import numpy as np
import pytest

from cpt_jax.data.mixture import (
    KINDS,
    count_epochs,
    fix_source_rules,
    get_source_arguments,
    get_source_classes,
    make_batches,
    make_sources,
)
from cpt_jax.runtime.errors import UserError


class Numbers:
    """A source with n pairs, or with documents of the given numbers of pairs, but without texts."""

    def __init__(self, n=0, documents=None):
        self.documents = None if documents is None else np.cumsum([0, *documents])
        self._n = n if documents is None else int(self.documents[-1])

    def __len__(self):
        return self._n


def make_two_sources():
    return {'a': Numbers(700), 'b': Numbers(documents=[3, 1, 7, 2, 5, 1, 4, 6, 2, 9] * 20)}


TWO_WEIGHTS = {'a': 0.5, 'b': 0.25}


def list_batches(data, steps):
    return [(data[step].source, data[step].pairs.tolist()) for step in steps]


def test_batch_has_source_and_int64_pairs():
    batch = make_batches({'a': Numbers(10)}, {'a': 1}, 0, 4)[3]
    assert batch.source == 0
    assert batch.pairs.dtype == np.int64
    assert batch.pairs.shape == (4,)


def test_epochs_are_those_of_the_batches():
    sources = make_two_sources()
    steps = 400
    batches = make_batches(sources, TWO_WEIGHTS, 0, 8)
    read = Counter(batches[step].source for step in range(steps))
    items = {'a': 700, 'b': 200}  # pairs, and one pair of each document
    found = count_epochs(sources, TWO_WEIGHTS, steps, 8)
    for i, (name, size) in enumerate(items.items()):
        assert found[name] == pytest.approx(read[i] / (size // 8), rel=0.01)
    assert found['a'] > 3


def test_batches_depend_on_the_seed():
    first, again, other = (
        list_batches(make_batches(make_two_sources(), TWO_WEIGHTS, seed, 8), range(60))
        for seed in (3, 3, 4)
    )
    assert first == again
    assert [source for source, _ in first] == [source for source, _ in other]
    assert not any(a == b for a, b in zip(first, other, strict=True))


def test_batches_equal_those_of_earlier_versions():
    """A run that is resumed with another version of grain or of this code must read the same
    batches. If this test fails, tell users.
    """
    data = make_batches(make_two_sources(), TWO_WEIGHTS, 3, 8)
    assert list_batches(data, (0, 2, 10**9)) == [
        (0, [435, 608, 161, 337, 275, 315, 281, 529]),
        (1, [563, 446, 498, 102, 203, 604, 460, 469]),
        (0, [353, 413, 502, 444, 630, 412, 219, 26]),
    ]


def test_adjacent_seeds_give_different_orders_in_all_epochs():
    """grain shuffles epoch e with seed + e. Without our hash of the seed, the first epoch of seed 3
    would be the second epoch of seed 2.
    """
    orders = {
        tuple(make_batches({'a': Numbers(20)}, {'a': 1}, seed, 20)[epoch].pairs)
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


@pytest.mark.parametrize('n, batch_pairs', [(70, 8), (64, 8), (8, 8), (9, 2), (1000, 999)])
def test_epochs_have_distinct_pairs_and_different_orders(n, batch_pairs):
    """An epoch has as many full batches as fit."""
    data = make_batches({'a': Numbers(n)}, {'a': 1}, 0, batch_pairs)
    per_epoch = n // batch_pairs
    orders = set()
    left_out = Counter()
    for epoch in range(6):
        pairs = np.concatenate([data[epoch * per_epoch + i].pairs for i in range(per_epoch)])
        assert len(pairs) == len(set(pairs.tolist())) == per_epoch * batch_pairs
        assert set(pairs.tolist()) <= set(range(n))
        orders.add(tuple(pairs))
        left_out.update(set(range(n)) - set(pairs.tolist()))
    assert len(orders) == 6
    assert n % batch_pairs == 0 or max(left_out.values()) < 6


def test_batches_have_one_pair_per_document_and_visit_all_pairs():
    """A document with n pairs has each of them once in n epochs."""
    sizes = [3, 1, 7, 2, 5, 1, 4, 6, 2, 9]
    source = Numbers(documents=sizes)
    data = make_batches({'b': source}, {'b': 1}, 5, 5)
    document_of = np.repeat(np.arange(10), sizes)
    for start in range(0, 40, 2):
        epoch = np.concatenate([data[start].pairs, data[start + 1].pairs])
        assert sorted(document_of[epoch]) == list(range(10))
    for document, size in enumerate(sizes):
        taken = [
            pair
            for step in range(2 * size)
            for pair in data[step].pairs
            if document_of[pair] == document
        ]
        assert sorted(taken) == list(
            range(source.documents[document], source.documents[document + 1])
        )


def test_documents_start_at_different_pairs():
    source = Numbers(documents=[100] * 1000)
    first = make_batches({'b': source}, {'b': 1}, 0, 1000)[0].pairs % 100
    counts = np.bincount(first, minlength=100)
    assert (counts > 0).all()
    assert counts.max() < 30
    other = make_batches({'b': source}, {'b': 1}, 1, 1000)[0].pairs
    assert not np.array_equal(
        np.sort(other), np.sort(make_batches({'b': source}, {'b': 1}, 0, 1000)[0].pairs)
    )


def test_sources_keep_their_order_in_a_mixture():
    data = make_batches(make_two_sources(), TWO_WEIGHTS, 3, 8)
    for index, name in enumerate(make_two_sources()):
        single = make_batches({name: make_two_sources()[name]}, {name: 1}, 3, 8)
        mixed = [data[step].pairs.tolist() for step in range(90) if data[step].source == index]
        assert mixed == [single[i].pairs.tolist() for i in range(len(mixed))]
        assert len(mixed) > 20


@pytest.mark.parametrize(
    'weights', [(1, 1), (0.7, 0.3), (0.07, 0.93), (3, 1, 6), (1e-3, 1), (0.333, 0.999, 0.5)]
)
def test_weights_are_respected_when_sources_repeat(weights):
    names = 'abc'[: len(weights)]
    data = make_batches(
        {name: Numbers(2000) for name in names}, dict(zip(names, weights, strict=True)), 0, 10
    )
    counts = np.bincount([data[step].source for step in range(1000)], minlength=len(names))
    expected = 1000 * np.array(weights) / sum(weights)
    np.testing.assert_allclose(counts, expected, rtol=0.01, atol=1)


def test_sources_alternate_evenly():
    data = make_batches({'a': Numbers(2000), 'b': Numbers(2000)}, {'a': 3, 'b': 1}, 0, 10)
    steps_of_b = [step for step in range(400) if data[step].source == 1]
    assert set(np.diff(steps_of_b)) == {4}


def test_iteration_with_threads_equals_indexing():
    data = make_batches(make_two_sources(), TWO_WEIGHTS, 3, 8)
    iterator = iter(
        data[17:].to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=16))
    )
    prefetched = [next(iterator) for _ in range(80)]
    assert [(batch.source, batch.pairs.tolist()) for batch in prefetched] == list_batches(
        data, range(17, 97)
    )


def test_late_steps_can_be_indexed_directly():
    data = make_batches({'a': Numbers(2**31)}, {'a': 1}, 0, 8)
    assert len(set(data[10**15].pairs.tolist())) == 8


@pytest.mark.parametrize(
    'source, message',
    [
        (
            Numbers(7),
            'data.sources.a has 7 pairs, fewer than train.batch_pairs=8: lower '
            'train.batch_pairs or add data',
        ),
        (
            Numbers(documents=[100] * 7),
            'data.sources.a has 7 documents .*separator.*fewer than train.batch_pairs=8',
        ),
    ],
)
def test_source_smaller_than_a_batch_is_refused(source, message):
    with pytest.raises(UserError, match=message):
        make_batches({'a': source}, {'a': 1}, 0, 8)


class WordTokenizer:
    fingerprint = 'words'

    def count(self, texts):
        return [len(text.split()) for text in texts]


@pytest.fixture
def sections(tmp_path):
    (tmp_path / 'rows.jsonl').write_text(
        ''.join(f'{{"q": "x {i}", "y": "y {i}"}}\n' for i in range(40))
    )
    (tmp_path / 'a.txt').write_text('Some words make a sentence. ' * 40)
    return {
        'rows': {
            'kind': 'jsonl',
            'weight': 2,
            'path': str(tmp_path / 'rows.jsonl'),
            'x': 'q',
            'holdout': 0.25,
        },
        'prose': {
            'kind': 'text',
            'weight': 1,
            'path': str(tmp_path / 'a.txt'),
            'piece_tokens': 20,
            'min_tokens': 5,
        },
    }


def test_new_run_stores_todays_rules_and_an_earlier_run_keeps_its_own(sections):
    def rules(sections, stored):
        fixed = fix_source_rules(sections, stored)
        return fixed['rows'].get('rules'), fixed['prose'].get('rules')

    assert rules(sections, None) == (2, None)  # a source of texts has no rows
    assert rules(sections, sections) == (1, None)  # begun before the key existed
    stored = fix_source_rules(sections, None)
    assert rules(sections, stored) == (2, None)
    assert rules({**sections, 'rows': {**sections['rows'], 'rules': 1}}, stored) == (1, None)
    assert 'rules' not in sections['rows']


def test_sources_and_weights_are_made_from_sections(sections):
    sources, weights = make_sources(sections, 'train', WordTokenizer())
    assert list(sources) == ['prose', 'rows']
    assert weights == {'prose': 1.0, 'rows': 2.0}
    assert sources['rows'][0].x.startswith('x ')
    assert sources['prose'][0].x == ' '.join(['Some words make a sentence.'] * 3)
    assert sections['rows']['kind'] == 'jsonl'  # the config is not modified


@pytest.mark.parametrize('verify', [False, True])
def test_verification_reads_all_files(sections, monkeypatch, verify):
    asked = []
    monkeypatch.setattr(
        'cpt_jax.data.files.compute_file_stamp', lambda path, verify: asked.append(verify) or ''
    )
    make_sources(sections, 'train', WordTokenizer(), verify=verify)
    assert asked == [verify] * 2


def test_heldout_omits_sources_without_held_out_pairs(sections):
    heldout, weights = make_sources(sections, 'heldout', WordTokenizer())
    train, _ = make_sources(sections, 'train', WordTokenizer())
    assert list(heldout) == list(weights) == ['rows']
    assert 0 < len(heldout['rows']) == 40 - len(train['rows'])


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'kind': 'xml'},
            "^data.sources.rows.kind is 'xml' and must be one of python_source, jsonl, csv, tfds, "
            'text$',
        ),
        ({'kind': None}, '^data.sources.rows.kind is None and must be'),
        (
            {'pth': 'a'},
            '^unknown config key data.sources.rows.pth: data.sources.rows has path, x, y, '
            'negatives',
        ),
        ({'split': 'train'}, '^unknown config key data.sources.rows.split'),
        ({'tokenizer': 1}, '^unknown config key data.sources.rows.tokenizer'),
        ({'verify': True}, '^unknown config key data.sources.rows.verify'),
        ({'path': '/nowhere'}, "^data.sources.rows: path: '/nowhere' is not a file"),
        ({'weight': 0}, '^data.sources.rows.weight is 0 and must be above 0'),
        ({'weight': -1.5}, '^data.sources.rows.weight is -1.5'),
        ({'weight': float('nan')}, '^data.sources.rows.weight is nan'),
        ({'weight': 'much'}, "^data.sources.rows.weight is 'much'"),
        ({'prompt_x': 3}, '^data.sources.rows.prompt_x=3: must be a text'),
        ({'max_chars': 1e3}, '^data.sources.rows.max_chars=1000.0: must be an integer'),
        ({'max_bad_share': 2.0}, '^data.sources.rows: max_bad_share=2: must be a fraction'),
    ],
)
def test_errors_in_sections_contain_the_key(sections, change, message):
    sections['rows'].update(change)
    with pytest.raises(UserError, match=message):
        make_sources(sections, 'train', WordTokenizer())


@pytest.mark.parametrize('kind', KINDS)
def test_source_arguments_are_those_that_a_config_may_set(kind):
    arguments = get_source_arguments(kind)
    assert not {'split', 'tokenizer', 'kind', 'weight', 'self'} & arguments.keys()
    assert 'holdout' in arguments or kind == 'tfds'


def test_source_classes_are_found_by_section(sections):
    assert get_source_classes(sections) == {
        'data.sources.prose': KINDS['text'],
        'data.sources.rows': KINDS['jsonl'],
    }
    assert get_source_classes({'a': {'kind': 'xml'}, 'b': {}}) == {}


def test_error_in_a_source_shows_how_to_set_its_arguments(sections):
    sections['rows']['path'] = '/nowhere'
    with pytest.raises(UserError, match=r'--config\.data\.sources\.rows\.NAME=VALUE\)$'):
        make_sources(sections, 'train', WordTokenizer())


@pytest.mark.parametrize('key', ['kind', 'weight', 'path'])
def test_missing_key_is_in_the_error(sections, key):
    del sections['rows'][key]
    with pytest.raises(UserError, match=f'^(config key )?data.sources.rows.{key} is '):
        make_sources(sections, 'train', WordTokenizer())
