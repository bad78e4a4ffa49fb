"""A tokenizer.json has the ids of the class with which transformers reads it (kept in a golden)."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from cpt_jax.runtime.errors import UserError
from cpt_jax.text.pretrained_tokenizer import restore_tokenizer
from tests.goldens.golden import read_golden
from tests.text.class_inputs import CASES, TEXTS, Case, write_case
from tests.text.test_pretrained_tokenizer import open_directory


@pytest.mark.parametrize('name', CASES)
def test_ids_are_those_of_transformers(tmp_path, name):
    ours = open_directory(write_case(CASES[name], tmp_path))
    restored = restore_tokenizer(ours.file[1], ours.settings)  # in a run
    for tokenizer in (ours, restored):
        found = tokenizer.encode(TEXTS, 'x', 1000)
        for text, ids, expected in zip(
            TEXTS, found, read_golden('tokenizer_classes').facts[name], strict=True
        ):
            assert ' '.join(map(str, ids)) == (expected or '0'), text


def read_ids(folder: Path, text: str) -> list[int]:
    return open_directory(folder).encode([text], 'x', 1000)[0].tolist()


@pytest.mark.parametrize('name', ['gpt2, own begin token', 'llama', 'generic'])
def test_file_that_the_class_does_not_change_is_kept(tmp_path, name):
    folder = write_case(CASES[name], tmp_path)
    data = (folder / 'tokenizer.json').read_bytes()
    assert open_directory(folder).file[1] == data


def test_digits_are_split_as_in_tokenizer_json(tmp_path):
    """The class of transformers leaves the step out with which SmolLM2 was trained."""
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    split = {'pre_tokenizer': pre_tokenizers.Sequence(steps)}
    folder = write_case(Case('llama', split, {'tokenizer_class': 'GPT2Tokenizer'}), tmp_path)
    expected = Tokenizer.from_file(str(folder / 'tokenizer.json')).encode('a   12').ids
    assert read_ids(folder, 'a   12') == expected


def test_qwen2_has_its_own_class_whatever_is_named(tmp_path):
    """transformers 5.23 reads DeepSeek's distilled models so, which name LLaMA's class."""
    strips = {
        'pre_tokenizer': pre_tokenizers.ByteLevel(add_prefix_space=False),
        'normalizer': normalizers.Strip(),
    }
    for name, keeps_spaces in [
        ('LlamaTokenizerFast', True),
        ('Qwen2Tokenizer', True),
        ('PreTrainedTokenizerFast', False),  # as in our exports
    ]:
        path = tmp_path / name
        path.mkdir()
        folder = write_case(Case('qwen2', strips, {'tokenizer_class': name}), path)
        stripped, spaced = read_ids(folder, 'a'), read_ids(folder, '  a')
        assert (len(spaced) > len(stripped)) == keeps_spaces, name


def test_class_that_does_not_fit_the_file_is_refused(tmp_path):
    for name, changes, message in [
        (
            'mpnet',
            {'cls_token': '<x>'},
            r"no token '<x>' \(cls_token\), which the MPNetTokenizer of transformers puts around",
        ),
        (
            'xlm-roberta, lower',
            {'tokenizer_class': 'BertTokenizerFast'},
            'has a Unigram model, and the BertTokenizer of transformers a WordPiece model',
        ),
    ]:
        folder = write_case(CASES[name], tmp_path)
        path = folder / 'tokenizer_config.json'
        path.write_text(json.dumps(changes))
        with pytest.raises(UserError, match=message) as error:
            open_directory(folder)
        assert '\n' not in str(error.value)
        # What the message advises.
        path.write_text(json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast'}))
        open_directory(folder)
