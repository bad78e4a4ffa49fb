"""Families of pretrained models that can be loaded and written."""

from cpt_jax.model.families.bert import BERT, ROBERTA
from cpt_jax.model.families.distilbert import DISTILBERT
from cpt_jax.model.families.family import Config, Family
from cpt_jax.model.families.gemma3 import GEMMA3
from cpt_jax.model.families.gpt2 import GPT2
from cpt_jax.model.families.gptj import CODEGEN, GPTJ
from cpt_jax.model.families.gte import GTE
from cpt_jax.model.families.llama import LLAMA
from cpt_jax.model.families.modernbert import MODERNBERT
from cpt_jax.model.families.mpnet import MPNET
from cpt_jax.model.families.neox import NEOX
from cpt_jax.model.families.nomic_bert import NOMIC_BERT
from cpt_jax.model.families.opt import OPT
from cpt_jax.runtime.errors import UserError

FAMILIES = {
    kind: family
    for family in (
        GPT2,
        OPT,
        NEOX,
        GPTJ,
        CODEGEN,
        LLAMA,
        GEMMA3,
        BERT,
        ROBERTA,
        DISTILBERT,
        MPNET,
        MODERNBERT,
        NOMIC_BERT,
        GTE,
    )
    for kind in family.model_types
}


def find_family(config: Config) -> Family:
    """Returns the family of a config.json. Raises UserError if its model_type is not supported."""
    kind = config.get('model_type')
    if kind not in [*FAMILIES]:
        where = (
            '; GTE has this model_type in the repositories of Alibaba-NLP: take one with "gte", '
            'such as alibaba-nlp-community/gte-multilingual-base (docs/models.md)'
        )
        raise UserError(
            f'config.json: model_type={kind!r} is not supported; supported are '
            f'{", ".join(FAMILIES)}{where if kind == "new" else ""}'
        )
    return FAMILIES[kind]
