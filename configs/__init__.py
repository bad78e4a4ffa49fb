"""Configs of the experiments. base.py sets every key; the other files override some.

A file's get_config may take an argument, given as FILE.py:ARGUMENT. Its ARGUMENTS lists the valid
ones.
"""

# Former config files -> configs with an argument, which replaced them. find_default_workdir
# (cpt_jax/runs/config_file.py) still finds runs in runs/FORMER_NAME.
RENAMED = {
    'prompteol_opt_125m': 'prompteol.py:opt-125m',
    'prompteol_opt_350m': 'prompteol.py:opt-350m',
    'prompteol_opt_1p3b': 'prompteol.py:opt-1.3b',
    'prompteol_opt_2p7b': 'prompteol.py:opt-2.7b',
    'prompteol_opt_6p7b': 'prompteol.py:opt-6.7b',
    'prompteol_opt_13b': 'prompteol.py:opt-13b',
    'prompteol_opt_30b': 'prompteol.py:opt-30b',
    'prompteol_opt_66b': 'prompteol.py:opt-66b',
    'prompteol_llama_7b': 'prompteol.py:llama-7b',
    'prompteol_llama_13b': 'prompteol.py:llama-13b',
    'prompteol_llama_30b': 'prompteol.py:llama-30b',
    'prompteol_llama_65b': 'prompteol.py:llama-65b',
    'prompteol_cse_opt_1p3b': 'prompteol_cse.py:opt-1.3b',
    'prompteol_cse_opt_2p7b': 'prompteol_cse.py:opt-2.7b',
    'prompteol_cse_opt_6p7b': 'prompteol_cse.py:opt-6.7b',
    'prompteol_cse_opt_13b': 'prompteol_cse.py:opt-13b',
    'prompteol_cse_llama_7b': 'prompteol_cse.py:llama-7b',
    'prompteol_cse_llama_13b': 'prompteol_cse.py:llama-13b',
    'prompteol_cse_llama_30b': 'prompteol_cse.py:llama-30b',
}


def __getattr__(name: str) -> object:
    """Raises ImportError with the new name for `from configs import FORMER_NAME`."""
    if name not in RENAMED:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, argument = RENAMED[name].split('.py:')
    raise ImportError(
        f'configs/{name}.py is now configs/{RENAMED[name]}: write `from configs import {module}` '
        f"and {module}.get_config('{argument}')"
    )
