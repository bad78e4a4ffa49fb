import json
from itertools import combinations

import numpy as np
import pytest
from etils import epath

from cpt_jax.evals.options import SideOptions
from cpt_jax.evals.registry import find_tasks as all_tasks
from cpt_jax.evals.registry import select
from cpt_jax.evals.run import run_tasks
from cpt_jax.evals.store.results import add_result, format_table, new_results
from cpt_jax.evals.task import Context, Result
from cpt_jax.evals.tasks.bias import (
    associations,
    effect_size,
    find_bias,
    holm,
    permutation_test,
    read_test,
    with_holm,
)
from cpt_jax.runtime.errors import UserError

TOY = {
    'targ1': ['rose', 'lily'],
    'targ2': ['wasp', 'tick'],
    'attr1': ['joy', 'love'],
    'attr2': ['filth', 'pain', 'hate'],
}
KEYS = list(TOY)


def write_test(folder, sets=TOY, name='weat1'):
    """One object over several lines, as the published files are."""
    path = folder / 'sent_bias_seat' / 'tests' / f'{name}.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {key: {'category': key.upper(), 'examples': texts} for key, texts in sets.items()},
            indent=2,
        )
    )
    return epath.Path(path)


def word_embed(texts, side):
    """A direction for each text, the same wherever it stands."""
    vectors_NxD = np.stack(
        [np.random.default_rng(list(text.encode())).standard_normal(16) for text in texts]
    ).astype(np.float32)
    return vectors_NxD / np.linalg.norm(vectors_NxD, axis=1, keepdims=True)


def find(folder, side='x'):
    return find_bias(folder and epath.Path(folder), SideOptions(side), Context())


def run(path, embed=word_embed, side='x'):
    return find(path.parents[2], side)[f'bias/{path.stem}'].run(embed)


def plain_test(sets, embed):
    """May et al. 2019, from the definition: the effect size, and p over all partitions."""
    x, y, a, b = (embed(sets[key], 'x').astype(np.float64) for key in KEYS)
    s = [np.mean([w @ v for v in a]) - np.mean([w @ v for v in b]) for w in (*x, *y)]
    d = (np.mean(s[: len(x)]) - np.mean(s[len(x) :])) / np.std(s, ddof=1)
    sums = [sum(s[i] for i in chosen) for chosen in combinations(range(len(s)), len(x))]
    return d, np.mean([total >= sums[0] for total in sums])


@pytest.mark.parametrize('half', [1, 2, 5, 8])
def test_a_task_equals_the_definition(tmp_path, half):
    sets = {
        key: [f'{key} {i}' for i in range(size)]
        for key, size in zip(KEYS, (half, half, 6, 4), strict=True)
    }
    result = run(write_test(tmp_path, sets))
    assert list(result.metrics.values()) == pytest.approx(plain_test(sets, word_embed))
    assert (
        result.metric == 'effect_size'
        and result.n == 2 * half
        and result.counted == 'target texts'
        and result.baselines == {}
    )
    assert result.settings['texts'] == dict(zip(KEYS, (half, half, 6, 4), strict=True))
    assert (
        result.settings['partitions'] == f'all {len(list(combinations(range(2 * half), half))):,}'
    )
    assert {'protocol', 'side', 'seed', 'data', 'libraries'} <= result.settings.keys()
    json.dumps(result.settings)


def test_two_targets_a_side_have_six_partitions():
    assert permutation_test(np.array([4.0, 3, 2, 1])) == (1 / 6, 6, True)
    assert permutation_test(np.array([4.0, 2, 3, 1])) == (2 / 6, 6, True)
    assert permutation_test(np.array([1.0, 2, 3, 4])) == (1.0, 6, True)
    # 4 + 1 ties with 2 + 3, and a tie counts.
    assert permutation_test(np.array([4.0, 1, 2, 3])) == (4 / 6, 6, True)
    assert permutation_test(np.array([0.1, 0.1, 0.1, 0.1])) == (1.0, 6, True)


