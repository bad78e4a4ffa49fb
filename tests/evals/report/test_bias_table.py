from cpt_jax.evals.report.bias_table import make_bias_table


def row(effect, p, p_holm, **settings):
    metrics = {'effect_size': effect, 'p_value': p, 'p_holm': p_holm}
    return {
        'metrics': metrics,
        'n': 16,
        'settings': {
            'main_metric': 'effect_size',
            'seed': 0,
            'positive': 'A nearer to B',
            **settings,
        },
    }


def test_tests_are_grouped_and_sorted_by_effect():
    tasks = {
        'bias/weat1': row(0.5, 0.2, 0.4, data='a'),
        'bias/sent-weat1': row(-0.2, 0.7, 0.7, data='b'),
        'bias/weat10': row(1.5, 0.001, 0.0099, data='c'),
        'bias/sent-heilman_double_bind_likable_one_word': row(0.1, 0.01, 0.01, data='d'),
        'bias/own': row(-3.0, 0.5, 1, data='e'),
        'sts/STS12': {'metrics': {}},
    }
    table = make_bias_table(tasks)
    assert [(group, [test.name for test in tests]) for group, tests in table.groups] == [
        ('Words (WEAT)', ['weat10', 'weat1']),
        ('Sentences (SEAT)', ['sent-weat1']),
        ('Double bind', ['sent-heilman_double_bind_likable_one_word']),
        ('Others', ['own']),
    ]
    assert table.tests == 5 and table.significant == 1  # p = 0.01 is not significant
    assert table.settings == {'seed': 0, 'positive': 'A nearer to B'}
    (_, (weat10, weat1)), *_, (_, (own,)) = table.groups
    assert weat10[:6] == ('weat10', 'A nearer to B', '1.50', '0.001', '0.0099', True)
    assert not weat1.significant
    # Effects beyond the track are clipped.
    assert (weat1.low, weat1.high) == (50, 62.5) and (own.low, own.high) == (0, 50)


def test_results_without_bias_tests_have_no_table():
    assert make_bias_table({'sts/STS12': {'metrics': {}}}) is None
