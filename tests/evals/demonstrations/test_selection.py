"""The search for demonstrations: files of candidates, what is made of training data, and rows that
survive a kill.
"""

import json

import numpy as np
import pytest

from cpt_jax.evals.demonstrations import candidates, selection
from cpt_jax.evals.demonstrations.candidates import Candidate, read_candidates
from cpt_jax.evals.demonstrations.selection import (
    BEST,
    NONE,
    ROWS,
    format_page,
    format_ranking,
    helping,
    prompt_of,
    ranked,
    search_demonstrations,
)
from cpt_jax.evals.task import Context
from cpt_jax.evals.tasks.sts import SimilarityOptions, find_similarity
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import PROMPTEOL, Prompt, demonstrations_in
from tests.evals.senteval_files import write_all
from tests.evals.tasks.test_sts import number_embed

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


def test_a_file_of_candidates_in_either_form(tmp_path):
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
    filled = [prompt_of(one, BASE).fill('x') for one in found]
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
        ('\n', 'holds no candidate'),
    ],
)
def test_a_candidate_that_is_none_is_one_line(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        read_all(tmp_path, content)


def test_demonstrations_are_found_in_a_whole_template():
    for template in (PROMPTEOL, 'This sentence: "{text}" means', '{text} is'):
        shown = (('a "b" c', 'D'), ('e.', 'F-g'))
        whole = Prompt(template, demonstrations=shown).fill('{text}')
        assert demonstrations_in(whole, template) == shown
        assert (
            demonstrations_in(template, template) is None
            and demonstrations_in(whole + '!', template) is None
        )
    assert (
        demonstrations_in('x' + Prompt(PROMPTEOL, demonstrations=shown).fill('{text}'), PROMPTEOL)
        is None
    )


class Reader:
    """A model whose vectors depend on the words around a text; it is killed after so many
    candidates.
    """

    def __init__(self, lives=99):
        self.prompts, self._lives = [], lives

    def __call__(self, prompt):
        if 'too long' in str(prompt.demonstrations):
            raise UserError('the template takes 9 tokens')

        def embed(texts, side):
            if len(self.prompts) == self._lives:
                raise KeyboardInterrupt
            self.prompts.append(prompt)
            return number_embed(len(prompt.fill('')))(texts, side)

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


def test_where_there_is_no_terminal_lines_tell_how_far_it_is(
    tmp_path, data_dir, capsys, monkeypatch
):
    monkeypatch.setattr(selection, 'SECONDS_BETWEEN_LINES', 0)
    rows = run(Reader(), read_all(tmp_path, FILE), data_dir, tmp_path)
    lines, scores = capsys.readouterr().out.splitlines(), [row['main_score'] for row in rows]
    assert lines == [f'{i} of 5: best {100 * max(scores[:i]):.2f}' for i in range(1, 6)]


def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path, data_dir):
    found = read_all(tmp_path, FILE)
    with pytest.raises(KeyboardInterrupt):
        run(Reader(lives=3), found, data_dir, tmp_path / 'killed')
    with (tmp_path / 'killed' / ROWS).open('a') as file:
        file.write('{"number": 3, "demonstr')  # torn by the kill
    second, whole = Reader(), Reader()
    rows, expected = (
        run(*some, data_dir, tmp_path / name)
        for some, name in (((second, found), 'killed'), ((whole, found), 'whole'))
    )
    assert [row['main_score'] for row in rows] == [row['main_score'] for row in expected] and len(
        rows
    ) == 5
    assert (
        second.prompts == whole.prompts[3:] == [prompt_of(one, BASE) for one in found[2:]]
        and whole.prompts[0] == BASE
    )
    # All are there.
    assert (
        run(Reader(lives=0), found[::-1], data_dir, tmp_path / 'killed')[1]['main_score']
        == rows[-1]['main_score']
    )
    more = Candidate((('another', 'One'),))
    third = Reader()
    assert (
        len(run(third, [*found, more], data_dir, tmp_path / 'killed')) == 6
        and len(third.prompts) == 1
    )
    lines = (tmp_path / 'killed' / ROWS).read_text().splitlines()
    assert len(lines) == 1 + 6 and json.loads(lines[0]) == {'search': ABOUT}