def test_a_tie_counts_though_the_sum_is_rounded_otherwise():
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point."""
    s_T = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])
    assert (0.1 + 0.2) + 0.3 > (0.3 + 0.2) + 0.1
    thirds = [sum(chosen) for chosen in combinations([1, 2, 3, 3, 2, 1], 3)]
    assert permutation_test(s_T).p == np.mean([total >= 6 for total in thirds])
    assert permutation_test(s_T, samples=10).p > 0.3


def test_swapping_targets_or_attributes_turns_the_sign(tmp_path):
    first = run(write_test(tmp_path)).metrics
    for pair in (('targ1', 'targ2'), ('attr1', 'attr2')):
        swapped = TOY | {pair[0]: TOY[pair[1]], pair[1]: TOY[pair[0]]}
        found = run(write_test(tmp_path, swapped, 'swapped')).metrics
        assert found['effect_size'] == pytest.approx(-first['effect_size'])
        # Without ties both count the observed partition.
        assert found['p_value'] + first['p_value'] == pytest.approx(7 / 6)
    assert abs(first['effect_size']) > 0.1


def test_vectors_that_are_the_bias_itself(tmp_path):
    good = TOY['targ1'] + TOY['attr1']
    path = write_test(tmp_path, {**TOY, 'targ1': ['rose', 'lily'], 'targ2': ['wasp', 'tick']})
    result = run(
        path,
        lambda texts, side: np.array(
            [[1.0, 0] if text in good else [0, 1] for text in texts], np.float32
        ),
    )
    assert result.metrics['effect_size'] == pytest.approx(2 / np.std([1, 1, -1, -1], ddof=1))
    assert result.metrics['p_value'] == 1 / 6
    assert result.settings['positive'] == 'TARG1 nearer to ATTR1, TARG2 nearer to ATTR2'


def test_one_vector_for_all_shows_nothing(tmp_path):
    result = run(
        write_test(tmp_path), lambda texts, side: np.full((len(texts), 3), 3**-0.5, np.float32)
    )
    assert result.metrics == {'effect_size': 0.0, 'p_value': 1.0}


def test_where_there_are_many_partitions_some_are_drawn():
    s_T = np.random.default_rng(3).standard_normal(16) + np.repeat([0.4, 0], 8)
    exact, drawn = permutation_test(s_T), permutation_test(s_T, samples=10_000)
    assert (
        exact.exact
        and exact.partitions == 12_870
        and not drawn.exact
        and drawn.partitions == 10_000
    )
    assert drawn.p == pytest.approx(exact.p, abs=4 * np.sqrt(exact.p * (1 - exact.p) / 10_000))
    assert drawn == permutation_test(s_T, samples=10_000)
    # The observed one, and no other.
    assert permutation_test(np.repeat([1.0, -1], 30), samples=2_500).p == 1 / 2_500
    assert not permutation_test(np.zeros(20)).exact and permutation_test(np.zeros(18), 48_620).exact


def test_all_texts_have_one_side_and_each_is_embedded_once(tmp_path):
    calls = []
    path = write_test(
        tmp_path, {**TOY, 'targ1': ['rose', 'rose', 'joy'], 'attr1': ['joy', 'love', 'joy']}
    )
    result = run(
        path, lambda texts, side: calls.append((texts, side)) or word_embed(texts, side), 'y'
    )
    assert calls == [(['rose', 'joy', 'wasp', 'tick', 'love', 'filth', 'pain', 'hate'], 'y')]
    assert (
        result.settings['texts'] == {'targ1': 2, 'targ2': 2, 'attr1': 2, 'attr2': 3}
        and result.settings['side'] == 'y for all texts'
    )
    expected = plain_test({**TOY, 'targ1': ['rose', 'joy']}, word_embed)
    assert list(result.metrics.values()) == pytest.approx(expected)


def test_associations_and_effect_size_by_hand():
    s_T = associations(
        np.array([[1.0, 0], [0, 1.0]]), np.array([[1.0, 0]]), np.array([[0, 1.0], [1.0, 0]])
    )
    assert s_T.tolist() == [0.5, -0.5]
    assert effect_size(s_T) == pytest.approx(2**0.5)  # 1 / sqrt(0.5): ddof 1, and not 2


@pytest.mark.parametrize(
    ('p_values', 'expected'),
    [
        (
            [0.01, 0.02, 0.03, 0.04, 0.05],
            [0.05, 0.08, 0.09, 0.09, 0.09],
        ),  # p.adjust of R, method 'holm'
        ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
        ([0.5, 0.6, 0.7], [1, 1, 1]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm(p_values, expected):
    assert holm(p_values) == pytest.approx(expected)


def bias_result(p):
    return Result(
        'effect_size',
        {'effect_size': -0.534, 'p_value': p},
        16,
        {'seed': 0},
        counted='target texts',
    )


def test_the_correction_is_over_all_tests_that_stand_in_the_results():
    results = add_result(new_results('m', {}), 'other', Result('pearson', {'pearson': 0.5}, 2, {}))
    assert with_holm(results) == results
    results = with_holm(add_result(results, 'bias/a', bias_result(0.01)))
    assert results['tasks']['bias/a']['metrics']['p_holm'] == 0.01
    results = with_holm(add_result(results, 'bias/b', bias_result(0.9)))
    assert [results['tasks'][f'bias/{name}']['metrics']['p_holm'] for name in 'ab'] == [0.02, 0.9]
    assert results['tasks']['bias/a']['settings'] == {
        'main_metric': 'effect_size',
        'seed': 0,
        'holm_tests': 2,
    }
    assert (
        list(results['tasks']) == ['other', 'bias/a', 'bias/b']
        and 'p_holm' not in results['tasks']['other']['metrics']
    )
    assert [line.split()[-2:] for line in format_table(results).splitlines()[3:6]] == [
        ['-0.53', '16'],
        ['p-value', '0.01'],
        ['Holm', '0.02'],
    ]


def test_an_evaluation_writes_plain_numbers(tmp_path):
    write_test(tmp_path)
    write_test(tmp_path, {**TOY, 'targ1': TOY['targ2'], 'targ2': TOY['targ1']}, 'weat2')
    tasks = select(all_tasks(str(tmp_path)), ['bias/*'], str(tmp_path))
    results = run_tasks(word_embed, 'm', {}, tasks, epath.Path(tmp_path / 'out'))
    written = json.loads((tmp_path / 'out' / 'results.json').read_text())['tasks']
    assert written == results['tasks'] and list(written) == ['bias/weat1', 'bias/weat2']
    assert min(row['metrics']['p_holm'] for row in written.values()) == min(
        1, 2 * min(row['metrics']['p_value'] for row in written.values())
    )
    page = (tmp_path / 'out' / 'report' / 'index.html').read_text()
    assert (
        f'{written["bias/weat1"]["metrics"]["effect_size"]:.2f}</td>' in page
        and '0 of 2 with p &lt; 0.01' in page
    )
    assert 'class="track"' not in page  # a bar would say that they are fractions


def test_what_is_there_is_found(tmp_path):
    assert find(None) == {} and find(tmp_path) == {}
    with pytest.raises(
        UserError,
        match=r'bias/.: no such task.*expected in --data_dir .*: sent_bias_seat/tests/<name>.jsonl',
    ):
        select(all_tasks(str(tmp_path)), ['bias/*'], str(tmp_path))
    for name in ('weat1', 'sent-weat1', 'heilman_1+3-'):
        write_test(tmp_path, name=name)
    assert list(find(tmp_path)) == [
        'bias/heilman_1+3-',
        'bias/sent-weat1',
        'bias/weat1',
    ]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            '{"targ1":\n oops',
            r'weat1.jsonl:2: not JSON .*; the whole file is one object with targ1, targ2, attr1, '
            r'attr2',
        ),
        ('[1]', r'weat1.jsonl: no targ1, targ2, attr1, attr2; the whole file is one object'),
        ('{"targ1": {}, "targ2": {}, "attr1": {}}', r'weat1.jsonl: no attr2;'),
        (
            '{"targ1": [], "targ2": {}, "attr1": {}, "attr2": {}}',
            r'weat1.jsonl: targ1: \{"category": "...", "examples": ',
        ),
    ],
)
def test_files_that_are_no_tests(tmp_path, content, message):
    path = write_test(tmp_path)
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        run(path)


@pytest.mark.parametrize(
    ('sets', 'message'),
    [
        (
            {'targ1': ['a', 'b', 'c']},
            r'weat1.jsonl: targ1 has 3 texts and targ2 2: there must be as many',
        ),
        ({'targ2': ['a', 'a']}, r'weat1.jsonl: targ1 has 2 texts and targ2 1'),
        ({'attr1': []}, r'weat1.jsonl: attr1: .* is expected, with one text or more'),
        ({'attr2': ['a', 3]}, r'weat1.jsonl: attr2: the example 3 is no text'),
        ({'attr2': ['a', ' ']}, r"weat1.jsonl: attr2: the example ' ' is no text"),
    ],
)
def test_sets_that_cannot_be_used(tmp_path, sets, message):
    with pytest.raises(UserError, match=message):
        read_test(write_test(tmp_path, {**TOY, **sets}))


def test_a_file_that_is_not_utf_8(tmp_path):
    path = write_test(tmp_path)
    path.write_bytes(b'{"targ1": "\xe9"}')
    with pytest.raises(UserError, match=r'weat1.jsonl: not UTF-8'):
        read_test(path)
