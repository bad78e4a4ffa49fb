"""Lines that say what an embedder was loaded with, for the start of a program."""

from collections.abc import Sequence
from pathlib import Path

from cpt_jax.embed.embedder import Embedder
from cpt_jax.model.pooling import POOLINGS
from cpt_jax.origin.pretrained import Pretrained
from cpt_jax.text.pretrained_tokenizer import PretrainedTokenizer
from cpt_jax.text.prompt_tokenizer import PromptTokenizer, TextTokenizer

_SHOWN_NAMES = 4  # of tensors or files
_SHOWN_TEXT = 60  # characters of a prompt or template


def summarize_embedder(
    embedder: Embedder, tokenizer: TextTokenizer, model: Pretrained | None = None
) -> list[str]:
    """Returns one line a property of a loaded model.

    Args:
      embedder: the embedder.
      tokenizer: its tokenizer.
      model: the pretrained directory that it comes from; None for a run.
    """
    settings = embedder.settings
    rows = {
        'model': embedder.model_name,
        'files': _describe_files(model.files.paths) if model else '',
        'pooling': _describe_pooling(embedder, model),
        'prompts': _describe_prompts(tokenizer),
        'tokens': _describe_special_tokens(tokenizer),
        'lengths': f'x up to {settings["max_tokens_x"]:,} tokens, y up to '
        f'{settings["max_tokens_y"]:,}; longer texts: truncated at the {settings["truncation"]}',
        'similarity': _describe_similarity(model),
        'passed over': _shorten(model.passed_over) if model else '',
        'WARNING': '; '.join(model.find_warnings()) if model else '',
    }
    width = max(map(len, rows))
    return [f'{name:>{width}}  {text}' for name, text in rows.items() if text]


def _describe_files(paths: Sequence[Path]) -> str:
    size = sum(path.stat().st_size for path in paths)
    return f'{_shorten([path.name for path in paths])} ({size / 1e6:,.1f} MB)'


def _describe_pooling(embedder: Embedder, model: Pretrained | None) -> str:
    pooling = POOLINGS[embedder.encoder.config.pooling].description
    if model and model.has_pooler:
        return f"{pooling}, then the model's pooler"
    if unpooled := embedder.settings.get('unpooled_prompt'):
        pooling += f', without the first {unpooled["x"]} tokens of x and {unpooled["y"]} of y'
    modules = [f'{layer.config.width}' for layer in embedder.dense]
    return f'{pooling}, then Dense to {", ".join(modules)}' if modules else pooling


def _describe_prompts(tokenizer: TextTokenizer) -> str:
    if isinstance(tokenizer, PromptTokenizer):
        return f'template {_cut(tokenizer.prompt.template)}'
    if isinstance(tokenizer, PretrainedTokenizer) and any(tokenizer.prompts.values()):
        return ', '.join(f'{side} {_cut(text)}' for side, text in tokenizer.prompts.items())
    return 'none'


def _describe_special_tokens(tokenizer: TextTokenizer) -> str:
    if isinstance(tokenizer, PromptTokenizer):
        begin = _name_tokens(tokenizer, tokenizer.bos_ids)
        return f'texts begin with {begin} and end with the template'
    if isinstance(tokenizer, PretrainedTokenizer):
        begin = _name_tokens(tokenizer, tokenizer.opening_ids)
        end = _name_tokens(tokenizer, tokenizer.closing_ids)
        return f'texts begin with {begin} and end with {end} ({tokenizer.source})'
    return 'texts are enclosed in delimiters'


def _name_tokens(tokenizer: PromptTokenizer | PretrainedTokenizer, ids: Sequence[int]) -> str:
    return ' '.join(repr(tokenizer.decode([i])) for i in ids) or 'no special token'


def _describe_similarity(model: Pretrained | None) -> str:
    if model is None or model.similarity == 'cosine':
        return 'cosine (vectors are normalized)'
    if model.is_normalized:
        return 'dot product of vectors that the model normalizes'
    return 'dot product (vectors are not normalized)'


def _shorten(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ', '.join(names[:_SHOWN_NAMES]) + (f' and {more} more' if more > 0 else '')


def _cut(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_TEXT else f'{text[:_SHOWN_TEXT]}...')
