import json

import numpy as np
import pytest
from etils import epath

from cpt_jax.evals.options import SearchOptions
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks.open_qa import OpenQa, find_open_qa, read_passages, read_questions
from cpt_jax.runtime.errors import UserError

PASSAGES = 150


def write(folder):
    """Writes questions and passages. Passage i contains number i; every third passage has it only
    in the title, which does not count.
    """
    (folder / 'openqa' / 'nq').mkdir(parents=True)
    rows = ['id\ttext\ttitle']
    rows += [
        f'{i}\t"Some ""text"" of {"nothing" if i % 3 == 0 else f"number{i}"}."\tTitle number{i}'
        for i in range(1, PASSAGES)
    ]
    (folder / 'openqa' / 'psgs_w100.tsv').write_text('\n'.join(rows) + '\n')
    questions = [
        json.dumps({'question': f'where is {i}', 'answer': [f'Number{i}', 'never']})
        for i in range(1, 31)
    ]
    (folder / 'openqa' / 'nq' / 'questions.jsonl').write_text('\n'.join(questions) + '\n')
    return epath.Path(folder)


def shifted(shift):
    """Returns an embedding function that ranks passage i + shift first for question i."""

    def embed(texts, side):
        numbers = [
            int(''.join(filter(str.isdigit, text.split()[-1 if side == 'x' else 1])))
            for text in texts
        ]
        angles = np.array(numbers, np.float32) + (shift if side == 'x' else 0)
        return np.stack([np.cos(angles / 100), np.sin(angles / 100)], axis=1)

    return embed


def test_answer_recall_ignores_titles(tmp_path):
    task = find_open_qa(write(tmp_path), SearchOptions(), Context())['openqa/nq']
    result = task.run(shifted(0.2))
    assert result.n == 30 and result.counted == 'questions' and result.metric == 'answer_recall@20'
    # Every third answer is only in a title.
    assert result.metrics == pytest.approx({'answer_recall@20': 2 / 3, 'answer_recall@100': 2 / 3})
    assert (
        result.metrics.keys()
        == result.baselines['bm25'].keys()
        == result.baselines['random'].keys()
    )
    assert result.baseline_values.keys() == result.baselines.keys() == {'bm25', 'random'}
    for name, values in result.baseline_values.items():  # their intervals are drawn from these
        means = {metric: values_Q.mean() for metric, values_Q in values.items()}
        assert means == pytest.approx(result.baselines[name])
    assert result.examples[0].model.rank in (1, None)
    assert result.examples[0].model.found[0].text.startswith('Title number')
    far = task.run(shifted(25.2))  # about 50 passages are nearer than the right one
    assert far.metrics == pytest.approx({'answer_recall@20': 0, 'answer_recall@100': 2 / 3})
    json.dumps(result.settings)


def test_fewer_passages_than_k_and_the_trec_run(tmp_path):
    folder = write(tmp_path) / 'openqa'
    (folder / 'psgs_w100.tsv').write_text(
        '1\tnumber1 here\tTitle number1\n2\tother\tTitle number2\n'
    )
    result = OpenQa(
        'openqa/nq',
        folder / 'nq/questions.jsonl',
        folder / 'psgs_w100.tsv',
        SearchOptions(baselines=()),
        folder,
    ).run(shifted(0))
    assert result.metrics == pytest.approx(
        {'answer_recall@20': 1 / 30, 'answer_recall@100': 1 / 30}
    )
    assert result.baselines == {}
    lines = (folder / 'openqa' / 'nq.trec').read_text().splitlines()
    assert len(lines) == 60 and lines[0].split()[:4] == ['0', 'Q0', '1', '1']


def test_dpr_files_are_parsed(tmp_path):
    (tmp_path / 'questions.csv').write_text(
        'who was it\t["A ""x""", \'b\']\nwhere\t[\'there\']\n'.replace('""', '')
    )
    assert read_questions(epath.Path(tmp_path / 'questions.csv')) == (
        ['who was it', 'where'],
        [['A x', 'b'], ['there']],
    )
    (tmp_path / 'p.tsv').write_text('id\ttext\ttitle\n007\t"He said ""no"""\tBond\n')
    assert list(read_passages(epath.Path(tmp_path / 'p.tsv')))[0][1:] == (
        '007',
        'Bond He said "no"',
    )


@pytest.mark.parametrize(
    ('name', 'line', 'message'),
    [
        (
            'questions.jsonl',
            '{"question": "a"}',
            r'questions.jsonl:1: a list of answers is expected',
        ),
        (
            'questions.jsonl',
            '{"question": "a", "answer": []}',
            r'questions.jsonl:1: a list of answers is expected',
        ),
        ('questions.jsonl', '{"answer": ["b"]}', r"questions.jsonl:1: no field 'question'"),
        ('questions.csv', 'a\tb', r'questions.csv:1: a question, a tab and a list'),
        ('questions.csv', '', r'questions.csv: has no questions'),
    ],
)
def test_invalid_lines_are_reported(tmp_path, name, line, message):
    (tmp_path / name).write_text(line + '\n')
    with pytest.raises(UserError, match=message):
        read_questions(epath.Path(tmp_path / name))
    (tmp_path / 'p.tsv').write_text('id\ttext\ttitle\n1 text title\n')
    with pytest.raises(UserError, match=r'p.tsv:2: id, text and title'):
        list(read_passages(epath.Path(tmp_path / 'p.tsv')))
