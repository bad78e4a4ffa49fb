"""Files that make a transformers directory a sentence-transformers model, in a layout that all
versions of sentence-transformers read.

Versions from 5.4 on write a shorter form, which earlier versions and text-embeddings-inference
cannot read. The longer form written here is read by all of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_jax.exporting.tokenizer import CLOSING, PADDING, ExportedTokenizer
from cpt_jax.storage.json_files import write_json

# Versions older than the one named here print a warning when they load the model.
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


def write_layout(
    directory: Path, tokenizer: ExportedTokenizer, width: int, max_tokens: int
) -> None:
    """Writes all files except config.json, the weights and README.md.

    Args:
      directory: directory to write to.
      tokenizer: the converted tokenizer.
      width: int, dimensions of the vectors.
      max_tokens: int, maximum tokens of a text, including special tokens and prompt.
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
    # git, and so a model hub, does not store empty directories.
    (directory / '2_Normalize' / '.gitkeep').touch()


def write_tokenizer(
    directory: Path, tokenizer: ExportedTokenizer, max_tokens: int, special: Mapping[str, str]
) -> None:
    """Writes tokenizer.json, and the two files with its settings and special tokens.

    The class is PreTrainedTokenizerFast because it uses tokenizer.json unchanged in every version;
    other classes replace its post-processor.

    Args:
      directory: directory to write to.
      tokenizer: the converted tokenizer.
      max_tokens: int, maximum tokens of a text, including special tokens and prompt.
      special: special tokens, by transformers' names such as 'pad_token'.
    """
    settings = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': max_tokens,
        'padding_side': 'right',
        'truncation_side': 'right',
        **special,
        'clean_up_tokenization_spaces': False,
    }
    # Without indentation, because the vocabulary has up to 100,000 entries.
    write_json(directory / 'tokenizer.json', tokenizer.content, indent=None)
    write_json(directory / 'tokenizer_config.json', settings)
    write_json(directory / 'special_tokens_map.json', dict(special))
