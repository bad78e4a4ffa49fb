"""Flags that select a model and define how it embeds texts."""

from collections.abc import Callable
from typing import Any

from absl import flags

from cpt_jax.text.prompt_template import REPRESENTATIONS, Representation, parse_demonstrations

# absl lists these flags in the --help of the program that calls define_model_flags.
flags.disclaim_key_flags()


def define_base_flag() -> flags.FlagHolder[str]:
    """Defines --base."""
    return flags.DEFINE_string(
        'base', '', 'Directory, or RUN@STEP, of the base of a LoRA run, if the base has moved.'
    )


def define_model_flags(
    evaluation: bool = False, required: bool = True
) -> tuple[flags.FlagHolder[str], Callable[[], dict[str, Any]]]:
    """Defines --model and the flags for how texts are embedded, for all programs that load a model.

    Args:
      evaluation: default of --cleanup, the flag for cleaning texts in a template as in the
        PromptEOL paper.
      required: whether --model must be given.

    Returns:
      The holder of --model, and a function that reads the other flags and returns keyword arguments
      of `load_embedder`. It raises UserError if the flags contradict each other.
    """
    reference = (
        'Model to load: a run, RUN@STEP, RUN@best:TASK (after evaluate.py --follow), RUN@best '
        '(after training with checkpoint.keep_best), or the directory or GGUF file of a pretrained '
        'model, local or in a bucket (gs://...).'
    )
    pooling = (
        'Pooling of a pretrained model whose directory does not define one: eos (or last), mean, '
        "cls (the first token's state) or pooler (that state after BERT's trained pooler, as in "
        'supervised SimCSE). Default: mean for bidirectional models, last for decoders.'
    )
    similarity = (
        'How vectors of a pretrained model are compared: cosine, dot, or auto (as its '
        'config_sentence_transformers.json says, else cosine).'
    )
    begin_token = (
        'What a text in a template begins with, for a pretrained model: tokenizer (the special '
        'tokens that its tokenizer itself puts before texts, the default) or always (its BOS, if '
        'there are none).'
    )
    representation = (
        'How a causal language model embeds a text: prompteol or prompt (last token of '
        'that template), last or mean (pooling over the text without a template), own (as '
        'the model was trained).'
    )
    template = (
        'Custom template that replaces the one of --representation; {text} marks where the text '
        'goes. The last token gives the embedding, unless --representation is mean.'
    )
    demonstration = (
        'Sentence and word shown before each text, in the form '
        "'A jockey riding a horse.=Equestrian'"
    )
    cleanup = (
        'Clean texts before they enter a template, as in the PromptEOL evaluation: end with a full '
        'stop, no double quotes, no question mark at the end.'
    )
    # The type is Any because the value is None only if the flag is not required.
    model: flags.FlagHolder[Any] = flags.DEFINE_string('model', None, reference, required=required)
    pooled = flags.DEFINE_string('pooling', None, pooling)
    compared = flags.DEFINE_enum('similarity', 'auto', ['auto', 'cosine', 'dot'], similarity)
    begin = flags.DEFINE_enum('begin_token', None, ['tokenizer', 'always'], begin_token)
    name = flags.DEFINE_enum('representation', 'own', ['own', *REPRESENTATIONS], representation)
    own = flags.DEFINE_string('template', '', template)
    shown = flags.DEFINE_multi_string('demonstration', [], demonstration)
    clean = flags.DEFINE_boolean('cleanup', evaluation, cleanup)
    fsdp = flags.DEFINE_integer(
        'fsdp',
        1,
        'Number of devices that the parameters are sharded over, for models too large for one '
        'device.',
        lower_bound=1,
    )

    dimensions = flags.DEFINE_integer(
        'dimensions',
        0,
        'Number of dimensions to keep of each vector, for models trained with loss.dimensions or '
        'another Matryoshka loss; 0 keeps all.',
        lower_bound=0,
    )
    base = define_base_flag()

    def read_options() -> dict[str, Any]:
        chosen = Representation(
            name.value, own.value, parse_demonstrations(shown.value), clean.value
        )
        return {
            'pooling': pooled.value or '',
            'similarity': compared.value,
            'begin_token': begin.value or '',
            'representation': chosen,
            'fsdp': fsdp.value,
            'base': base.value,
            'dimensions': dimensions.value,
        }

    return model, read_options
