"""CPT then LoRA: continued pretraining, then adapters on what it made."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from shortened_llm.fields import Section
from shortened_llm.methods.method import Chain, Method, Run


class CptLoraOptions(Section):
    """Continued pretraining as in `cpt`, then adapters as in `lora`; learning rates are the product of both. Source:
    Shortened LLaMA, arXiv 2402.02834."""

    cpt_share: float = Field(0.5, gt=0, lt=1)
    """Share of the tokens in continued pretraining. With adapters trained on instructions it has them all."""


def both(options: Mapping[str, Any]) -> Iterator[Chain]:
    """One chain for each kind of data that the adapters train on."""
    for train_on in options["lora"].train_on:
        share = 1.0 if train_on == "instructions" else options["cpt_lora"].cpt_share
        yield Run(method="cpt", share=share), Run(method="lora", train_on=train_on, share=1 - share)


METHOD = Method(options=CptLoraOptions, summary="cpt, then lora", chains=both)
