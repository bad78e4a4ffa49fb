import json

import numpy as np
import pytest
import scipy.stats
from etils import epath

from cpt_jax.evals.registry import find_tasks as all_tasks
from cpt_jax.evals.registry import select_tasks
from cpt_jax.evals.store.results import add_result, format_table, make_empty_results
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks.sts import YEARS, SimilarityOptions, find_similarity, score_pairs
from cpt_jax.runtime.errors import UserError

HEADER = 'pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\r\n'


def write_data(folder, golds, year='STS13'):
    """Writes one year of STS. Every text ends with its own number, so an embedding function can be
    a table. `golds` is subset -> scores; '' means no score.
    """
    home = folder / 'senteval' / 'STS' / f'{year}-en-test'
    home.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, scores in golds.items():
        lines = [f'text {i} \ttext  {i + 1}\n' for i in range(first, first + 2 * len(scores), 2)]
        (home / f'STS.input.{name}.txt').write_text(''.join(lines))
        (home / f'STS.gs.{name}.txt').write_text(''.join(f'{gold}\n' for gold in scores))
        first += 2 * len(scores)
    return home


def write_benchmark(folder, rows):
    path = folder / 'senteval' / 'STS' / 'STSBenchmark' / 'sts-test.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'genre\tfile\tyear\t{i}\t{row}\n' for i, row in enumerate(rows)))
    return path


def write_sick(folder, content):
    path = folder / 'senteval' / 'SICK' / 'SICK_test_annotated.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def random_golds(seed, sizes):
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 26, size) / 5
        for name, size in zip(YEARS['STS13'], sizes, strict=True)
    }


def make_number_embed(seed=0):
    """Returns an embedding function with a unit vector for each number at the end of a text. It
    records its calls.
    """
    vectors_NxD = np.random.default_rng(seed).standard_normal((500, 8)).astype(np.float32)
    vectors_NxD /= np.linalg.norm(vectors_NxD, axis=1, keepdims=True)

    def embed(texts, side):
        embed.calls.append((list(texts), side))
        return vectors_NxD[[int(text.split()[-1]) for text in texts]]

    embed.vectors_NxD, embed.calls = vectors_NxD, []
    return embed


def find(folder, **options):
    return find_similarity(folder and epath.Path(folder), SimilarityOptions(**options), Context())


def task(folder, name, side='x'):
    return find(folder, symmetric_side=side)[f'sts/{name}']


def test_year_matches_the_definitions(tmp_path):
    golds = random_golds(0, (20, 35, 50))
    write_data(tmp_path, golds)
    embed = make_number_embed()
    result = task(tmp_path, 'STS13').run(embed)

    cosines = (embed.vectors_NxD[:210:2].astype(np.float64) * embed.vectors_NxD[1:210:2]).sum(
        axis=1
    )
    parts, scores = np.split(cosines, [20, 55]), list(golds.values())
    rhos = [scipy.stats.spearmanr(*pair).statistic for pair in zip(parts, scores, strict=True)]
    every = scipy.stats.spearmanr(cosines, np.concatenate(scores)).statistic
    r = np.corrcoef(cosines, np.concatenate(scores))[0, 1]
    expected = {
        'spearman': every,
        'spearman_mean': sum(rhos) / 3,
        'spearman_wmean': np.dot(rhos, [20, 35, 50]) / 105,
        'pearson': r,
    }
    assert result.metrics == pytest.approx(expected, abs=1e-6)
    assert list(result.metrics) == list(expected)
    assert result.main_score == result.metrics['spearman']
    assert result.n == 105
    assert result.counted == 'pairs'
    assert result.baselines == {}
    assert result.examples == []
    assert result.settings['pairs'] == dict(zip(YEARS['STS13'], [20, 35, 50], strict=True))
    assert {'protocol', 'data', 'libraries', 'similarity', 'side'} <= result.settings.keys()
    json.dumps(result.settings)


def test_scores_are_cosines_for_vectors_of_any_length(tmp_path):
    write_data(tmp_path, random_golds(0, (20, 35, 50)))
    embed = make_number_embed()
    lengths = np.random.default_rng(1).uniform(0.5, 2, len(embed.vectors_NxD))[:, None]

    def embed_scaled(texts, side):
        return (lengths * embed.vectors_NxD)[[int(text.split()[-1]) for text in texts]]

    metrics = task(tmp_path, 'STS13').run(embed).metrics
    assert task(tmp_path, 'STS13').run(embed_scaled).metrics == pytest.approx(metrics, abs=1e-6)


