"""Config surgery: the configuration of a model that keeps some of its blocks."""

import copy

from transformers import PretrainedConfig

from shortened_llm.errors import BadInputError

# One entry per block.
PER_BLOCK_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_types", "layers_block_type")
# Block indices.
INDEX_LISTS = ("mlp_only_layers", "full_attn_idxs", "moe_layers")
# Rules over the block index that no list can express: value under which every block is treated alike.
INDEX_RULES = {
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 0,
    "interleave_moe_layer_step": 1,
    "cross_attention_layers": None,
    "num_kv_shared_layers": 0,
}


def cut_config(config: PretrainedConfig, kept_blocks: tuple[int, ...]) -> PretrainedConfig:
    """A copy of `config` for a model with only `kept_blocks`.

    A copy, because a config made anew would lose private settings such as the attention implementation.

    Raises:
        BadInputError: the architecture treats blocks by a rule over their index that the cut would change.
    """
    cut = copy.deepcopy(config)
    num_blocks = cut.num_hidden_layers
    if kept_blocks == tuple(range(num_blocks)):
        return cut
    for name, harmless in INDEX_RULES.items():
        if getattr(cut, name, harmless) not in (harmless, None):
            raise BadInputError(
                f"model.path: {cut.model_type} chooses blocks by {name}={getattr(cut, name)}, a rule over the block "
                "index that changes when blocks are removed"
            )
    for name in PER_BLOCK_LISTS:
        values = getattr(cut, name, None)
        if isinstance(values, (list, tuple)) and len(values) == num_blocks:
            setattr(cut, name, [values[block] for block in kept_blocks])
    for name in INDEX_LISTS:
        indices = getattr(cut, name, None)
        if isinstance(indices, (list, tuple)):
            setattr(cut, name, [kept_blocks.index(block) for block in indices if block in kept_blocks])
    # Qwen: the list `layer_types` decides once it exists; the threshold must only stay within the model.
    if getattr(cut, "max_window_layers", None) is not None and getattr(cut, "layer_types", None) is not None:
        cut.max_window_layers = min(cut.max_window_layers, len(kept_blocks))
    cut.num_hidden_layers = len(kept_blocks)
    return cut
