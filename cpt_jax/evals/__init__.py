"""Evaluation: tasks with their published protocols, baselines, results and the report."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpt_jax.evals.mteb_adapter import MtebModel
    from cpt_jax.text.tokenizer import Side


def mteb_model(reference: str, *, symmetric: 'Side' = 'x') -> 'MtebModel':
    """Returns a model for `mteb.evaluate(model, tasks)`.

    Args:
      reference: run, run@step, or directory of a pretrained model.
      symmetric: side of all texts in tasks with one kind of text (STS, classification,
        clustering). The papers do not specify it; using one side for all keeps the embeddings
        comparable.

    Raises:
      UserError: there is no such model, or mteb is not installed. mteb is not a requirement,
        because it depends on torch.
    """
    from cpt_jax.embed.load import load_embedder  # imports JAX only when it is needed
    from cpt_jax.evals.mteb_adapter import MtebModel

    return MtebModel(load_embedder(reference), symmetric)
