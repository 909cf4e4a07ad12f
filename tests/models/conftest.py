"""Models whose files were changed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortened_llm.models.files import SINGLE_NAME
from shortened_llm.records import ModelRef
from tests.conftest import SaveModel, reference_to
from tests.models.families import FAMILIES


@pytest.fixture
def change(save_random_model: SaveModel) -> Callable[..., ModelRef]:
    """A model whose weight file was changed."""

    def run(family: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> ModelRef:
        _, ref = save_random_model(FAMILIES[family])
        path = Path(ref.url) / SINGLE_NAME
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return reference_to(Path(ref.url))

    return run
