"""Ids of transformers' tokenizers, of directories without a tokenizer.json."""

import tempfile
from pathlib import Path

import transformers

from tests.goldens.golden import Golden
from tests.text import test_pretrained_tokenizer as inputs

transformers.logging.set_verbosity_error()


def make() -> Golden:
    """Returns, for each case, the vocabulary's size and the ids of all texts, whole and cut."""
    facts = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in [*inputs.BYTE_LEVEL, *inputs.PIECES]:
            directory, texts = inputs.directory_of(case, Path(folder) / case)
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
            # One line of numbers for each text.
            facts[case] = {'ids': len(tokenizer)} | {
                f'{side} {limit}': [
                    ' '.join(map(str, ids))
                    for ids in tokenizer(
                        [prompt + text for text in texts], truncation=True, max_length=limit
                    )['input_ids']
                ]
                for limit in inputs.LIMITS
                for side, prompt in inputs.PROMPTS.items()
            }
    return Golden(facts)
