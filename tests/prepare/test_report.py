import json

from cpt_jax.prepare import finish
from cpt_jax.prepare.finish import SplitShards
from cpt_jax.prepare.report import sample_examples
from cpt_jax.prepare.run import prepare
from tests.prepare.helpers import get_texts, make_config, write_texts

WRITE_REPORT = finish.write_data_set_report  # before a fixture replaces it


def test_report_is_one_page_about_the_data_set(tmp_path):
    config = make_config(text={'path': str(write_texts(tmp_path / 'texts', 8))})
    config['output'] |= {'shard_mb': 0.002, 'holdout': 0.0}
    output = tmp_path / 'output'
    summary = prepare(config, output)
    info = json.loads((output / 'dataset_info.json').read_text())
    lengths = [int(length) for length in info['splits'][0]['shardLengths']]
    assert len(lengths) > 2
    shards = SplitShards(range(len(lengths)), lengths, 0, '')
    paths = [output / shards.get_name('train', shard) for shard in range(len(lengths))]
    examples = sample_examples(paths, lengths)
    assert sorted((each['x'][0], each['y'][0]) for each in examples) == get_texts(output)

    summary['decontamination'] = {
        'sets': {
            'sts/STS12': {
                'texts': 7,
                'short': 1,
                'pairs': 2,
                'negatives': 0,
                'examples': [['a', '<b> c']],
            }
        }
    }
    summary['consistency'] = {'ranks': {'1': 5, '2': 1}}
    summary['total']['unreadable'] = {'not text': 1}
    summary['total']['examples'] = {'not text': ['a.txt: it contains zero bytes']}
    summary['total']['dropped'] = {'duplicate': 3}
    WRITE_REPORT(output, shards, summary)
    page = (output / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == 5 and 'href' not in page
    assert '&lt;b&gt; c' in page and 'it contains zero bytes' in page
    assert f'{len(examples)} pairs in train' in page
    assert sum(each['x'][0][:40] in page for each in examples) >= min(12, len(examples))
