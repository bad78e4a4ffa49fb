"""The flags that name a model and say how it turns texts into vectors."""

from collections.abc import Callable
from typing import Any

from absl import flags

from cpt_jax.text.prompt_template import REPRESENTATIONS, Representation, demonstrations_of

# Key flags of the program that calls define_model, which shows them in its --help.
flags.disclaim_key_flags()


def define_model(
    evaluation: bool = False, required: bool = True
) -> tuple[flags.FlagHolder[str], Callable[[], dict[str, Any]]]:
    """Defines --model and the flags that say how texts become vectors, for all programs that load a
    model.

    Args:
      evaluation: texts in a template are cleaned as the PromptEOL paper does, unless --nocleanup is
        given.
      required: whether --model must be given.

    Returns:
      --model, and the reader of the others: keyword arguments of `load_embedder`. It raises
        UserError where they do not go together.
    """
    reference = (
        'A model reference: a run, run@step, run@best:TASK (after evaluate.py --follow), or the '
        'directory of a pretrained model.'
    )
    pooling = (
        'Pooling of a pretrained model whose directory names none: eos or last, mean, cls. By '
        'default mean for BERT, last for decoders.'
    )
    representation = (
        'How a causal language model represents a text: prompteol or prompt (last token of a '
        'template), last, mean (of the text alone); own: as it was trained.'
    )
    template = (
        'Your own in place of the one of --representation, with the slot {text} for the text; its '
        'last token counts.'
    )
    demonstration = (
        "A sentence and its word, 'A jockey riding a horse.=Equestrian', shown before each text; "
        'may be repeated.'
    )
    cleanup = (
        'Of texts in a template: a full stop at the end, no double quotes, no question mark at '
        'the end, as the paper evaluates.'
    )
    # Any: its value is None only where the flag is not required.
    model: flags.FlagHolder[Any] = flags.DEFINE_string('model', None, reference, required=required)
    pooled = flags.DEFINE_string('pooling', None, pooling)
    name = flags.DEFINE_enum('representation', 'own', ['own', *REPRESENTATIONS], representation)
    own = flags.DEFINE_string('template', '', template)
    shown = flags.DEFINE_multi_string('demonstration', [], demonstration)
    clean = flags.DEFINE_boolean('cleanup', evaluation, cleanup)
    fsdp = flags.DEFINE_integer(
        'fsdp',
        1,
        'Devices that share one copy of the parameters: for models that one does not hold.',
        lower_bound=1,
    )

    def read() -> dict[str, Any]:
        chosen = Representation(name.value, own.value, demonstrations_of(shown.value), clean.value)
        return {'pooling': pooled.value or '', 'representation': chosen, 'fsdp': fsdp.value}

    return model, read