def test_correlation_over_all_pairs_is_not_the_mean_of_subsets():
    """The order is right in each subset, but not over all pairs."""
    cosines, golds = (
        [np.array([0.1, 0.2, 0.3]), np.array([0.6, 0.7, 0.8])],
        [np.array([3.0, 4, 5]), np.array([0.0, 1, 2])],
    )
    metrics = score_pairs(cosines, golds)
    assert metrics['spearman_mean'] == metrics['spearman_wmean'] == pytest.approx(1)
    assert metrics['spearman'] == pytest.approx(
        scipy.stats.spearmanr(range(6), [3, 4, 5, 0, 1, 2]).statistic
    )
    assert metrics['spearman'] < -0.5


def test_pairs_without_a_score_are_skipped(tmp_path):
    golds = {name: ['', 1, ' ', 3, 2.5, ''] for name in YEARS['STS13']}
    write_data(tmp_path, golds)
    embed = make_number_embed()
    result = task(tmp_path, 'STS13').run(embed)
    assert result.n == 9 and set(result.settings['pairs'].values()) == {3}
    # The texts of the scored pairs, with single spaces.
    assert embed.calls[0][0][:6] == ['text 2', 'text 3', 'text 6', 'text 7', 'text 8', 'text 9']
    cosines = [
        embed.vectors_NxD[2 * i] @ embed.vectors_NxD[2 * i + 1]
        for start in (0, 6, 12)
        for i in (start + 1, start + 3, start + 4)
    ]
    assert result.metrics['spearman'] == pytest.approx(
        scipy.stats.spearmanr(cosines, [1, 3, 2.5] * 3).statistic
    )


def test_distinct_texts_are_embedded_once_with_one_side(tmp_path):
    write_benchmark(tmp_path, ['1.0\ta 1\ta 2', '2.0\ta 2\ta 1', '3\ta 3\ta 3\tlicence\tsource'])
    for side in 'xy':
        embed = make_number_embed()
        result = task(tmp_path, 'STSBenchmark', side).run(embed)
        assert embed.calls == [(['a 1', 'a 2', 'a 3'], side)]
        assert result.settings['side'].startswith(f'{side} ') and result.n == 3
    assert list(result.metrics) == ['spearman', 'pearson']


def test_sick_is_parsed_and_its_errors_are_reported(tmp_path):
    path = write_sick(
        tmp_path, HEADER + '1\ta 1\ta 2\t1.5\tNEUTRAL\r\n2\ta 3\ta 4\t4\tENTAILMENT\r\n'
    )
    embed = make_number_embed()
    result = task(tmp_path, 'SICK-R').run(embed)
    assert result.n == 2 and abs(result.metrics['spearman']) == pytest.approx(1)
    assert embed.calls[0][0] == ['a 1', 'a 2', 'a 3', 'a 4']
    path.write_text('1\ta 1\ta 2\t1.5\tNEUTRAL\n')
    with pytest.raises(
        UserError, match=r'SICK_test_annotated.txt:1: a header with pair_ID, sentence_A'
    ):
        task(tmp_path, 'SICK-R').run(embed)
    path.write_text('')
    with pytest.raises(UserError, match=r'SICK_test_annotated.txt:1: a header'):
        task(tmp_path, 'SICK-R').run(embed)
    path.write_text(HEADER + '1\ta 1\ta 2\n')
    with pytest.raises(
        UserError,
        match=r'SICK_test_annotated.txt:2: the score must be a number, not the end of the line',
    ):
        task(tmp_path, 'SICK-R').run(embed)


def test_dev_split_exists_only_for_some_sets(tmp_path):
    write_data(tmp_path, random_golds(0, (3, 3, 3)))
    path = write_benchmark(tmp_path, ['1.0\ta 1\ta 2', '2.0\ta 2\ta 1'])
    path.with_name('sts-dev.csv').write_text('g\tf\ty\t1\t1.0\ta 5\ta 6\ng\tf\ty\t2\t2\ta 7\ta 8\n')
    write_sick(tmp_path, HEADER).with_name('SICK_trial.txt').write_bytes(
        (HEADER + '1\ta 1\ta 2\t1.5\tN\r\n2\ta 3\ta 4\t4\tE\r\n').encode()
    )
    dev = find(tmp_path, split='dev')
    assert dev.keys() == {'sts/STSBenchmark', 'sts/SICK-R'}
    assert not find(tmp_path, split='train')
    embed = make_number_embed()
    found = {name: one.run(embed).settings for name, one in dev.items()}
    assert embed.calls[0][0] == ['a 5', 'a 6', 'a 7', 'a 8']
    assert {(row['split'], *row['pairs']) for row in found.values()} == {('dev', 'dev')}


