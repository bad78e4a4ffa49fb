"""Golden `pretrained_tokenizer`: ids of transformers' tokenizers, from directories without a
tokenizer.json.
"""

import tempfile
from pathlib import Path

import transformers

from tests.goldens.golden import Golden
from tests.text import test_pretrained_tokenizer as inputs

transformers.logging.set_verbosity_error()


def make() -> Golden:
    """Returns, for each case, the vocabulary size and the ids of all texts at each length limit."""
    facts = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in [*inputs.BYTE_LEVEL, *inputs.PIECES]:
            directory, texts = inputs.write_case_directory(case, Path(folder) / case)
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
            # Ids of a text are one string, so that the JSON has one line per text.
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
