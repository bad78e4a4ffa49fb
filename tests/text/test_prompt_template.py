"""PromptEOL: the strings and ids of the paper's program, and vectors of transformers, padded on the
left (both kept in a golden).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from cpt_jax.embed.load import load_embedder
from cpt_jax.runtime.errors import UserError
from cpt_jax.text.prompt_template import (
    PROMPTEOL,
    Prompt,
    Representation,
    clean_up,
    configured,
    demonstrations_of,
    parse_template,
)
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from tests.goldens.golden import read_golden, restore
from tests.text.test_pretrained_tokenizer import OPT, byte_level, dumped, opened, pieces

TEXTS = ['he said "hi"', 'why ?', 'token list ' * 3, 'a_b']
VECTORS = ('opt', 'prompteol'), ('llama', 'prompteol'), ('opt', 'mean'), ('llama', 'last')
SWISS = ('relating to switzerland or its people.', 'Swiss')
# Text -> what evaluation reads of it.
GOLDEN = {
    'he said "hi"': 'This sentence : "he said \'hi\'" means in one word:"',
    'why ?': 'This sentence : "why ." means in one word:"',
    '': 'This sentence : "" means in one word:"',
    'snake_case and _x_': 'This sentence : "snake_case and _x_." means in one word:"',
    'two  words\n': 'This sentence : "two words." means in one word:"',
    'so it ends .': 'This sentence : "so it ends ." means in one word:"',
    "he said 'why?'": 'This sentence : "he said \'why?\'" means in one word:"',
    'a {text} "?': 'This sentence : "a {text} \'." means in one word:"',
}


def papers(template: str, text: str, clean: bool = True) -> str:
    """As kongds/scaling_sentemb, evaluation.py, has it, with the joining of words that SentEval's
    batches go through before.
    """
    template = template.replace('_', ' ').replace('*sep+*', '').replace('*cls*', '')
    s = ' '.join(text.split()) if clean else text
    if clean:
        if len(s) > 0 and s[-1] not in '.?"\'':
            s += '.'
        s = s.replace('"', "'")
        if len(s) > 0 and s[-1] == '?':
            s = s[:-1] + '.'
    return template.replace('*sent 0*', s).strip()


@pytest.mark.parametrize('text', GOLDEN)
def test_strings_are_those_of_the_paper(text):
    template = 'This_sentence_:_"*sent_0*"_means_in_one_word:"'
    assert Prompt(PROMPTEOL, clean=True).fill(text) == GOLDEN[text] == papers(template, text)
    assert Prompt(template).fill(text) == papers(template, text, clean=False)


def test_the_steps_come_in_their_order():
    """The quotation mark counts as an end before it is replaced; a ? behind it goes all the
    same.
    """
    assert [clean_up(text) for text in ('a "?', '"', '?', 'a?"', 'no end', ' ')] == [
        "a '.",
        "'",
        '.',
        "a?'",
        'no end.',
        '',
    ]


def test_demonstrations_are_joined_without_a_separator():
    shown = (
        'This sentence : "relating to switzerland or its people." means in one word:"Swiss".This '
        'sentence : "a_b" means in one word:"'
    )
    assert Prompt(PROMPTEOL, demonstrations=(SWISS,)).fill('a_b') == shown
    whole = (
        'This_sentence_:_"A_man."_means_in_one_word:"Smoking".This_sentence_:_"*sent_0*"_means_in_'
        'one_word:"'
    )
    assert parse_template(whole, '') == Prompt(
        PROMPTEOL, demonstrations=(('A man.', 'Smoking'),)
    ).fill('{text}')
    labels = demonstrations_of(['a fine film=positive', '1 = 2, dull=negative'])
    two = (
        'This sentence: "a fine film" means positive.This sentence: "1 = 2, dull" means '
        'negative.This sentence: "x" means'
    )
    assert Representation('prompt', demonstrations=labels).prompt().fill('x') == two


def test_a_template_in_either_form():
    papers = '*cls*_A_"b_c"_is:"D".A_"*sent_0*"_is:"*sep+*'
    assert parse_template(papers, '') == ' A "b c" is:"D".A "{text}" is:"'
    with pytest.raises(UserError, match=r"examples\.txt:2: 'no slot' must have one \{text\}"):
        parse_template('no slot', 'examples.txt:2')


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: Prompt('none'), r"prompt\.template: 'none' must have one \{text\}"),
        (lambda: Prompt('{text} {text}'), 'must have one'),
        (lambda: Representation(template='none'), '--template: '),
        (
            lambda: Representation('mean', demonstrations=(SWISS,)).prompt(),
            '--demonstration: there is no word to show',
        ),
        (
            lambda: demonstrations_of(['no word']),
            "--demonstration 'no word': a sentence, = and a word",
        ),
        (lambda: demonstrations_of(['a= ']), 'a sentence, = and a word'),
        (
            lambda: configured({'template': '', 'text_tokens': 32}),
            r'prompt\.text_tokens=32: goes with prompt\.template',
        ),
        (
            lambda: configured({'template': 'a {text}', 'text_tokens': -1}),
            r'prompt\.text_tokens=-1: must be 0 or more',
        ),
    ],
)
def test_mistakes_are_one_line(make, words):
    with pytest.raises(UserError, match=words):
        make()


def opt_tokenizer(folder: Path, **config) -> Path:
    """OPT's: bytes, with </s> (id 2) before each text."""
    files = {
        'tokenizer_config': OPT | {'tokenizer_class': 'GPT2Tokenizer'},
        'config': {'model_type': 'opt', 'bos_token_id': 2} | config,
    }
    return byte_level(folder, ['<s>', '<pad>', '</s>', '<unk>'], **files)


