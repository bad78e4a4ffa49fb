"""PromptEOL: strings and ids equal those of the paper's program, and vectors equal those of
transformers with left padding (ids and vectors are kept in a golden).
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
    parse_demonstrations,
    parse_prompt_section,
    parse_template,
)
from cpt_jax.text.prompt_tokenizer import PromptTokenizer
from tests.goldens.golden import read_golden, restore
from tests.text.test_pretrained_tokenizer import (
    OPT,
    open_directory,
    write_byte_level,
    write_json_files,
    write_sentencepiece,
)

TEXTS = ['he said "hi"', 'why ?', 'token list ' * 3, 'a_b']
VECTORS = ('opt', 'prompteol'), ('llama', 'prompteol'), ('opt', 'mean'), ('llama', 'last')
SWISS = ('relating to switzerland or its people.', 'Swiss')
# Text -> string that the model reads in evaluation.
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


def fill_as_in_paper(template: str, text: str, clean: bool = True) -> str:
    """Returns the string that evaluation.py of kongds/scaling_sentemb makes, after SentEval has
    joined the words of the text by single spaces.
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
def test_strings_equal_those_of_the_paper(text):
    template = 'This_sentence_:_"*sent_0*"_means_in_one_word:"'
    expected = GOLDEN[text]
    assert Prompt(PROMPTEOL, clean=True).fill(text) == expected
    assert fill_as_in_paper(template, text) == expected
    assert Prompt(template).fill(text) == fill_as_in_paper(template, text, clean=False)


def test_clean_up_applies_its_steps_in_order():
    """A final quotation mark counts as an end before it is replaced; a ? before it stays."""
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
    labels = parse_demonstrations(['a fine film=positive', '1 = 2, dull=negative'])
    two = (
        'This sentence: "a fine film" means positive.This sentence: "1 = 2, dull" means '
        'negative.This sentence: "x" means'
    )
    assert Representation('prompt', demonstrations=labels).make_prompt().fill('x') == two


def test_both_forms_of_a_template_are_parsed():
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
            lambda: Representation('mean', demonstrations=(SWISS,)).make_prompt(),
            r'--demonstration: the template \{text\} has no place for the word',
        ),
        (
            lambda: parse_demonstrations(['no word']),
            "--demonstration 'no word': expected a sentence, = and a word",
        ),
        (lambda: parse_demonstrations(['a= ']), 'a sentence, = and a word'),
        (
            lambda: parse_prompt_section({'template': '', 'text_tokens': 32}),
            r'prompt\.text_tokens=32: goes with prompt\.template',
        ),
        (
            lambda: parse_prompt_section({'template': 'a {text}', 'text_tokens': -1}),
            r'prompt\.text_tokens=-1: must be 0 or more',
        ),
    ],
)
def test_invalid_prompt_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def write_opt_tokenizer(folder: Path, **config) -> Path:
    """Writes a tokenizer like OPT's: byte-level BPE with </s> (id 2) before each text."""
    files = {
        'tokenizer_config': OPT | {'tokenizer_class': 'GPT2Tokenizer'},
        'config': {'model_type': 'opt', 'bos_token_id': 2} | config,
    }
    return write_byte_level(folder, ['<s>', '<pad>', '</s>', '<unk>'], **files)


def write_llama_tokenizer(folder: Path, **options) -> Path:
    """Writes a tokenizer like LLaMA's: a sentencepiece model with <s> (id 1) before each text."""
    tokenizer_config = {
        'add_bos_token': True,
        'add_eos_token': False,
        'legacy': False,
        'tokenizer_class': 'LlamaTokenizer',
    } | options
    return write_sentencepiece(
        folder,
        config={'model_type': 'llama', 'bos_token_id': 1},
        tokenizer_config=tokenizer_config,
    )


