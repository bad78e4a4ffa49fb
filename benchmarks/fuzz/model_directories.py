"""Tiny model directories with damaged JSON files.

Where transformers and sentence-transformers read a directory, its vectors must be theirs. Where
they refuse it, or are not installed, a value of another type must not be read as another model. A
value of the right type, a missing key with a default, or a flipped bit in a number describe another
model for every reader; its vectors must be unit vectors.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from fuzz.outcome import Outcome, choose_value, damage_bytes, judge
from fuzz.transformers_vectors import embed_with_transformers, is_installed

if TYPE_CHECKING:
    import numpy as np

WORDS = 'open', 'read', 'file', 'path', 'list', 'sort', 'value', 'index', 'error', 'batch'
TEXTS = 'open the file', 'sort a list', 'a open ' * 30  # the last one is truncated
ROWS = 2 + len(WORDS)
MODULES = ('', 'Transformer'), ('1_Pooling', 'Pooling'), ('2_Normalize', 'Normalize')
MODES = 'cls_token', 'mean_tokens', 'lasttoken'
CONFIGS: dict[str, dict[str, Any]] = {
    'bert': {
        'model_type': 'bert', 'vocab_size': ROWS, 'hidden_size': 8, 'num_hidden_layers': 2,
        'num_attention_heads': 2, 'intermediate_size': 16, 'max_position_embeddings': 32,
        'type_vocab_size': 2, 'layer_norm_eps': 1e-12, 'hidden_act': 'gelu',
        'position_embedding_type': 'absolute', 'pad_token_id': 0,
    },
    'gpt2': {
        'model_type': 'gpt2', 'vocab_size': ROWS, 'n_embd': 8, 'n_layer': 2, 'n_head': 2,
        'n_positions': 32, 'n_inner': None, 'layer_norm_epsilon': 1e-5,
        'activation_function': 'gelu_new', 'tie_word_embeddings': True, 'eos_token_id': 1,
    },
    'llama': {
        'model_type': 'llama', 'vocab_size': ROWS, 'hidden_size': 8, 'num_hidden_layers': 2,
        'num_attention_heads': 2, 'num_key_value_heads': 1, 'intermediate_size': 16,
        'max_position_embeddings': 32, 'rms_norm_eps': 1e-6, 'hidden_act': 'silu',
        'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 10_000.0, 'factor': 4.0,
                            'low_freq_factor': 1.0, 'high_freq_factor': 2.0,
                            'original_max_position_embeddings': 16},
        'attention_bias': False, 'bos_token_id': 1, 'eos_token_id': 1,
    },
    'gemma3_text': {
        'model_type': 'gemma3_text', 'vocab_size': ROWS, 'hidden_size': 8, 'num_hidden_layers': 2,
        'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 4, 'intermediate_size': 16,
        'max_position_embeddings': 32, 'rms_norm_eps': 1e-6, 'query_pre_attn_scalar': 4,
        'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention'],
        'rope_parameters': {'full_attention': {'rope_type': 'default', 'rope_theta': 1e6},
                            'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4}},
        'use_bidirectional_attention': False,
    },
}  # fmt: skip


def fuzz_models(
    random: Random, folder: Path, count: int, embed_changed: bool = True
) -> Iterator[Outcome]:
    """Yields the outcome of each of `count` directories.

    Args:
      random: source of the damages.
      folder: an empty folder.
      count: number of directories.
      embed_changed: whether to embed texts with models whose description changed, which compiles a
        program for each, and to compare vectors with those of transformers if it is installed.
    """
    from cpt_jax.exporting.check import check
    from cpt_jax.runtime.errors import UserError

    originals = [make_directory(kind, folder / kind) for kind in CONFIGS]
    originals.append(make_adapter(folder / 'llama', folder / 'lora'))
    described = {original: _describe(original) for original in originals}
    undamaged = {original: _embed(original) for original in originals if embed_changed}
    for number in range(count):
        original = random.choice(originals)
        copy = folder / 'damaged'
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        damage, is_other_type = _damage(random, copy)

        def read(original=original, copy=copy, is_other_type=is_other_type) -> str:
            with contextlib.suppress(UserError):
                check(copy)  # launch/export.py --check
            found = _describe(copy)
            is_same = found == described[original]
            expected = None
            if embed_changed and is_installed():
                base = folder / 'llama' if original.name == 'lora' else copy
                expected = embed_with_transformers(copy, base, TEXTS)
            if expected is None and not is_same and is_other_type:
                return f'read as another model: {found} instead of {described[original]}'
            if not embed_changed or (is_same and expected is None):
                return ''
            return _compare_vectors(undamaged[original] if is_same else _embed(copy), expected)

        yield judge('model', f'directory {number}, {original.name}, {damage}', read)


def _compare_vectors(vectors: 'np.ndarray', expected: 'np.ndarray | None') -> str:
    """Returns what is wrong with the vectors of a directory, '' for nothing.

    Args:
      vectors: vectors of TEXTS.
      expected: those of transformers; None if it has none.
    """
    import numpy as np

    if not np.isfinite(vectors).all():
        return '' if expected is not None and not np.isfinite(expected).all() else 'not finite'
    if expected is not None:
        if expected.shape != vectors.shape:
            return f'vectors have {vectors.shape[1]} dimensions, and {expected.shape[1]} elsewhere'
        largest = np.abs(vectors - expected).max()
        return '' if largest < 1e-4 else f'vectors differ by {largest:.2g} from transformers'
    lengths = np.linalg.norm(vectors, axis=1)
    return '' if np.allclose(lengths, 1, atol=1e-3) else f'vectors of lengths {lengths}'


def make_directory(kind: str, folder: Path) -> Path:
    """Writes a model of a family with random weights and a tokenizer of a few words."""
    import jax
    import numpy as np
    import tokenizers
    from flax import nnx
    from safetensors.numpy import save_file

    from cpt_jax.model.config import EncoderConfig
    from cpt_jax.model.encoder import Encoder
    from cpt_jax.model.families.known import FAMILIES
    from cpt_jax.model.families.write import iterate_tensors
    from cpt_jax.runtime.mesh import make_mesh

    folder.mkdir()
    config = CONFIGS[kind]
    family = FAMILIES[kind]
    encoder_config = EncoderConfig(vocab_size=ROWS, **family.shape(config))
    random = np.random.default_rng(0)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        shapes = jax.eval_shape(lambda: Encoder(encoder_config, nnx.Rngs(0)))
    encoder = jax.tree.map(
        lambda leaf: jax.numpy.asarray(random.normal(0, 0.2, leaf.shape), 'float32'), shapes
    )
    tensors = dict(iterate_tensors(family, encoder, ROWS))
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    ids = {word: index for index, word in enumerate(['<pad>', '<unk>', *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token='<unk>'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / 'tokenizer.json'))
    files: dict[str, Any] = {
        'config.json': config,
        'tokenizer_config.json': {
            'model_max_length': 24, 'pad_token': '<pad>', 'unk_token': '<unk>',
            'tokenizer_class': 'PreTrainedTokenizerFast',
        },
    }  # fmt: skip
    if kind in ('bert', 'gemma3_text'):
        pooling = {f'pooling_mode_{mode}': mode == 'mean_tokens' for mode in MODES}
        files |= {
            'modules.json': [
                {
                    'idx': i, 'name': str(i), 'path': path,
                    'type': f'sentence_transformers.models.{module}',
                }
                for i, (path, module) in enumerate(MODULES)
            ],
            '1_Pooling/config.json': {'word_embedding_dimension': 8, **pooling},
            'sentence_bert_config.json': {'max_seq_length': 20, 'do_lower_case': False},
            'config_sentence_transformers.json': {
                'prompts': {'query': 'open ', 'document': ''}, 'default_prompt_name': None,
            },
        }  # fmt: skip
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2))
    return folder


def make_adapter(base: Path, folder: Path) -> Path:
    """Writes a LoRA adapter of a LLaMA directory in PEFT's format, with random weights."""
    import numpy as np

    from cpt_jax.model.adapters.peft import write_adapter
    from cpt_jax.model.config import EncoderConfig
    from cpt_jax.model.families.known import FAMILIES

    folder.mkdir()
    family = FAMILIES['llama']
    config = EncoderConfig(vocab_size=ROWS, **family.shape(CONFIGS['llama']))
    random = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape).astype('float32')

    heads = config.heads, config.head_width
    layers = [(draw(config.width, 2), draw(2, *heads)) for _ in range(config.layers)]
    keys = {'base_model_name_or_path': str(base), 'r': 2, 'lora_alpha': 4, 'lora_dropout': 0.0}
    write_adapter(folder, family, config, keys, {'attention.query': layers})
    return folder