def llama_tokenizer(folder: Path, **options) -> Path:
    own = {
        'add_bos_token': True,
        'add_eos_token': False,
        'legacy': False,
        'tokenizer_class': 'LlamaTokenizer',
    } | options
    return pieces(folder, config={'model_type': 'llama', 'bos_token_id': 1}, tokenizer_config=own)


@pytest.mark.parametrize('kind', ['opt', 'llama'])
def test_ids_begin_once_and_have_no_end(tmp_path, kind):
    folder = opt_tokenizer(tmp_path) if kind == 'opt' else llama_tokenizer(tmp_path)
    ours, expected = opened(folder), read_golden('prompt_template').facts['ids'][kind]
    found = PromptTokenizer(ours, Prompt(PROMPTEOL, clean=True), ours.begin).encode(
        list(GOLDEN), 'x', 1000
    )
    for ids, string, theirs in zip(found, GOLDEN.values(), expected, strict=True):
        assert ids.dtype == np.int32 and ' '.join(map(str, ids)) == theirs
        if kind == 'llama':
            assert ids.tolist() == [
                1,
                *sentencepiece.SentencePieceProcessor(str(folder / 'tokenizer.model')).encode(
                    string
                ),
            ]
        else:
            library = tokenizers.ByteLevelBPETokenizer(
                str(folder / 'vocab.json'), str(folder / 'merges.txt')
            )
            assert ids.tolist() == [2, *library.encode(string).ids]
    (empty,) = PromptTokenizer(ours, Prompt('{text}'), ours.begin).encode([''], 'x', 9)
    assert empty.tolist() == [2 if kind == 'opt' else 1]


def test_the_beginning_of_a_text_is_that_of_the_tokenizer_or_else_of_the_model(tmp_path):
    around = {'add_bos_token': True, 'add_eos_token': True, 'bos_token': '<s>', 'eos_token': '</s>'}
    for number, (own, model, expected) in enumerate(
        [
            (around, 7, (0,)),  # an end that the tokenizer adds is left out
            ({}, 7, (7,)),
            ({'add_bos_token': False}, 7, ()),
            ({'bos_token': None}, 7, ()),  # Qwen
            ({}, None, ()),
            ({}, 999, ()),
        ]
    ):
        folder = byte_level(
            tmp_path / str(number),
            ['<s>', '<pad>', '</s>'],
            config={'bos_token_id': model, 'eos_token_id': 2},
            tokenizer_config=own,
        )
        ours = opened(folder)
        assert ours.begin == expected
        (ids,) = PromptTokenizer(ours, Prompt('{text}'), ours.begin).encode(['list'], 'x', 9)
        assert ids.tolist() == [*expected, *ours.pieces(['list'])[0]]


