"""The requests of a task to a model, cut into chunks that several processes can share.

Every process builds all requests as lm-eval does, since examples are drawn for one document after another, and answers
some chunks of them. Only what lies in one chunk shares a batch.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from shortened_llm.evaluation.chunks import Taker

Request = Any
"""lm-eval's `Instance`."""
Ask = Callable[[list[Request]], list[Any]]
"""Answers requests of one kind by the model."""

# Choices of one token share a forward pass: with four batches of requests, some batches of those are full too.
CHUNK_BATCHES = {"loglikelihood": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPart:
    """A model's answers to some requests of a task."""

    answers: dict[str, dict[int, Any]]
    """By kind of request, then by the request's number in lm-eval's order."""
    requests: dict[str, str]
    """By kind: SHA-256 of all requests of the task, answered here or not."""
    notes: tuple[str, ...] = ()
    """As in `records.TaskScore`."""


class RequestsDifferError(RuntimeError):
    """A task asked other things when it was set up again, so that its parts do not make a whole."""


def request_chunks(kind: str, requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Numbers of the requests in each chunk, the longest ones first; all requests of a document lie in one chunk.

    What is sampled is one chunk, in lm-eval's order: each draw depends on all draws before it.
    """
    numbers = range(len(requests))
    if any(_is_sampled(request) for request in requests):
        return [list(numbers)]
    of_documents = groupby(numbers, key=lambda number: (requests[number].task_name, requests[number].doc_id))
    documents = [list(group) for _, group in of_documents]
    documents.sort(key=lambda document: -max(_length(requests[number]) for number in document))
    least = batch_size * CHUNK_BATCHES.get(kind, 1)
    chunks: list[list[int]] = []
    for document in documents:
        if not chunks or len(chunks[-1]) >= least:
            chunks.append([])
        chunks[-1] += document
    return chunks


def answer_requests(
    kind: str, requests: Sequence[Request], ask: Ask, *, digest: str, batch_size: int, taker: Taker
) -> dict[int, Any]:
    """The answers to the chunks that `taker` takes, by the request's number.

    Args:
        digest: of the requests.
        batch_size: by which chunks are cut; equal for all processes.
    """
    answers: dict[int, Any] = {}
    chunks = request_chunks(kind, requests, batch_size)
    for number in taker.chunks(kind, digest, len(chunks)):
        chunk = chunks[number]
        answers.update(zip(chunk, ask([requests[request] for request in chunk]), strict=True))
    return answers


def requests_digest(requests: Sequence[Request]) -> str:
    """SHA-256 of what is asked, as hex digits."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps([request.task_name, request.doc_id, request.args], default=str).encode())
    return digest.hexdigest()


def join_answers(parts: Sequence[TaskPart]) -> TaskPart:
    """The answers of all parts.

    Raises:
        RequestsDifferError: the parts are not of the same requests.
    """
    requests = parts[0].requests
    if any(part.requests != requests for part in parts):
        raise RequestsDifferError
    return TaskPart(
        answers={
            kind: {number: answer for part in parts for number, answer in part.answers[kind].items()}
            for kind in requests
        },
        requests=requests,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _length(request: Request) -> int:
    """Characters: what comes close to tokens without a tokenizer."""
    return sum(len(argument) for argument in request.args if isinstance(argument, str))


def _is_sampled(request: Request) -> bool:
    from lm_eval.models.utils import normalize_gen_kwargs  # 4 s

    return request.request_type == "generate_until" and bool(normalize_gen_kwargs(request.args[1])["do_sample"])
