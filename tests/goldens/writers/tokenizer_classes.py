"""Golden `tokenizer_classes`: ids of transformers' classes, from directories whose tokenizer.json
differs from what the class makes.
"""

import tempfile
from pathlib import Path

import transformers

from tests.goldens.golden import Golden
from tests.text.class_inputs import CASES, TEXTS, write_case

transformers.logging.set_verbosity_error()


def make() -> Golden:
    """Returns, for each case, the ids of all texts; those of a text are one string."""
    facts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            directory = write_case(case, Path(folder) / name)
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
            found = tokenizer(TEXTS)['input_ids']
            facts[name] = [' '.join(map(str, ids)) for ids in found]
    return Golden(facts)