@pytest.mark.parametrize('kind', ['opt', 'llama'])
def test_the_text_is_cut_and_never_the_template(tmp_path, kind):
    ours = opened(opt_tokenizer(tmp_path) if kind == 'opt' else llama_tokenizer(tmp_path))
    text = 'list file 1234 Ünïcödé ' * 20
    prompted = PromptTokenizer(ours, Prompt(PROMPTEOL), ours.begin)
    around = prompted.around
    assert around == len(prompted.encode([''], 'x', 1000)[0])
    for limit in range(around, around + 25):
        (ids,) = prompted.encode([text], 'y', limit)
        read = ours.decode(ids.tolist()[1:])
        assert limit - 6 <= len(ids) <= limit  # a character cut in two is a sign of its own
        inside = read.removeprefix('This sentence : "').removesuffix('" means in one word:"')
        assert len(inside) == len(read) - len(PROMPTEOL) + 6 and text.startswith(
            inside.rstrip('\ufffd')
        )
    with pytest.raises(
        UserError, match=rf'the template .* takes {around} tokens, and the model reads {around - 1}'
    ):
        prompted.encode([text], 'x', around - 1)
    # In training: the ids of the raw text, cut, decoded and put into the template.
    (ids,) = PromptTokenizer(ours, Prompt(PROMPTEOL, text_tokens=7), ours.begin).encode(
        [text], 'x', 1000
    )
    assert ids.tolist() == [
        *ours.begin,
        *ours.pieces([PROMPTEOL.replace('{text}', ours.decode(ours.pieces([text])[0][:7]))])[0],
    ]


def test_names_of_special_tokens_come_back_from_their_ids(tmp_path):
    added = {'341': {'content': '[x]', 'special': True}}
    ours = opened(llama_tokenizer(tmp_path, added_tokens_decoder=added))
    for text in ['a [x] b</s> c', '<s>', '[x]', 'list file']:
        assert ours.decode(ours.pieces([text])[0]) == text


@pytest.fixture(scope='module')
def directories(tmp_path_factory) -> dict[str, Path]:
    """A random OPT (like the 350m one, with a projection at each end) and a random LLaMA."""
    folders = {'opt': opt_tokenizer, 'llama': llama_tokenizer}
    for kind, write_tokenizer in folders.items():
        folder = write_tokenizer(tmp_path_factory.mktemp(kind))
        folders[kind] = restore(read_golden('prompt_template').facts['models'][kind], folder)
    return folders


def strings_of(name: str) -> list[str]:
    """What a representation makes of the texts."""
    return [representation_of(name).prompt().fill(text) for text in TEXTS]


def representation_of(name: str) -> Representation:
    shown = (SWISS,) if name == 'prompteol' else ()
    return Representation(name, demonstrations=shown, clean=True)


@pytest.mark.parametrize(('kind', 'name'), VECTORS)
def test_vectors_are_those_of_transformers_padded_on_the_left(directories, kind, name):
    representation = representation_of(name)
    embed = load_embedder(str(directories[kind]), representation=representation)
    shown = representation.demonstrations
    assert strings_of(name)[1] == (
        'why ?'
        if name in ('mean', 'last')
        else Prompt(PROMPTEOL, demonstrations=shown).fill('why .')
    )
    expected = read_golden('prompt_template').arrays[f'{kind}/{name}']
    for side in 'xy':  # both sides are the same
        np.testing.assert_allclose(embed(TEXTS, side), expected, atol=1e-4)
    assert embed.settings['template'] == representation.prompt().template
    assert embed.settings['demonstrations'] == [list(pair) for pair in shown]
    assert bool(embed.settings['clean_up']) == (name == 'prompteol')
    assert ('mean' in embed.settings['pooling']) == (name == 'mean')
    json.dumps(embed.settings)


@pytest.mark.parametrize(
    ('change', 'options', 'words'),
    [
        (
            {},
            {'representation': Representation('prompteol'), 'pooling': 'mean'},
            '--pooling mean: a --representation',
        ),
        (
            {},
            {'representation': Representation(demonstrations=(SWISS,))},
            '--demonstration: give --representation prompteol',
        ),
        (
            {'is_causal': False},
            {'representation': Representation('last')},
            r'\(llama\) is no causal language model',
        ),
        ({}, {'representation': Representation('last'), 'fsdp': 3}, r'--fsdp 3: the 8 devices'),
    ],
)
def test_what_has_no_use_for_a_representation_is_refused(
    directories, tmp_path, change, options, words
):
    folder = tmp_path / 'model'
    folder.mkdir()
    for path in directories['llama'].iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').unlink()
    dumped(folder, config=config | change)
    with pytest.raises(UserError, match=words):
        load_embedder(str(folder), **options)