def _describe(directory: Path) -> str:
    """Returns everything that a model's vectors depend on besides the weights, as text."""
    from cpt_jax.origin.pretrained import open_pretrained

    model = open_pretrained(str(directory))
    ids = [model.tokenizer.encode(['', *TEXTS], side, model.max_tokens) for side in 'xy']
    shape = {
        key: float(value) if _is_number(value) else value for key, value in model.shape.items()
    }
    plain = [[list(map(int, text)) for text in side] for side in ids]
    return repr((sorted(shape.items()), model.rows, model.tokenizer.prompts, plain))


def _embed(directory: Path) -> Any:
    from cpt_jax.embed.load import load_embedder

    return load_embedder(str(directory))(list(TEXTS), 'x')


def _damage(random: Random, folder: Path) -> tuple[str, bool]:
    """Damages a JSON file of a directory.

    Returns:
      A description, and whether a value was replaced by one of another type.
    """
    path = random.choice(sorted(folder.rglob('*.json')))
    name = path.relative_to(folder).as_posix()
    choice = random.random()
    if choice < 0.15:
        data = random.choice(
            [b'', b'[]', b'{}', b'3', b'null', b'"x"', b'[' * 9999, b'\xff', b'[{}]']
        )
        path.write_bytes(data)
        return f'{name} is {data[:20]!r}', False
    if choice < 0.3:
        path.write_bytes(damage_bytes(random, path.read_bytes()))
        return f'{name} is damaged', False
    if choice < 0.33:
        path.unlink()
        path.mkdir()
        return f'{name} is a directory', False
    content = json.loads(path.read_text())
    node, key = _choose_place(random, content)
    if choice < 0.43:
        del node[key]
        path.write_text(json.dumps(content))
        return f'{name} lacks {key!r}', False
    before = node[key]
    node[key] = choose_value(random)
    path.write_text(json.dumps(content))
    is_other_type = _get_type(before) != _get_type(node[key]) and None not in (before, node[key])
    return f'{name}: {key}={node[key]!r:.40}', is_other_type and name != 'tokenizer.json'


def _choose_place(random: Random, content: Any) -> tuple[Any, Any]:
    """Returns a random place in a JSON value: an object or list, and a key of it."""
    node = content
    while True:
        key = random.choice([*node]) if isinstance(node, Mapping) else random.randrange(len(node))
        below = node[key]
        if not isinstance(below, dict | list) or not below or random.random() < 0.3:
            return node, key
        node = below


def _get_type(value: object) -> str:
    return 'number' if _is_number(value) else type(value).__name__


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
