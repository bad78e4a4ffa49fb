"""Golden `lora`: adapters written by PEFT, and results of PEFT with our adapters."""

import json
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from tests.goldens.golden import Golden, capture, restore
from tests.model.adapters.lora_inputs import (
    LENGTHS,
    VOCABULARY,
    Base,
    checksums,
    tokens,
    write_our_adapter,
)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'hidden_size': 64,
    'vocab_size': VOCABULARY,
    'max_position_embeddings': 40,
}
CASES = {
    'llama': (
        'Llama',
        SIZES | {'intermediate_size': 128, 'num_key_value_heads': 2},
        ['q_proj', 'v_proj', 'o_proj', 'gate_proj', 'down_proj'],
    ),
    'opt': (
        'OPT',
        SIZES | {'ffn_dim': 128, 'word_embed_proj_dim': 64},
        ['k_proj', 'out_proj', 'fc1', 'fc2'],
    ),
    'gpt2': (
        'GPT2',
        {'n_embd': 64, 'n_layer': 2, 'n_head': 4, 'n_positions': 40, 'vocab_size': VOCABULARY},
        ['c_attn', 'c_proj', 'c_fc'],
    ),
}


def make() -> Golden:
    """Returns bases, adapters written by PEFT, checksums of our adapters, and states with each."""
    facts: dict = {'bases': {}, 'theirs': {}, 'ours': {}, 'adapted matrices': {}}
    arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        for case in CASES:
            folder = Path(temporary) / case
            write_base(case, folder / 'written')
            facts['bases'][case] = capture(folder / 'written')
            base = restore(facts['bases'][case], folder / 'base')
            arrays[f'base/{case}'] = compute_states(
                transformers.AutoModel.from_pretrained(base).eval()
            )
            write_theirs(case, base, folder / 'theirs written')
            theirs = capture(folder / 'theirs written')
            facts['theirs'][case] = theirs
            theirs['files']['adapter_config.json']['base_model_name_or_path'] = 'base'
            arrays[f'theirs/{case}'] = compute_states(
                load_adapted(base, restore(theirs, folder / 'theirs'))
            )
            if case != 'gpt2':
                content = facts['bases'][case]['files']['config.json']
                (folder / 'ours').mkdir()
                write_our_adapter(Base(base, content), folder / 'ours')
                model = load_adapted(base, folder / 'ours')
                arrays[f'ours/{case}'] = compute_states(model)
                facts['ours'][case] = checksums(folder / 'ours')
                names = [name for name, _ in model.named_modules()]
                facts['adapted matrices'][case] = sum('lora_A.default' in name for name in names)
    return Golden(facts, arrays)


def write_base(case: str, folder: Path) -> None:
    name, sizes, _ = CASES[case]
    config = getattr(transformers, f'{name}Config')(**sizes)
    getattr(transformers, f'{name}Model')(config).save_pretrained(folder)


def write_theirs(case: str, base: Path, folder: Path) -> None:
    targets = CASES[case][2]
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=targets,
        fan_in_fan_out=case == 'gpt2',
        alpha_pattern={targets[1]: 3},
        use_rslora=case == 'opt',
    )
    peft.get_peft_model(transformers.AutoModel.from_pretrained(base), config).save_pretrained(
        folder
    )
    path = folder / 'adapter_config.json'
    # PEFT writes a set, in arbitrary order.
    content = capture(folder)['files']['adapter_config.json']
    content['target_modules'] = sorted(content['target_modules'])
    path.write_text(json.dumps(content))


def load_adapted(base: Path, adapter: Path):
    """Returns the model of a base with an adapter, loaded by transformers and PEFT."""
    return peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(base), adapter
    ).eval()


def compute_states(model) -> np.ndarray:
    """Returns the hidden states of the last tokens of two texts, float32[2, D]."""
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.tensor(tokens().astype(np.int64))
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return np.stack([found[i, length - 1].numpy() for i, length in enumerate(LENGTHS)])
