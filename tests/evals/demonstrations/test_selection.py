"""The search for demonstrations: candidates files, candidates from training data, and resuming."""

import json

import numpy as np
import pytest

from cpt_jax.evals.demonstrations import candidates, selection
from cpt_jax.evals.demonstrations.candidates import Candidate, read_candidates
from cpt_jax.evals.demonstrations.selection import (
    BEST,
    NO_DEMONSTRATION,
    ROWS,
    count_helpful,
    format_page,
    format_ranking,
    make_candidate_prompt,
    rank_rows,
    search_demonstrations,
)
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks.sts import SimilarityOptions, find_similarity
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import PROMPTEOL, Prompt, find_demonstrations
from tests.evals.senteval_files import write_all
from tests.evals.tasks.test_sts import make_number_embed

ABOUT = {
    'model': 'a',
    'settings': {'width': 3},
    'task': 'sts/STSBenchmark',
    'split': 'dev',
    'data': 'f00d',
}
BASE = Prompt(PROMPTEOL, clean=True)
FILE = """A man is smoking.\tSmoking

This_sentence_:_"meat_from_a_deer."_means_in_one_word:"Venison".This_sentence_:_"*sent_0*"_means_in_one_word:"
fine film\tPositive\ta | dull\tNegative
The word for "{text}" is:"
A man is smoking.\tSmoking
"""


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp('data'))
    sts = folder / 'senteval/STS/STSBenchmark'
    sts.mkdir(parents=True)
    golds = np.random.default_rng(0).permutation(30) / 6
    for split in ('dev', 'train'):
        rows = [
            f'a\tb\tc\t{i}\t{golds[i]}\t{split} text {2 * i}\t{split}  text {2 * i + 1}\n'
            for i in range(30)
        ]
        rows += ['a\tb\tc\td\t3\tsaid "so"\ttrain text 1\n'] * (split == 'train')
        (sts / f'sts-{split}.csv').write_text(''.join(rows))
    return folder


def read_all(tmp_path, content):
    (tmp_path / 'some.txt').write_text(content)
    return read_candidates([tmp_path / 'some.txt'], PROMPTEOL)