def test_rows_of_another_search_are_not_mixed_in(tmp_path, data_dir):
    found = read_all(tmp_path, FILE)[:1]
    run(Reader(), found, data_dir, tmp_path)
    with pytest.raises(
        UserError,
        match=r'demonstrations\.jsonl: is of another search, with other model, data: give another '
        r'--output',
    ):
        run(Reader(), found, data_dir, tmp_path, model='b', data='other')
    long = Candidate((('too long', 'A'),), where='some.txt:7')
    with pytest.raises(UserError, match=r'some\.txt:7: the template takes 9 tokens'):
        run(Reader(), [*found, long], data_dir, tmp_path)
    with (
        selection.claimed(tmp_path / '.claims' / 'demonstrations'),
        pytest.raises(UserError, match='another program searches there'),
    ):
        run(Reader(), found, data_dir, tmp_path)
    (tmp_path / ROWS).write_text('{"step": 3}\n')
    with pytest.raises(UserError, match=r'demonstrations\.jsonl:1: not the first line'):
        run(Reader(), found, data_dir, tmp_path)


def test_the_ranking_has_the_best_first_and_what_is_without(tmp_path):
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
    assert [row['number'] for row in ranked(rows)] == [1, 3, 2] and helping(rows) == 2
    lines = format_ranking(rows, 2).splitlines()
    assert len(lines) == 4 and lines[1].split() == ['-', '50.00', '(none)']
    assert lines[2].split() == ['1', '62.50', '+12.50', 'A', 's|1'] and lines[3].split()[2:] == [
        '+12.50',
        'C',
        '/',
        'D',
        's3',
        '/',
        's4',
    ]
    page = format_page(rows, ABOUT)
    assert (
        '2 of 3 candidates help' in page
        and '| 1 | 62.50 | +12.50 | A | s\\|1 |' in page
        and '| 3 | 40.00 | -10.00 | B | s2 |' in page
    )
    assert NONE[:2] == ((), '') and BEST == 'best.json'


def test_candidates_of_training_sentences_have_the_words_of_a_file(tmp_path, data_dir):
    drawn = candidates.draw_sentences(data_dir, 5, 0)
    assert len({*drawn}) == 5 and all(text.startswith('train text ') for text in drawn)
    assert len(candidates.draw_sentences(data_dir, 999, 0)) == 60  # but that with quotation marks
    words = tmp_path / 'words.tsv'
    words.write_text(''.join(f'{text}\tW{i}\n' for i, text in enumerate(drawn)))
    assert candidates.of_words(words, data_dir) == [
        ((text, f'W{i}'),) for i, text in enumerate(drawn)
    ]
    words.write_text('Train text 3.\tThree\n')
    assert candidates.of_words(words, data_dir) == [(('Train text 3.', 'Three'),)]
    words.write_text(f'{drawn[0]}\tA\ndev text 3\tB\n')
    with pytest.raises(
        UserError, match=r"words\.tsv:2: 'dev text 3' is no sentence of STS-B's sts-train\.csv"
    ):
        candidates.of_words(words, data_dir)


def test_candidates_of_a_dictionary_are_single_words_each_once(tmp_path):
    path = tmp_path / 'words.tsv'
    rows = [
        'able\ta\tskilled "so"',
        'ice cream\tn\tcold',
        'Able\ta\thaving means.',
        'x2\tn\ta number',
        'four-in-hand\tn\ta necktie;',
    ]
    path.write_text('\n'.join(['word\tpos\tdefinition', *rows, '']))
    found = candidates.of_dictionary(path, 2, 0)
    assert {word for ((_, word),) in found} == {'Able', 'Four-in-hand'}
    assert {sentence for ((sentence, _),) in found} < {
        "skilled 'so'",
        'having means.',
        'a necktie.',
    }
    assert {str(candidates.of_dictionary(path, 1, seed)) for seed in range(9)} > {str(found[:1])}
    with pytest.raises(UserError, match='has 2 single words, and --count is 3'):
        candidates.of_dictionary(path, 3, 0)
    path.write_text('word\tmeaning\n')
    with pytest.raises(UserError, match=r'words\.tsv:1: a header with word and definition'):
        candidates.of_dictionary(path, 1, 0)


def test_label_words_go_with_a_training_sentence_of_each_class(data_dir):
    positive = (data_dir / 'senteval/MR/rt-polarity.pos').read_text().split('\n')
    found = candidates.of_labels('MR', data_dir, 7, 0)
    assert len(found) == 7 and all(
        [word for _, word in shown] == ['Positive', 'Negative'] for shown in found
    )
    assert all(
        shown[0][0].removesuffix('.') in map(str.strip, positive) and shown[0][0].endswith('.')
        for shown in found
    )
    (six,) = candidates.of_labels('TREC', data_dir, 1, 0)
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
        for shown in candidates.of_labels('SST2', data_dir, 99, 0)
        for sentence, _ in shown
    } <= train
    assert test - train
    with pytest.raises(UserError, match='--build_labels MRPC: choose one of MR'):
        candidates.of_labels('MRPC', data_dir, 1, 0)
    with pytest.raises(UserError, match='--build_labels MR: no senteval/MR in --data_dir'):
        candidates.of_labels('MR', data_dir / 'senteval', 1, 0)
