"""The files around a transformer that make it a model of sentence-transformers, in the layout that
all its versions read.

Versions from 5.4 on write shorter files, which those before, and text-embeddings-inference, cannot
read; they read these.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_jax.exporting.tokenizer import CLOSING, PADDING, Exported
from cpt_jax.storage.json_files import write_json

# Loading with an older version than the one that is named here makes it warn.
_VERSIONS = {'sentence_transformers': '2.2.2', 'transformers': '4.41.0', 'pytorch': '2.0.0'}
_POOLINGS = (
    'cls_token',
    'mean_tokens',
    'max_tokens',
    'mean_sqrt_len_tokens',
    'weightedmean_tokens',
    'lasttoken',
)
MODULES = ('Transformer', 'Pooling', 'Normalize')


def write_layout(directory: Path, tokenizer: Exported, width: int, max_tokens: int) -> None:
    """Writes all but config.json, the weights and README.md.

    Args:
      width: of the vectors.
      max_tokens: of a text, special tokens and prompt included.
    """
    paths = ['', '1_Pooling', '2_Normalize']
    for path in paths[1:]:
        (directory / path).mkdir(exist_ok=True)
    write_tokenizer(directory, tokenizer, max_tokens, {'eos_token': CLOSING, 'pad_token': PADDING})
    pooling = {f'pooling_mode_{name}': name == 'lasttoken' for name in _POOLINGS}
    contents: dict[str, Any] = {
        'modules.json': [
            {
                'idx': i,
                'name': str(i),
                'path': path,
                'type': f'sentence_transformers.models.{module}',
            }
            for i, (path, module) in enumerate(zip(paths, MODULES, strict=True))
        ],
        '1_Pooling/config.json': {
            'word_embedding_dimension': width,
            **pooling,
            'include_prompt': True,
        },
        'sentence_bert_config.json': {'max_seq_length': max_tokens, 'do_lower_case': False},
        'config_sentence_transformers.json': {
            'model_type': 'SentenceTransformer',
            '__version__': _VERSIONS,
            'prompts': tokenizer.prompts,
            'default_prompt_name': None,
            'similarity_fn_name': 'cosine',
        },
    }
    for name, content in contents.items():
        write_json(directory / name, content)
    (directory / '2_Normalize' / '.gitkeep').touch()  # git, and so a hub, holds no empty directory


def write_tokenizer(
    directory: Path, tokenizer: Exported, max_tokens: int, special: Mapping[str, str]
) -> None:
    """Writes tokenizer.json and the two files that name its special tokens.

    PreTrainedTokenizerFast takes tokenizer.json as it is, in every version; other classes make a
    post-processor of their own.
    """
    about = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': max_tokens,
        'padding_side': 'right',
        'truncation_side': 'right',
        **special,
        'clean_up_tokenization_spaces': False,
    }
    # One line for the vocabulary's hundred thousand.
    write_json(directory / 'tokenizer.json', tokenizer.content, indent=None)
    for name, content in {
        'tokenizer_config.json': about,
        'special_tokens_map.json': dict(special),
    }.items():
        write_json(directory / name, content)
