import json
from itertools import combinations

import numpy as np
import pytest
from etils import epath

from cpt_jax.evals.options import SideOptions
from cpt_jax.evals.registry import find_tasks as all_tasks
from cpt_jax.evals.registry import select_tasks
from cpt_jax.evals.run import run_tasks
from cpt_jax.evals.store.results import add_result, format_table, make_empty_results
from cpt_jax.evals.task import Context, Result
from cpt_jax.evals.tasks.bias import (
    add_holm,
    compute_associations,
    compute_effect_size,
    correct_with_holm,
    find_bias,
    read_test,
    run_permutation_test,
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
    """Writes one object over several lines, as in the published files."""
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
    """Returns a random unit vector for each text, which depends only on the text."""
    vectors_NxD = np.stack(
        [np.random.default_rng(list(text.encode())).standard_normal(16) for text in texts]
    ).astype(np.float32)
    return vectors_NxD / np.linalg.norm(vectors_NxD, axis=1, keepdims=True)


def find(folder, side='x'):
    return find_bias(folder and epath.Path(folder), SideOptions(side), Context())


def run(path, embed=word_embed, side='x'):
    return find(path.parents[2], side)[f'bias/{path.stem}'].run(embed)


def compute_reference(sets, embed):
    """Returns the effect size and p over all partitions, as defined by May et al. 2019."""
    x, y, a, b = (embed(sets[key], 'x').astype(np.float64) for key in KEYS)
    s = [np.mean([w @ v for v in a]) - np.mean([w @ v for v in b]) for w in (*x, *y)]
    d = (np.mean(s[: len(x)]) - np.mean(s[len(x) :])) / np.std(s, ddof=1)
    sums = [sum(s[i] for i in chosen) for chosen in combinations(range(len(s)), len(x))]
    return d, np.mean([total >= sums[0] for total in sums])


@pytest.mark.parametrize('half', [1, 2, 5, 8])
def test_task_matches_the_definition(tmp_path, half):
    sets = {
        key: [f'{key} {i}' for i in range(size)]
        for key, size in zip(KEYS, (half, half, 6, 4), strict=True)
    }
    result = run(write_test(tmp_path, sets))
    assert list(result.metrics.values()) == pytest.approx(compute_reference(sets, word_embed))
    assert result.metric == 'effect_size'
    assert result.n == 2 * half
    assert result.counted == 'target texts'
    assert result.baselines == {}
    assert result.settings['texts'] == dict(zip(KEYS, (half, half, 6, 4), strict=True))
    assert (
        result.settings['partitions'] == f'all {len(list(combinations(range(2 * half), half))):,}'
    )
    assert {'protocol', 'side', 'seed', 'data', 'libraries'} <= result.settings.keys()
    json.dumps(result.settings)


def test_four_targets_have_six_partitions():
    assert run_permutation_test(np.array([4.0, 3, 2, 1])) == (1 / 6, 6, True)
    assert run_permutation_test(np.array([4.0, 2, 3, 1])) == (2 / 6, 6, True)
    assert run_permutation_test(np.array([1.0, 2, 3, 4])) == (1.0, 6, True)
    # 4 + 1 ties with 2 + 3, and a tie counts.
    assert run_permutation_test(np.array([4.0, 1, 2, 3])) == (4 / 6, 6, True)
    assert run_permutation_test(np.array([0.1, 0.1, 0.1, 0.1])) == (1.0, 6, True)


def test_ties_count_despite_rounding():
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point."""
    s_U = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])
    assert (0.1 + 0.2) + 0.3 > (0.3 + 0.2) + 0.1
    thirds = [sum(chosen) for chosen in combinations([1, 2, 3, 3, 2, 1], 3)]
    assert run_permutation_test(s_U).p == np.mean([total >= 6 for total in thirds])
    assert run_permutation_test(s_U, samples=10).p > 0.3


def test_swapping_targets_or_attributes_flips_the_sign(tmp_path):
    first = run(write_test(tmp_path)).metrics
    for pair in (('targ1', 'targ2'), ('attr1', 'attr2')):
        swapped = TOY | {pair[0]: TOY[pair[1]], pair[1]: TOY[pair[0]]}
        found = run(write_test(tmp_path, swapped, 'swapped')).metrics
        assert found['effect_size'] == pytest.approx(-first['effect_size'])
        # Without ties, only the observed partition is counted in both.
        assert found['p_value'] + first['p_value'] == pytest.approx(7 / 6)
    assert abs(first['effect_size']) > 0.1


def test_perfectly_biased_vectors_have_the_largest_effect(tmp_path):
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


def test_equal_vectors_have_no_effect(tmp_path):
    result = run(
        write_test(tmp_path), lambda texts, side: np.full((len(texts), 3), 3**-0.5, np.float32)
    )
    assert result.metrics == {'effect_size': 0.0, 'p_value': 1.0}


def test_large_tests_sample_partitions():
    s_U = np.random.default_rng(3).standard_normal(16) + np.repeat([0.4, 0], 8)
    exact, drawn = run_permutation_test(s_U), run_permutation_test(s_U, samples=10_000)
    assert exact.exact
    assert exact.partitions == 12_870
    assert not drawn.exact
    assert drawn.partitions == 10_000
    assert drawn.p == pytest.approx(exact.p, abs=4 * np.sqrt(exact.p * (1 - exact.p) / 10_000))
    assert drawn == run_permutation_test(s_U, samples=10_000)
    # Only the observed partition is counted.
    assert run_permutation_test(np.repeat([1.0, -1], 30), samples=2_500).p == 1 / 2_500
    assert not run_permutation_test(np.zeros(20)).exact
    assert run_permutation_test(np.zeros(18), 48_620).exact


def test_distinct_texts_are_embedded_once_with_one_side(tmp_path):
    calls = []
    path = write_test(
        tmp_path, {**TOY, 'targ1': ['rose', 'rose', 'joy'], 'attr1': ['joy', 'love', 'joy']}
    )
    result = run(
        path, lambda texts, side: calls.append((texts, side)) or word_embed(texts, side), 'y'
    )
    assert calls == [(['rose', 'joy', 'wasp', 'tick', 'love', 'filth', 'pain', 'hate'], 'y')]
    assert result.settings['texts'] == {'targ1': 2, 'targ2': 2, 'attr1': 2, 'attr2': 3}
    assert result.settings['side'] == 'y for all texts'
    expected = compute_reference({**TOY, 'targ1': ['rose', 'joy']}, word_embed)
    assert list(result.metrics.values()) == pytest.approx(expected)


def test_associations_and_effect_size_match_hand_computation():
    s_U = compute_associations(
        np.array([[1.0, 0], [0, 1.0]]), np.array([[1.0, 0]]), np.array([[0, 1.0], [1.0, 0]])
    )
    assert s_U.tolist() == [0.5, -0.5]
    assert compute_effect_size(s_U) == pytest.approx(2**0.5)  # 1 / sqrt(0.5): ddof 1, and not 2


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
def test_holm_correction_matches_r(p_values, expected):
    assert correct_with_holm(p_values) == pytest.approx(expected)


def bias_result(p):
    return Result(
        'effect_size',
        {'effect_size': -0.534, 'p_value': p},
        16,
        {'seed': 0},
        counted='target texts',
    )


def test_holm_correction_covers_all_tests_in_the_results():
    results = add_result(
        make_empty_results('m', {}), 'other', Result('pearson', {'pearson': 0.5}, 2, {})
    )
    assert add_holm(results) == results
    results = add_holm(add_result(results, 'bias/a', bias_result(0.01)))
    assert results['tasks']['bias/a']['metrics']['p_holm'] == 0.01
    results = add_holm(add_result(results, 'bias/b', bias_result(0.9)))
    assert [results['tasks'][f'bias/{name}']['metrics']['p_holm'] for name in 'ab'] == [0.02, 0.9]
    assert results['tasks']['bias/a']['settings'] == {
        'main_metric': 'effect_size',
        'seed': 0,
        'holm_tests': 2,
    }
    assert list(results['tasks']) == ['other', 'bias/a', 'bias/b']
    assert 'p_holm' not in results['tasks']['other']['metrics']
    assert [line.split()[-2:] for line in format_table(results).splitlines()[3:6]] == [
        ['-0.53', '16'],
        ['p-value', '0.01'],
        ['Holm', '0.02'],
    ]


def test_evaluation_writes_results_and_report(tmp_path):
    write_test(tmp_path)
    write_test(tmp_path, {**TOY, 'targ1': TOY['targ2'], 'targ2': TOY['targ1']}, 'weat2')
    tasks = select_tasks(all_tasks(str(tmp_path)), ['bias/*'], str(tmp_path))
    results = run_tasks(word_embed, 'm', {}, tasks, epath.Path(tmp_path / 'out'))
    written = json.loads((tmp_path / 'out' / 'results.json').read_text())['tasks']
    assert written == results['tasks'] and list(written) == ['bias/weat1', 'bias/weat2']
    assert min(row['metrics']['p_holm'] for row in written.values()) == min(
        1, 2 * min(row['metrics']['p_value'] for row in written.values())
    )
    page = (tmp_path / 'out' / 'report' / 'index.html').read_text()
    assert f'{written["bias/weat1"]["metrics"]["effect_size"]:.2f}</td>' in page
    assert '0 of 2 tests with p &lt; 0.01' in page
    assert 'class="track"' not in page  # effect sizes are not fractions, so they have no bars


def test_available_tests_are_found(tmp_path):
    assert find(None) == {} and find(tmp_path) == {}
    with pytest.raises(
        UserError,
        match=r'bias/.: no such task.*expected in --data_dir .*: sent_bias_seat/tests/<name>.jsonl',
    ):
        select_tasks(all_tasks(str(tmp_path)), ['bias/*'], str(tmp_path))
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
def test_invalid_files_are_reported(tmp_path, content, message):
    path = write_test(tmp_path)
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        run(path)


@pytest.mark.parametrize(
    ('sets', 'message'),
    [
        (
            {'targ1': ['a', 'b', 'c']},
            r'weat1.jsonl: targ1 has 3 texts and targ2 has 2; the permutation test needs the same',
        ),
        ({'targ2': ['a', 'a']}, r'weat1.jsonl: targ1 has 2 texts and targ2 has 1'),
        ({'attr1': []}, r'weat1.jsonl: attr1: .* is expected, with one text or more'),
        ({'attr2': ['a', 3]}, r'weat1.jsonl: attr2: the example 3 is not a text'),
        ({'attr2': ['a', ' ']}, r"weat1.jsonl: attr2: the example ' ' is not a text"),
    ],
)
def test_invalid_concepts_are_reported(tmp_path, sets, message):
    with pytest.raises(UserError, match=message):
        read_test(write_test(tmp_path, {**TOY, **sets}))


def test_file_that_is_not_utf8_is_reported(tmp_path):
    path = write_test(tmp_path)
    path.write_bytes(b'{"targ1": "\xe9"}')
    with pytest.raises(UserError, match=r'weat1.jsonl: not UTF-8'):
        read_test(path)
