import base64
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from etils import epath

from cpt_jax.evals.report.curves import draw_panels, read_metrics
from cpt_jax.evals.report.page import cut_snippet, render_page

CODE = 'def f(a, b):\n    return a < b & "x" </pre><script>alert(1)</script>'


class Page(HTMLParser):
    """A parsed page: texts by tag, all tags, and links."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.tags, self.links = [], {}, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ('src', 'href')]
        if tag not in ('meta', 'img', 'wbr'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # elements are nested correctly

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else '', []).append(data)


def make_results():
    row = {
        'main_score': 0.5,
        'metrics': {'recall@1_of_1000': 0.25, 'mrr_of_1000': 0.5},
        'n': 1000,
        'settings': {'main_metric': 'mrr_of_1000', 'direction': 'query <to> code'},
        'baselines': {
            'bm25': {'mrr_of_1000': 0.4, 'recall@1_of_1000': 0.3},
            'random': {'mrr_of_1000': 0.0075, 'recall@1_of_1000': 0.001},
        },
    }
    return {
        'model': 'runs/<a> & b',
        'settings': {'delimiters': {'x': '[]'}, 'step': 5},
        'tasks': {'codesearch/x': row, 'later': row},
    }


def make_examples():
    model = {
        'found': [
            {'text': CODE, 'score': 0.5, 'right': True},
            {'text': 'other', 'score': 0.4, 'right': False},
        ],
        'rank': 1,
    }
    return {
        'codesearch/x': [
            {
                'query': 'is a < b & c?',
                'right': CODE,
                'model': model,
                'bm25': {'found': [], 'rank': None},
            }
        ],
        'gone': [],
    }


def test_texts_are_escaped():
    html = render_page(make_results(), make_examples())
    page = Page(html)
    assert page.open == [] and 'script' not in page.tags
    assert page.texts['pre'] == [CODE, CODE]
    assert page.texts['h1'] == ['runs/<a> & b']
    assert 'is a < b & c?' in page.texts['p'] and 'query <to> code' in page.texts['dd']


def test_intervals_are_drawn_on_the_bars_of_the_model_and_of_baselines():
    results = make_results()
    assert 'interval' not in render_page(results, {}).split('<main>')[1].split('<h2>')[1]
    results['tasks']['later'] = {
        **results['tasks']['later'],
        'intervals': {'mrr_of_1000': [0.475, 0.5234]},
        'baseline_intervals': {'bm25': {'mrr_of_1000': [0.1, 0.2]}},
    }
    html = render_page(results, {})
    assert Page(html).open == []
    assert html.count('<i class="interval" style="left: 47.50%; width: 4.84%"') == 1
    assert html.count('95 % interval 47.50 to 52.34') == 1
    assert html.count('left: 10.00%; width: 10.00%" title="10.00 to 20.00"') == 1


def make_map():
    planes = [
        {'method': 'PCA', 'x': [0, 1000], 'y': [7, 0], 'explained': [0.25, 0.125]},
        {'method': 'UMAP', 'x': [0, 5], 'y': [5, 0], 'explained': []},
    ]
    return {
        'name': 'SST2, <test>',
        'of': 1821,
        'classes': ['a & b', 'c'],
        'labels': [0, 1],
        'texts': [CODE, '"quoted"'],
        'planes': planes,
    }


def test_maps_show_texts_and_explained_variance():
    html = render_page(make_results(), {}, maps=[make_map()])
    page = Page(html)
    assert page.open == [] and 'script' not in page.tags
    assert page.texts['title'][1:] == 2 * [f'a & b: {CODE}', 'c: "quoted"']
    assert html.count('<circle class="k0" cx="0" cy="7" r="7">') == 1
    assert 'viewBox="-12 -12 1024 31"' in html
    assert '2 of 1,821 texts' in html and '25.0 % (horizontal) and 12.5 % (vertical)' in html
    assert 'Embedding maps' not in render_page(make_results(), {})


def bias_row(effect, p):
    metrics = {'effect_size': effect, 'p_value': p, 'p_holm': 2 * p}
    settings = {'main_metric': 'effect_size', 'positive': 'A <b> nearer to C', 'seed': 0}
    return {
        'main_score': effect,
        'metrics': metrics,
        'n': 16,
        'counted': 'target texts',
        'settings': settings,
        'baselines': {},
    }


def test_page_has_tables_of_published_results_and_bias_tests():
    sts = {
        'metrics': {'spearman': 0.8203},
        'n': 1379,
        'counted': 'pairs',
        'baselines': {},
        'settings': {'main_metric': 'spearman'},
    }
    tasks = {
        'sts/STSBenchmark': {**sts, 'settings': {**sts['settings'], 'split': 'test'}},
        'sts/STS12': {**sts, 'settings': {**sts['settings'], 'split': '<dev>'}},
        'bias/sent-weat1': bias_row(1.25, 0.0001),
        'bias/weat<1>': bias_row(-0.5, 0.3),
    }
    html = render_page({**make_results(), 'tasks': tasks}, {})
    page = Page(html)
    assert page.open == [] and page.texts['td'][:3] == ['82.03', '82.2', '73.2']
    assert page.texts['sup'][:3] == ['T', 'T', 'T']
    # Only the marks that occur are explained.
    assert html.count('<sup>') == html.count('<sup>T</sup>') + html.count('<sup>C</sup>')
    assert 'the text of the paper itself' not in html
    assert (
        'sts/STS12: split: <dev> here, test published; pairs: 1,379 here, 3,108 published'
        in page.texts['div']
    )
    # Bias tests have no card of their own.
    assert page.texts['h3'][:3] == [
        'sts/STSBenchmark',
        'sts/STS12',
        'Sentence similarity, Spearman',
    ]
    assert {'● 1.25', '-0.50', 'A <b> nearer to C'} <= {*page.texts['td']}
    assert '1 of 2 tests with p &lt; 0.01' in html and 'weat&lt;1&gt;' in html
    plain = render_page(make_results(), {})
    assert '<table' not in plain and 'Not compared' not in plain


def test_page_is_self_contained(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'loss': 2.0}) + '\n')
    page = Page(
        render_page(make_results(), make_examples(), epath.Path(tmp_path / 'metrics.jsonl'))
    )
    assert page.links and all(link.startswith('data:') for link in page.links)
    assert 'link' not in page.tags


def test_main_metric_comes_first_with_its_baselines():
    page = Page(render_page(make_results(), {}))
    assert page.texts['b'][:2] == ['MRR of 1,000', 'Recall@1 of 1,000']
    spans = [text for text in page.texts['span'] if text.strip()]
    assert spans[:6] == ['model', '50.00', 'BM25', '40.00', 'random', '0.75']


def test_right_answers_are_marked():
    html = render_page(make_results(), make_examples())
    assert html.count('<div class="found right">') == 1 and html.count('<div class="found">') == 1
    assert 'right answer at rank 1' in html and 'no right answer in the ranking' in html


def test_snippets_keep_code_lines_and_join_prose():
    long = '\n'.join(f'    line {i}' for i in range(20))
    assert cut_snippet(long) == ('\n'.join([*(f'line {i}' for i in range(12)), '…']), True)
    assert cut_snippet('\n'.join(['a', 'b'])) == ('a\nb', True)
    assert cut_snippet('one  line') == ('one line', False)
    text, code = cut_snippet('word ' * 500 + '\n' + 'word ' * 500)
    assert not code and len(text) <= 602 and text.endswith('word …')
    assert len(cut_snippet('字' * 2000).text) == 602


def test_damaged_lines_of_metrics_are_skipped_with_a_warning(tmp_path, caplog):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 1, "loss": 3}\n{"step": "2"}\n\xff\n{"step": 2, "loss": 1e400}\n3')
    metrics = read_metrics(epath.Path(path))
    assert metrics['loss'][1].tolist() == [3, float('inf')]
    assert '2 lines are no rows of metrics (first: line 2)' in caplog.text


def test_last_values_of_a_repeated_step_count(tmp_path):
    rows = [
        {'step': 1, 'loss': 3.0},
        {'step': 2, 'loss': 2.5},
        {'step': 2, 'loss': 2.0},
        {'step': 2, 'heldout_mrr': 0.1, 'note': 'x'},
    ]
    path = tmp_path / 'metrics.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n{"step": 3, "lo')
    metrics = {
        name: (steps.tolist(), values.tolist())
        for name, (steps, values) in read_metrics(epath.Path(path)).items()
    }
    assert metrics == {
        'loss': ([1, 2], [3, 2]),
        'heldout_mrr': ([2], [0.1]),
        'step': ([1, 2], [1, 2]),
    }
    assert read_metrics(epath.Path(tmp_path / 'none.jsonl')) == {}


@pytest.mark.parametrize('steps', [1, 40, 5000])
def test_panels_are_drawn_for_existing_columns(steps):
    x = np.arange(steps, dtype=np.float64)
    drawn = draw_panels(
        {'loss': (x, x), 'log_batch': (x, x * 0 + 5), 'accuracy_yx': (x, x), 'unknown': (x, x)}
    )
    assert [title for title, _ in drawn] == ['Loss', 'In-batch accuracy']
    for _, uri in drawn:
        kind, data = uri.split(',', 1)
        assert kind == 'data:image/svg+xml;base64'
        svg = base64.b64decode(data)
        assert ElementTree.fromstring(svg).tag.endswith('svg') and len(svg) < 200_000


def test_each_task_has_a_curve_of_checkpoint_scores():
    rows = [
        {
            'step': step,
            'saved': str(step),
            'task': task,
            'fingerprint': 'f',
            'main_metric': metric,
            'main_score': step / 10,
        }
        for step in (1, 2, 3)
        for task, metric in [('sts/STS12', 'spearman'), ('bias/a', 'effect_size')]
    ]
    page = Page(render_page(make_results(), {}, None, rows))
    assert 'Checkpoint scores' in page.texts['h2']
    assert [text for text in page.texts['h3'] if ': ' in text] == [
        'sts/STS12: Spearman',
        'bias/a: effect size d',
    ]
    assert 'Checkpoint scores' not in render_page(make_results(), {})