@pytest.mark.parametrize('kind', ['opt', 'llama'])
def test_ids_have_one_bos_and_no_eos(tmp_path, kind):
    folder = write_opt_tokenizer(tmp_path) if kind == 'opt' else write_llama_tokenizer(tmp_path)
    ours = open_directory(folder)
    expected = read_golden('prompt_template').facts['ids'][kind]
    found = PromptTokenizer(ours, Prompt(PROMPTEOL, clean=True), ours.bos_ids).encode(
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
    (empty,) = PromptTokenizer(ours, Prompt('{text}'), ours.bos_ids).encode([''], 'x', 9)
    assert empty.tolist() == [2 if kind == 'opt' else 1]


def test_bos_comes_from_the_tokenizer_or_else_from_the_model(tmp_path):
    both = {'add_bos_token': True, 'add_eos_token': True, 'bos_token': '<s>', 'eos_token': '</s>'}
    for number, (tokenizer_config, bos_token_id, expected) in enumerate(
        [
            (both, 7, (0,)),  # the EOS that the tokenizer would add is left out
            ({}, 7, (7,)),
            ({'add_bos_token': False}, 7, ()),
            ({'bos_token': None}, 7, ()),  # Qwen
            ({}, None, ()),
            ({}, 999, ()),
        ]
    ):
        folder = write_byte_level(
            tmp_path / str(number),
            ['<s>', '<pad>', '</s>'],
            config={'bos_token_id': bos_token_id, 'eos_token_id': 2},
            tokenizer_config=tokenizer_config,
        )
        ours = open_directory(folder)
        assert ours.bos_ids == expected
        (ids,) = PromptTokenizer(ours, Prompt('{text}'), ours.bos_ids).encode(['list'], 'x', 9)
        assert ids.tolist() == [*expected, *ours.encode_plain(['list'])[0]]


@pytest.mark.parametrize('kind', ['opt', 'llama'])
def test_only_the_text_is_truncated_not_the_template(tmp_path, kind):
    folder = write_opt_tokenizer(tmp_path) if kind == 'opt' else write_llama_tokenizer(tmp_path)
    ours = open_directory(folder)
    text = 'list file 1234 Ünïcödé ' * 20
    prompted = PromptTokenizer(ours, Prompt(PROMPTEOL), ours.bos_ids)
    template_length = prompted.template_length
    assert template_length == len(prompted.encode([''], 'x', 1000)[0])
    for limit in range(template_length, template_length + 25):
        (ids,) = prompted.encode([text], 'y', limit)
        read = ours.decode(ids.tolist()[1:])
        assert limit - 6 <= len(ids) <= limit  # a split character has an id of its own
        inside = read.removeprefix('This sentence : "').removesuffix('" means in one word:"')
        assert len(inside) == len(read) - len(PROMPTEOL) + len('{text}')
        assert text.startswith(inside.rstrip('\ufffd'))
    with pytest.raises(
        UserError,
        match=rf'the template .* takes {template_length} tokens, and the model reads '
        f'{template_length - 1}',
    ):
        prompted.encode([text], 'x', template_length - 1)
    # In training, the ids of the raw text are truncated, decoded and put into the template.
    limited = PromptTokenizer(ours, Prompt(PROMPTEOL, text_tokens=7), ours.bos_ids)
    (ids,) = limited.encode([text], 'x', 1000)
    truncated = ours.decode(ours.encode_plain([text])[0][:7])
    (expected,) = ours.encode_plain([PROMPTEOL.replace('{text}', truncated)])
    assert ids.tolist() == [*ours.bos_ids, *expected]


def test_decode_restores_the_names_of_special_tokens(tmp_path):
    added = {'341': {'content': '[x]', 'special': True}}
    ours = open_directory(write_llama_tokenizer(tmp_path, added_tokens_decoder=added))
    for text in ['a [x] b</s> c', '<s>', '[x]', 'list file']:
        assert ours.decode(ours.encode_plain([text])[0]) == text


@pytest.fixture(scope='module')
def directories(tmp_path_factory) -> dict[str, Path]:
    """Directories of a random OPT (with projections at both ends, like OPT-350m) and LLaMA."""
    folders = {'opt': write_opt_tokenizer, 'llama': write_llama_tokenizer}
    for kind, write_tokenizer in folders.items():
        folder = write_tokenizer(tmp_path_factory.mktemp(kind))
        folders[kind] = restore(read_golden('prompt_template').facts['models'][kind], folder)
    return folders


def fill_templates(name: str) -> list[str]:
    """Returns the strings that a representation makes from TEXTS."""
    return [make_representation(name).make_prompt().fill(text) for text in TEXTS]


def make_representation(name: str) -> Representation:
    shown = (SWISS,) if name == 'prompteol' else ()
    return Representation(name, demonstrations=shown, clean=True)


@pytest.mark.parametrize(('kind', 'name'), VECTORS)
def test_vectors_equal_those_of_transformers_with_left_padding(directories, kind, name):
    representation = make_representation(name)
    embed = load_embedder(str(directories[kind]), representation=representation)
    shown = representation.demonstrations
    assert fill_templates(name)[1] == (
        'why ?'
        if name in ('mean', 'last')
        else Prompt(PROMPTEOL, demonstrations=shown).fill('why .')
    )
    expected = read_golden('prompt_template').arrays[f'{kind}/{name}']
    for side in 'xy':  # both sides have the same template
        np.testing.assert_allclose(embed(TEXTS, side), expected, atol=1e-4)
    assert embed.settings['template'] == representation.make_prompt().template
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
            '--demonstration: needs a template; give --representation prompteol',
        ),
        (
            {'is_causal': False},
            {'representation': Representation('last')},
            r'\(llama\) is not a causal language model',
        ),
        (
            {},
            {'representation': Representation('last'), 'fsdp': 3},
            r'--fsdp 3: the number of devices, 8, is not a multiple',
        ),
    ],
)
def test_unsuitable_representation_is_refused(directories, tmp_path, change, options, words):
    folder = tmp_path / 'model'
    folder.mkdir()
    for path in directories['llama'].iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').unlink()
    write_json_files(folder, config=config | change)
    with pytest.raises(UserError, match=words):
        load_embedder(str(folder), **options)
