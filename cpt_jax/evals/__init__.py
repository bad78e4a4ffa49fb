"""Tasks, protocols as published, baselines, results and report."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpt_jax.evals.mteb_adapter import MtebModel
    from cpt_jax.text.tokenizer import Side


def mteb_model(reference: str, *, symmetric: 'Side' = 'x') -> 'MtebModel':
    """A model that `mteb.evaluate(model, tasks)` takes.

    Args:
      reference: a run, run@step, or the directory of a pretrained model.
      symmetric: the side of all texts of tasks that have one kind (STS, classification,
        clustering): the papers do not say which; one for all compares like with like.

    Raises:
      UserError: there is no such model, or mteb is not installed (it brings torch, and is no
        requirement).
    """
    from cpt_jax.embed.load import load_embedder  # JAX waits until it is needed
    from cpt_jax.evals.mteb_adapter import MtebModel

    return MtebModel(load_embedder(reference), symmetric)
