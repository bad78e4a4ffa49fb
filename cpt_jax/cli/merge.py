r"""Merges models of one form into one, by the mean of their weights, tensor by tensor.

The models are runs, checkpoints (RUN@STEP, RUN@best), directories of pretrained models, or
directories of adapters; adapters are merged into their base first. They must have the same shapes
and the same tokenizer. Runs are merged into a run, which can be evaluated, exported, and given as
init_from; if any of them is a pretrained model, the result is the directory of one. Its README.md
names the parts and their weights.

Example:
  python launch/merge.py --models runs/seed0,runs/seed1,runs/seed2 --output runs/soup
  python launch/merge.py --models models/base,runs/tuned --weights 1,3 --method slerp \
      --output models/merged
"""

from absl import flags

from cpt_jax.cli.model_flags import define_base_flag
from cpt_jax.cli.program import run_program, use_compilation_cache
from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import make_path

_MODELS = flags.DEFINE_list(
    'models',
    None,
    'Models to merge, separated by commas: runs, RUN@STEP, RUN@best, pretrained directories, '
    'adapters.',
    required=True,
)
_WEIGHTS = flags.DEFINE_list(
    'weights', [], 'Weight of each model, in order; they are divided by their sum. Default: equal.'
)
# The choices of exporting/merging/arithmetic.py, which must not be imported before the flags.
_METHOD = flags.DEFINE_enum(
    'method',
    'linear',
    ['linear', 'slerp'],
    'linear: weighted mean. slerp: along the arc between the tensors, one model after the other.',
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Directory to create, local or in a bucket (gs://...); must not exist yet.',
    required=True,
)
_BASE = define_base_flag()


def main() -> None:
    from cpt_jax.exporting.merging.merge import merge

    use_compilation_cache()
    output = make_path(_OUTPUT.value, '--output')
    kind = merge(_MODELS.value, output, _parse_weights(_WEIGHTS.value), _METHOD.value, _BASE.value)
    print(
        f'{output}: a {kind} merged from {len(_MODELS.value)} models ({_METHOD.value}); '
        f'README.md names them'
    )


def _parse_weights(weights: list[str]) -> list[float]:
    """Returns the weights as numbers. Raises UserError if one is none."""
    try:
        return [float(weight) for weight in weights]
    except ValueError:
        raise UserError(
            f'--weights {",".join(weights)}: must be numbers, separated by commas'
        ) from None


def run() -> None:
    """Runs the console script cpt-merge."""
    run_program(main)
