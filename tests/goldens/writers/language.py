"""Golden `language`: next-token losses of transformers' language models.

The models are in transformers' own files and in llama2.c's.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.goldens.golden import Golden, capture, restore
from tests.goldens.writers.families import GPT, OPT, SMALL
from tests.model import llama2c_inputs
from tests.model.family_inputs import VOCABULARY, language_texts

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

CASES = {
    'gpt2': ('GPT2LMHeadModel', 'GPT2', GPT),
    'llama': (
        'LlamaForCausalLM',
        'Llama',
        SMALL | {'num_key_value_heads': 2, 'tie_word_embeddings': True},
    ),
    'opt 350m': (
        'OPTForCausalLM',
        'OPT',
        OPT | {'word_embed_proj_dim': 10, 'do_layer_norm_before': False},
    ),
}


def make() -> Golden:
    """Returns a directory for each case, and losses and hidden states of its texts."""
    facts: dict = {'cases': {}, 'llama2c': {}}
    arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        for case, (kind, config, sizes) in CASES.items():
            config = getattr(transformers, f'{config}Config')(vocab_size=VOCABULARY, **sizes)
            written = Path(temporary) / case
            getattr(transformers, kind)(config).save_pretrained(written)
            facts['cases'][case] = capture(written)
            folder = restore(facts['cases'][case], Path(temporary) / f'{case}, drawn')
            model = getattr(transformers, kind).from_pretrained(folder).eval()
            arrays[case] = np.concatenate(
                [compute_losses(model, text) for text in language_texts()]
            )
        for tied in (True, False):
            case = 'tied' if tied else 'head'
            written = Path(temporary) / case
            transformers.LlamaForCausalLM(make_llama_config(tied)).save_pretrained(written)
            facts['llama2c'][case] = capture(written)['tensors']['model.safetensors']
            folder = restore(capture(written), Path(temporary) / f'{case}, drawn')
            model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
            texts = llama2c_inputs.texts()
            arrays[f'llama2c/{case}/states'] = np.concatenate(
                [compute_states(model, t) for t in texts]
            )
            arrays[f'llama2c/{case}/losses'] = np.concatenate(
                [compute_losses(model, t) for t in texts]
            )
            arrays[f'llama2c/{case}/last'] = np.stack(
                [compute_states(model, ids)[-1] for ids in llama2c_inputs.embedded_ids()]
            )
    return Golden(facts, arrays)


def make_llama_config(tied: bool) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=llama2c_inputs.VOCABULARY,
        max_position_embeddings=llama2c_inputs.LENGTH,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        **llama2c_inputs.SIZES,
    )


def compute_states(model, text: np.ndarray) -> np.ndarray:
    """Returns the hidden states of one text, float32[length, D]."""
    with torch.no_grad():
        return model.model(torch.tensor(text[None].astype(np.int64))).last_hidden_state[0].numpy()


def compute_losses(model, text: np.ndarray) -> np.ndarray:
    """Returns the loss of each token given those before it, float32[length]; 0 for the first."""
    ids = torch.tensor(text[None].astype(np.int64))
    with torch.no_grad():
        logits = model(ids).logits[0]
    after = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction='none').numpy()
    return np.concatenate([np.zeros(1, np.float32), after])