def test_candidates_file_may_hold_pairs_and_whole_templates(tmp_path):
    found = read_all(tmp_path, FILE)
    assert [one.demonstrations for one in found] == [
        (('A man is smoking.', 'Smoking'),),
        (('meat from a deer.', 'Venison'),),
        (('fine film', 'Positive'), ('a | dull', 'Negative')),
        (),
    ]
    assert [one.template for one in found] == ['', '', '', 'The word for "{text}" is:"']
    assert [one.where[-1] for one in found] == list('1345')
    written = candidates.format_candidates([one.demonstrations for one in found[:3]])
    assert [one[:2] for one in read_all(tmp_path, written)] == [one[:2] for one in found[:3]]
    filled = [make_candidate_prompt(one, BASE).fill('x') for one in found]
    assert (
        filled[1]
        == 'This sentence : "meat from a deer." means in one word:"Venison".This sentence : "x." '
        'means in one word:"'
    )
    assert filled[3] == 'The word for "x." is:"'


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('a\tb\nno word\t\n', r'some\.txt:2: a sentence, a tab and its word are expected'),
        ('a\tb\tc\n', r'some\.txt:1: .*once or more'),
        ('alone\n', r'some\.txt:1: .*or a whole template with \{text\}'),
        ('\n', 'there is no candidate'),
    ],
)
def test_invalid_candidate_is_reported_with_its_line(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        read_all(tmp_path, content)


def test_demonstrations_are_parsed_from_a_whole_template():
    for template in (PROMPTEOL, 'This sentence: "{text}" means', '{text} is'):
        shown = (('a "b" c', 'D'), ('e.', 'F-g'))
        whole = Prompt(template, demonstrations=shown).fill('{text}')
        assert find_demonstrations(whole, template) == shown
        assert find_demonstrations(template, template) is None
        assert find_demonstrations(whole + '!', template) is None
    assert (
        find_demonstrations('x' + Prompt(PROMPTEOL, demonstrations=shown).fill('{text}'), PROMPTEOL)
        is None
    )


class Reader:
    """A model whose vectors depend on the prompt; it is killed after `lives` candidates."""

    def __init__(self, lives=99):
        self.prompts, self._lives = [], lives

    def __call__(self, prompt):
        if 'too long' in str(prompt.demonstrations):
            raise UserError('the template takes 9 tokens')

        def embed(texts, side):
            if len(self.prompts) == self._lives:
                raise KeyboardInterrupt
            self.prompts.append(prompt)
            return make_number_embed(len(prompt.fill('')))(texts, side)

        return embed


def run(reader, found, data_dir, output, **changes):
    return search_demonstrations(
        reader,
        BASE,
        found,
        find_similarity(data_dir, SimilarityOptions(split='dev'), Context())['sts/STSBenchmark'],
        ABOUT | changes,
        output,
    )


def test_progress_lines_are_printed_without_a_terminal(tmp_path, data_dir, capsys, monkeypatch):
    monkeypatch.setattr(selection, 'SECONDS_BETWEEN_LINES', 0)
    rows = run(Reader(), read_all(tmp_path, FILE), data_dir, tmp_path)
    lines, scores = capsys.readouterr().out.splitlines(), [row['main_score'] for row in rows]
    assert lines == [f'{i} of 5: best {100 * max(scores[:i]):.2f}' for i in range(1, 6)]


def test_killed_search_resumes_and_ends_with_the_same_rows(tmp_path, data_dir):
    found = read_all(tmp_path, FILE)
    with pytest.raises(KeyboardInterrupt):
        run(Reader(lives=3), found, data_dir, tmp_path / 'killed')
    with (tmp_path / 'killed' / ROWS).open('a') as file:
        file.write('{"number": 3, "demonstr')  # torn by the kill
    second = Reader()
    rows = run(second, found, data_dir, tmp_path / 'killed')
    whole = Reader()
    expected = run(whole, found, data_dir, tmp_path / 'whole')
    assert [row['main_score'] for row in rows] == [row['main_score'] for row in expected]
    assert len(rows) == 5
    remaining = [make_candidate_prompt(one, BASE) for one in found[2:]]
    assert second.prompts == whole.prompts[3:] == remaining
    assert whole.prompts[0] == BASE
    # All candidates have a row now, so the model is not called.
    again = run(Reader(lives=0), found[::-1], data_dir, tmp_path / 'killed')
    assert again[1]['main_score'] == rows[-1]['main_score']
    more = Candidate((('another', 'One'),))
    third = Reader()
    assert len(run(third, [*found, more], data_dir, tmp_path / 'killed')) == 6
    assert len(third.prompts) == 1
    lines = (tmp_path / 'killed' / ROWS).read_text().splitlines()
    assert len(lines) == 1 + 6 and json.loads(lines[0]) == {'search': ABOUT}


def test_output_of_another_search_is_refused(tmp_path, data_dir):
    found = read_all(tmp_path, FILE)[:1]
    run(Reader(), found, data_dir, tmp_path)
    with pytest.raises(
        UserError,
        match=r'demonstrations\.jsonl: belongs to another search, with different model, data: give '
        r'another --output',
    ):
        run(Reader(), found, data_dir, tmp_path, model='b', data='other')
    long = Candidate((('too long', 'A'),), where='some.txt:7')
    with pytest.raises(UserError, match=r'some\.txt:7: the template takes 9 tokens'):
        run(Reader(), [*found, long], data_dir, tmp_path)
    with (
        selection.try_lock(tmp_path / '.claims' / 'demonstrations'),
        pytest.raises(UserError, match='another program is searching there'),
    ):
        run(Reader(), found, data_dir, tmp_path)
    (tmp_path / ROWS).write_text('{"step": 3}\n')
    with pytest.raises(UserError, match=r'demonstrations\.jsonl:1: this is not the first line'):
        run(Reader(), found, data_dir, tmp_path)


def test_ranking_lists_the_best_candidates_and_no_demonstration(tmp_path):
    scores = {
        (): 0.5,
        (('s|1', 'A'),): 0.625,
        (('s2', 'B'),): 0.4,
        (('s3', 'C'), ('s4', 'D')): 0.625,
    }
    rows = [
        {
            'number': i,
            'demonstrations': [*map(list, shown)],
            'template': '',
            'main_score': score,
            'main_metric': 'spearman',
            'n': 31,
        }
        for i, (shown, score) in enumerate(scores.items())
    ]
    assert [row['number'] for row in rank_rows(rows)] == [1, 3, 2] and count_helpful(rows) == 2
    lines = format_ranking(rows, 2).splitlines()
    assert len(lines) == 4 and lines[1].split() == ['-', '50.00', '(none)']
    assert lines[2].split() == ['1', '62.50', '+12.50', 'A', 's|1']
    assert lines[3].split()[2:] == [
        '+12.50',
        'C',
        '/',
        'D',
        's3',
        '/',
        's4',
    ]
    page = format_page(rows, ABOUT)
    assert '2 of 3 candidates help' in page
    assert '| 1 | 62.50 | +12.50 | A | s\\|1 |' in page
    assert '| 3 | 40.00 | -10.00 | B | s2 |' in page
    assert NO_DEMONSTRATION[:2] == ((), '') and BEST == 'best.json'


def test_training_sentences_get_the_words_of_a_file(tmp_path, data_dir):
    drawn = candidates.draw_sentences(data_dir, 5, 0)
    assert len({*drawn}) == 5 and all(text.startswith('train text ') for text in drawn)
    # All but the sentence with quotation marks.
    assert len(candidates.draw_sentences(data_dir, 999, 0)) == 60
    words = tmp_path / 'words.tsv'
    words.write_text(''.join(f'{text}\tW{i}\n' for i, text in enumerate(drawn)))
    assert candidates.read_sentence_words(words, data_dir) == [
        ((text, f'W{i}'),) for i, text in enumerate(drawn)
    ]
    words.write_text('Train text 3.\tThree\n')
    assert candidates.read_sentence_words(words, data_dir) == [(('Train text 3.', 'Three'),)]
    words.write_text(f'{drawn[0]}\tA\ndev text 3\tB\n')
    with pytest.raises(
        UserError, match=r"words\.tsv:2: 'dev text 3' is not a sentence of STS-B's sts-train\.csv"
    ):
        candidates.read_sentence_words(words, data_dir)


def test_dictionary_candidates_are_distinct_single_words(tmp_path):
    path = tmp_path / 'words.tsv'
    rows = [
        'able\ta\tskilled "so"',
        'ice cream\tn\tcold',
        'Able\ta\thaving means.',
        'x2\tn\ta number',
        'four-in-hand\tn\ta necktie;',
    ]
    path.write_text('\n'.join(['word\tpos\tdefinition', *rows, '']))
    found = candidates.draw_definitions(path, 2, 0)
    assert {word for ((_, word),) in found} == {'Able', 'Four-in-hand'}
    assert {sentence for ((sentence, _),) in found} < {
        "skilled 'so'",
        'having means.',
        'a necktie.',
    }
    assert {str(candidates.draw_definitions(path, 1, seed)) for seed in range(9)} > {str(found[:1])}
    with pytest.raises(UserError, match='has 2 single words, fewer than --count 3'):
        candidates.draw_definitions(path, 3, 0)
    path.write_text('word\tmeaning\n')
    with pytest.raises(UserError, match=r'words\.tsv:1: a header with word and definition'):
        candidates.draw_definitions(path, 1, 0)


def test_label_candidates_have_a_training_sentence_of_each_class(data_dir):
    positive = (data_dir / 'senteval/MR/rt-polarity.pos').read_text().split('\n')
    found = candidates.draw_label_demonstrations('MR', data_dir, 7, 0)
    assert len(found) == 7
    assert all([word for _, word in shown] == ['Positive', 'Negative'] for shown in found)
    assert all(
        shown[0][0].removesuffix('.') in map(str.strip, positive) and shown[0][0].endswith('.')
        for shown in found
    )
    (six,) = candidates.draw_label_demonstrations('TREC', data_dir, 1, 0)
    assert [word for _, word in six] == [
        'Abbreviation',
        'Description',
        'Entity',
        'Human',
        'Location',
        'Number',
    ]
    test = {
        line.split('\t')[0]
        for line in (data_dir / 'senteval/SST/binary/sentiment-test').read_text().splitlines()
    }
    train = {
        line.split('\t')[0]
        for line in (data_dir / 'senteval/SST/binary/sentiment-train').read_text().splitlines()
    }
    assert {
        sentence.removesuffix('.')
        for shown in candidates.draw_label_demonstrations('SST2', data_dir, 99, 0)
        for sentence, _ in shown
    } <= train
    assert test - train
    with pytest.raises(UserError, match='--build_labels MRPC: choose one of MR'):
        candidates.draw_label_demonstrations('MRPC', data_dir, 1, 0)
    with pytest.raises(UserError, match='--build_labels MR: no senteval/MR in --data_dir'):
        candidates.draw_label_demonstrations('MR', data_dir / 'senteval', 1, 0)
