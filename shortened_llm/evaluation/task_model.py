"""lm-eval's model with its answers in our hands. Importing lm-eval takes 4 s, so this module is imported late."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch.utils.collect_env
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.evaluation.task_requests import Ask, Request

# lm-eval describes the machine in each task's results, and asks pip, the driver and others each time: 0.5 s and more.
torch.utils.collect_env.get_pretty_env_info = functools.cache(torch.utils.collect_env.get_pretty_env_info)

Answer = Callable[[str, list[Request], Ask], list[Any]]
"""Called with the kind of the requests, all requests of that kind, and the way to ask the model."""


class TaskModel(HFLM):
    """A model as lm-eval's tasks ask it."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, answer: Answer
    ) -> None:
        # A copy of the tokenizer, since lm-eval sets a padding token where there is none.
        super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        self._answer = answer

    def loglikelihood(self, requests: list[Request], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("loglikelihood", requests, super().loglikelihood)

    def loglikelihood_rolling(self, requests: list[Request], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("loglikelihood_rolling", requests, super().loglikelihood_rolling)

    def generate_until(self, requests: list[Request], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("generate_until", requests, super().generate_until)
