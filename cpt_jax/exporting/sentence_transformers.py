"""Files that make a transformers directory a sentence-transformers model, in a layout that all
versions of sentence-transformers read.

Versions from 5.4 on write a shorter form, which earlier versions and text-embeddings-inference
cannot read. The longer form written here is read by all of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cpt_jax.exporting.tokenizer import ExportedTokenizer
from cpt_jax.model.config import EncoderConfig
from cpt_jax.model.dense import TORCH_ACTIVATIONS, Dense
from cpt_jax.model.pooling import POOLINGS
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
# Keys pooling_mode_... that differ from the names of modes.
_FLAG_OF_MODE = {'lasttoken': 'lasttoken', 'cls': 'cls_token', 'mean': 'mean_tokens'}
MODULES = ('Transformer', 'Pooling', 'Normalize')


def write_layout(
    directory: Path,
    tokenizer: ExportedTokenizer,
    encoder_config: EncoderConfig,
    max_tokens: int,
    dense: Sequence[Dense] = (),
) -> None:
    """Writes all files except config.json, the weights of the transformer and README.md.

    Args:
      directory: directory to write to.
      tokenizer: the converted tokenizer.
      encoder_config: architecture of the encoder, with its pooling.
      max_tokens: int, maximum tokens of a text, including special tokens and prompt.
      dense: layers between pooling and normalization.
    """
    modules = ['Transformer', 'Pooling', *['Dense'] * len(dense), 'Normalize']
    paths = ['', *(f'{i}_{module}' for i, module in enumerate(modules[1:], 1))]
    for path in paths[1:]:
        (directory / path).mkdir(exist_ok=True)
    for i, layer in enumerate(dense, 2):
        _write_dense(directory / paths[i], layer)
    write_tokenizer(directory, tokenizer, max_tokens, tokenizer.special_tokens)
    mode = _FLAG_OF_MODE[POOLINGS[encoder_config.pooling].mode]
    pooling = {f'pooling_mode_{name}': name == mode for name in _POOLINGS}
    contents: dict[str, Any] = {
        'modules.json': [
            {
                'idx': i,
                'name': str(i),
                'path': path,
                'type': f'sentence_transformers.models.{module}',
            }
            for i, (path, module) in enumerate(zip(paths, modules, strict=True))
        ],
        '1_Pooling/config.json': {
            'word_embedding_dimension': encoder_config.embedding_width,
            **pooling,
            'include_prompt': True,
        },
        'sentence_bert_config.json': {
            'max_seq_length': max_tokens,
            'do_lower_case': tokenizer.is_lowercased,
        },
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
    # Git does not store empty directories, and therefore neither does a model hub.
    (directory / paths[-1] / '.gitkeep').touch()


def _write_dense(folder: Path, layer: Dense) -> None:
    """Writes a Dense module in the form that all versions of sentence-transformers read."""
    weight = np.asarray(layer.dense_weight[...])
    tensors = {'linear.weight': weight}
    if layer.config.has_bias:
        tensors['linear.bias'] = np.asarray(layer.dense_bias[...])
    config = {
        'in_features': weight.shape[1],
        'out_features': weight.shape[0],
        'bias': layer.config.has_bias,
        'activation_function': TORCH_ACTIVATIONS[layer.activation],
    }
    write_json(folder / 'config.json', config)
    save_file(tensors, folder / 'model.safetensors')


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
        'truncation_side': 'left' if tokenizer.truncates_left else 'right',
        **special,
        'clean_up_tokenization_spaces': False,
    }
    # Without indentation, because the vocabulary has up to 100,000 entries.
    write_json(directory / 'tokenizer.json', tokenizer.content, indent=None)
    write_json(directory / 'tokenizer_config.json', settings)
    write_json(directory / 'special_tokens_map.json', dict(special))
