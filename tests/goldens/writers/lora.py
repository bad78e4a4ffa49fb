"""Adapters of PEFT, and PEFT's results with ours."""

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
    write_ours,
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
    """Returns bases, adapters as PEFT writes them, checksums of ours, and states with each."""
    facts: dict = {'bases': {}, 'theirs': {}, 'ours': {}, 'adapted matrices': {}}
    arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        for case in CASES:
            folder = Path(temporary) / case
            write_base(case, folder / 'written')
            facts['bases'][case] = capture(folder / 'written')
            base = restore(facts['bases'][case], folder / 'base')
            arrays[f'base/{case}'] = states(transformers.AutoModel.from_pretrained(base).eval())
            write_theirs(case, base, folder / 'theirs written')
            facts['theirs'][case] = theirs = capture(folder / 'theirs written')
            theirs['files']['adapter_config.json']['base_model_name_or_path'] = 'base'
            arrays[f'theirs/{case}'] = states(adapted(base, restore(theirs, folder / 'theirs')))
            if case != 'gpt2':
                content = facts['bases'][case]['files']['config.json']
                (folder / 'ours').mkdir()
                write_ours(Base(base, content), folder / 'ours')
                model = adapted(base, folder / 'ours')
                arrays[f'ours/{case}'] = states(model)
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
    told = folder / 'adapter_config.json'
    # PEFT writes a set, in any order.
    content = capture(folder)['files']['adapter_config.json']
    content['target_modules'] = sorted(content['target_modules'])
    told.write_text(json.dumps(content))


def adapted(base: Path, adapter: Path):
    """Returns transformers' model of a base with an adapter, as PEFT loads it."""
    return peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(base), adapter
    ).eval()


def states(model) -> np.ndarray:
    """Returns float32[2, D]: at the ends of two texts."""
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.tensor(tokens().astype(np.int64))
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return np.stack([found[i, length - 1].numpy() for i, length in enumerate(LENGTHS)])
