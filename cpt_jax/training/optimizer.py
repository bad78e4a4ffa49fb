"""The optimizer: AdamW with gradient clipping, weight decay and a learning-rate schedule."""

import math

import jax
import optax

from cpt_jax.runtime.errors import UserError

SCHEDULES = ('cosine', 'linear')

# Weight decay applies to matrices, but not to vectors (biases, norm scales), the temperature,
# learned position embeddings, the map to a teacher's vectors and Dense modules, which
# `model.freeze_dense` keeps as they are. Every parameter name must be in one of the two sets.
WITH_WEIGHT_DECAY = {
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
WITHOUT_WEIGHT_DECAY = {
    'scale',
    'bias',
    'position_embedding',
    'type_embedding',
    'relative_bias',
    'log_scale',
    'dense_weight',
    'dense_bias',
    'teacher_map',
} | {f'{name}_bias' for name in WITH_WEIGHT_DECAY}


def make_decay_mask(params: optax.Params) -> optax.Params:
    """Returns a tree of bools: whether weight decay applies to each parameter.

    Raises:
      KeyError: the name of a parameter is in neither of the two sets above.
    """

    def has_decay(path: tuple, _: jax.Array) -> bool:
        name = path[-2].name  # the last key is the array within nnx.Param
        if name not in WITH_WEIGHT_DECAY | WITHOUT_WEIGHT_DECAY:
            raise KeyError(
                f'{jax.tree_util.keystr(path)}: add {name!r} to WITH_WEIGHT_DECAY or '
                f'WITHOUT_WEIGHT_DECAY in {__name__}'
            )
        return name in WITH_WEIGHT_DECAY

    return jax.tree_util.tree_map_with_path(has_decay, params)


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
    warmup_share: float = 0.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer and its learning-rate schedule, a function of the step.

    The optimizer clips gradients by their global norm, then applies AdamW (arXiv 1711.05101). The
    learning rate rises linearly from 0 to `peak_lr` over `warmup_steps`, then decays to
    `final_share * peak_lr` at step `steps`.

    Args:
      steps: number of training steps, from `train.steps`.
      peak_lr: maximum of the learning rate.
      warmup_steps: length of the linear warmup, in steps.
      final_share: final learning rate, as a fraction of `peak_lr`.
      weight_decay: weight decay of AdamW, scaled by the learning rate.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      epsilon: constant added to the root of the second moment.
      clip_norm: maximum global norm of the gradient.
      decay: shape of the decay, 'cosine' (half a period) or 'linear'.
      warmup_share: length of the warmup as a fraction of `steps`; 0 uses `warmup_steps`.

    Raises:
      UserError: an argument is invalid.
    """
    if decay not in SCHEDULES:
        raise UserError(f'optimizer.decay={decay!r}: choose one of {", ".join(SCHEDULES)}')
    if not clip_norm > 0:
        raise UserError(
            f'optimizer.clip_norm={clip_norm}: must be above 0; to disable clipping, set it to 1e9'
        )
    least = {
        'peak_lr': peak_lr,
        'final_share': final_share,
        'weight_decay': weight_decay,
        'epsilon': epsilon,
    }
    for key, value in least.items():
        if not 0 <= value < math.inf:
            raise UserError(f'optimizer.{key}={value}: must be a number from 0 on')
    for key, value in {'b1': b1, 'b2': b2}.items():
        if not 0 <= value < 1:
            raise UserError(f'optimizer.{key}={value}: must be 0 or more and less than 1')
    if not 0 <= warmup_share < 1:
        raise UserError(f'optimizer.warmup_share={warmup_share}: must be 0 or more and less than 1')
    if warmup_share:
        warmup_steps = int(warmup_share * steps)
    if not 0 <= warmup_steps < steps:
        raise UserError(
            f'optimizer.warmup_steps={warmup_steps} must be less than train.steps={steps}'
        )
    peak_lr = float(peak_lr)  # JAX would take an integer for an int32
    if decay == 'cosine':
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, peak_lr, warmup_steps, steps, peak_lr * final_share
        )
    else:
        warmup = optax.linear_schedule(0.0, peak_lr, warmup_steps)
        linear_decay = optax.linear_schedule(peak_lr, peak_lr * final_share, steps - warmup_steps)
        schedule = optax.join_schedules([warmup, linear_decay], [warmup_steps])
    adamw = optax.adamw(
        schedule, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay, mask=make_decay_mask
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw), schedule