def test_oracle_inverse_and_equal_vectors_have_the_expected_scores(tmp_path):
    rows = [f'{gold}\ta {0}\tb {gold}' for gold in range(5)]
    write_benchmark(tmp_path, rows)
    angles = np.linspace(np.pi / 2, 0, 5)
    table_NxD = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def oracle(texts, side):
        return np.stack(
            [table_NxD[4] if text[0] == 'a' else table_NxD[int(text[2:])] for text in texts]
        )

    assert task(tmp_path, 'STSBenchmark').run(oracle).metrics['spearman'] == pytest.approx(1)
    liar = task(tmp_path, 'STSBenchmark').run(
        lambda texts, side: oracle(texts, side) * [[-1 if text[0] == 'a' else 1] for text in texts]
    )
    assert liar.metrics['spearman'] == pytest.approx(-1)
    same = task(tmp_path, 'STSBenchmark').run(
        lambda texts, side: np.ones((len(texts), 3), np.float32)
    )
    assert same.metrics == {'spearman': 0.0, 'pearson': 0.0}
    table = format_table(add_result(make_empty_results('m', {}), 'sts/STSBenchmark', liar))
    assert table.splitlines()[2].split() == [
        *('sts/STSBenchmark', 'Spearman', '-100.00'),
        *('-100.00', 'to', '-100.00', '5'),
    ]


def test_available_sets_are_found(tmp_path):
    assert find(None) == {} and find(tmp_path) == {}
    write_sick(tmp_path, HEADER)
    write_benchmark(tmp_path, [])
    write_data(tmp_path, random_golds(0, (2, 2, 2)))
    assert list(find(tmp_path)) == ['sts/STS13', 'sts/STSBenchmark', 'sts/SICK-R']
    assert [
        task.side
        for task in select_tasks(
            all_tasks(str(tmp_path), symmetric_side='y'), ['sts/*'], str(tmp_path)
        )
    ] == ['y'] * 3
    with pytest.raises(
        UserError,
        match=r'sts/STS12: no such task.*expected in --data_dir .*: senteval/STS/STS12-en-test/',
    ):
        select_tasks(all_tasks(str(tmp_path)), ['sts/STS12'], str(tmp_path))


def test_missing_subset_is_reported(tmp_path):
    home = write_data(tmp_path, random_golds(0, (5, 5, 5)))
    (home / 'STS.gs.FNWN.txt').unlink()
    with pytest.raises(
        UserError, match=r'STS13-en-test: no STS.gs.FNWN.txt; expected in --data_dir: senteval/STS/'
    ):
        task(tmp_path, 'STS13').run(make_number_embed())


def test_files_of_unequal_length_are_reported(tmp_path):
    home = write_data(tmp_path, random_golds(0, (5, 5, 5)))
    with (home / 'STS.gs.OnWN.txt').open('a') as file:
        file.write('\n')  # a pair without a score is a pair too
    with pytest.raises(
        UserError,
        match=r'STS.gs.OnWN.txt: has 6 lines, but STS.input.OnWN.txt has 5; line i of both must '
        r'belong to the same pair',
    ):
        task(tmp_path, 'STS13').run(make_number_embed())


@pytest.mark.parametrize('gold', ['nan', 'inf', '4,5', 'good', '1 2'])
def test_scores_that_are_not_numbers_are_reported(tmp_path, gold):
    write_data(tmp_path, {name: [1, 2, gold] for name in YEARS['STS13']})
    with pytest.raises(
        UserError, match=rf"STS.gs.FNWN.txt:3: the score must be a number, not '{gold}'"
    ):
        task(tmp_path, 'STS13').run(make_number_embed())


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        (['1\ta 1\ta 2', '\ta 1\ta 2'], r"sts-test.csv:2: the score must be a number, not ''"),
        (['1\ta 1\ta 2', '2\ta 1'], r'sts-test.csv:2: two texts are expected'),
        (['1\ta 1\ta 2', '2\ta 1\t '], r'sts-test.csv:2: two texts are expected'),
        (
            ['1\ta 1\ta 2', '1\ta 3\ta 4'],
            r'sts-test.csv: 2 scored pairs with 1 different scores: the correlation is not defined',
        ),
        ([], r'sts-test.csv: 0 scored pairs'),
    ],
)
def test_invalid_rows_are_reported(tmp_path, rows, message):
    write_benchmark(tmp_path, rows)
    with pytest.raises(UserError, match=message):
        task(tmp_path, 'STSBenchmark').run(make_number_embed())


def test_line_without_two_texts_is_reported(tmp_path):
    home = write_data(tmp_path, random_golds(0, (5, 5, 5)))
    for line in ('a 1\n', 'a 1\ta 2\ta 3\n'):
        (home / 'STS.input.headlines.txt').write_text('a 1\ta 2\n' * 4 + line)
        with pytest.raises(UserError, match=r'STS.input.headlines.txt:5: two texts are expected'):
            task(tmp_path, 'STS13').run(make_number_embed())
