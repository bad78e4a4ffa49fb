"""AdamW, warm-up and decay, clipping, and what decays."""

import jax
import optax

from cpt_jax.runtime.errors import UserError

DECAYS = ('cosine', 'linear')

# Matrices decay; vectors (biases, norm scales), the temperature and learned positions do not. Every
# parameter's name stands here.
DECAYED = {
    'token_embedding',
    'query',
    'key',
    'value',
    'out',
    'up',
    'gate',
    'down',
    'project_in',
    'project_out',
    'lora_a',
    'lora_b',
}
NOT_DECAYED = {'scale', 'bias', 'position_embedding', 'type_embedding', 'log_scale'} | {
    f'{name}_bias' for name in DECAYED
}


def decay_mask(params: optax.Params) -> optax.Params:
    """A tree of bool: does this parameter decay?

    Raises:
      KeyError: a parameter that neither list names: whoever adds one decides.
    """

    def decays(path: tuple, _: jax.Array) -> bool:
        name = path[-2].name  # the last key is the array within nnx.Param
        if name not in DECAYED | NOT_DECAYED:
            raise KeyError(
                f'{jax.tree_util.keystr(path)}: say in {__name__} whether {name!r} decays'
            )
        return name in DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    steps: int,
    peak_lr: float,
    warmup_steps: int,
    final_share: float,
    weight_decay: float,
    b1: float,
    b2: float,
    epsilon: float,
    clip_norm: float,
    decay: str = 'cosine',
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipping by the global norm, then AdamW (arXiv 1711.05101); and its learning rate, a function
    of the step.

    The rate rises from 0 to `peak_lr` over `warmup_steps` and falls to `final_share` of it at step
    `steps`: along half a cosine, or with `decay` 'linear' along a line.
    """
    if decay not in DECAYS:
        raise UserError(f'optimizer.decay={decay!r}: choose one of {", ".join(DECAYS)}')
    if not clip_norm > 0:
        raise UserError(
            f'optimizer.clip_norm={clip_norm}: must be above 0, or nothing is learned; where '
            f'nothing is to be clipped, 1e9'
        )
    if not 0 <= warmup_steps < steps:
        raise UserError(
            f'optimizer.warmup_steps={warmup_steps} must be less than train.steps={steps}'
        )
    if decay == 'cosine':
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, peak_lr, warmup_steps, steps, peak_lr * final_share
        )
    else:
        falling = optax.linear_schedule(peak_lr, peak_lr * final_share, steps - warmup_steps)
        schedule = optax.join_schedules(
            [optax.linear_schedule(0.0, peak_lr, warmup_steps), falling], [warmup_steps]
        )
    adamw = optax.adamw(
        schedule, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay, mask=decay_mask
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw), schedule
