# SPDX-License-Identifier: Apache-2.0
"""The names of layers that fairseq introduced, and that transformers' Marian and FSMT have too."""

from vanilla_transformer.importing.names import NameTable

LAYER_NORM_EPS = 1e-5  # torch's default, in all of them

LAYERS: NameTable = {
    f"{stack}.layers.{{layer}}.{theirs}": f"model.{stack}.layers.{{layer}}.{ours}"
    for stack in ("encoder", "decoder")
    for theirs, ours in {
        **{f"self_attn.{name}": f"self_attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
        **{f"encoder_attn.{name}": f"cross_attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
        "self_attn_layer_norm": "self_attention_norm",
        "encoder_attn_layer_norm": "cross_attention_norm",
        "final_layer_norm": "feed_forward_norm",
        "fc1": "feed_forward.linear_1",
        "fc2": "feed_forward.linear_2",
    }.items()
}

EMBEDDINGS: NameTable = {
    "encoder.embed_tokens": "model.encoder.embed_tokens",
    "decoder.embed_tokens": "model.decoder.embed_tokens",
}
