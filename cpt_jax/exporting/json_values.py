"""The types of values in the JSON files of a model directory, for `--check`."""

from collections.abc import Mapping
from typing import Any

from cpt_jax.model.families.config_keys import CONFIG_KEYS
from cpt_jax.origin.sentence_transformers import SENTENCE_KEYS
from cpt_jax.storage.json_checks import OBJECT, TEXT, Allowed, allow_null, format_value
from cpt_jax.text.tokenizer_files import TOKENIZER_KEYS

_ALLOWED: dict[str, Mapping[str, Allowed]] = {
    'config.json': CONFIG_KEYS,
    'sentence_bert_config.json': SENTENCE_KEYS,
    'tokenizer_config.json': TOKENIZER_KEYS,
    # The values of `prompts` have a check of their own.
    'config_sentence_transformers.json': {
        'prompts': allow_null(OBJECT),
        'default_prompt_name': allow_null(TEXT),
    },
}
_POOLING_KEYS = {'pooling_mode': TEXT}


def find_wrong_values(name: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Returns key -> what is wrong with its value, for each value of a wrong type.

    Args:
      name: path of the file in the directory.
      content: its content.
    """
    allowed = _ALLOWED.get(name, _POOLING_KEYS if name.endswith('/config.json') else {})
    return {
        key: f'is {format_value(content[key])}, but must be {values.description}'
        for key, values in allowed.items()
        if key in content and not values.accepts(content[key])
    }
