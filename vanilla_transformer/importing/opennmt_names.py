# SPDX-License-Identifier: Apache-2.0
"""The names of the parameters of OpenNMT-py, and of eole, its successor."""

from vanilla_transformer.importing.names import DECODER, ENCODER, HEAD, NameTable

ATTENTION = {"linear_query": "q_proj", "linear_keys": "k_proj", "linear_values": "v_proj", "final_linear": "out_proj"}


def _layers(theirs: str, stack: str, rows: dict[str, str]) -> NameTable:
    """The rows of each layer, whose toolkit calls it `theirs`, and the LayerNorm after the stack."""
    attentions = {"self_attn": "self_attention", "context_attn": "cross_attention"}
    names = {f"{a}.{part}": f"{ours}.{own}" for a, ours in attentions.items() for part, own in ATTENTION.items()} | rows
    table: NameTable = {
        f"{stack}.{theirs}.{{layer}}.{a}": f"model.{stack}.layers.{{layer}}.{b}" for a, b in names.items()
    }
    return table | {f"{stack}.layer_norm": f"model.{stack}.norm"}


FEED_FORWARD = {
    "feed_forward.w_1": "feed_forward.linear_1",
    "feed_forward.w_2": "feed_forward.linear_2",
    "feed_forward.layer_norm": "feed_forward_norm",
}
OPENNMT: NameTable = {
    **_layers("transformer", "encoder", {"layer_norm": "self_attention_norm", **FEED_FORWARD}),
    **_layers(
        "transformer_layers",
        "decoder",
        {"layer_norm_1": "self_attention_norm", "layer_norm_2": "cross_attention_norm", **FEED_FORWARD},
    ),
    "encoder.embeddings.make_embedding.emb_luts.0": ENCODER,
    "decoder.embeddings.make_embedding.emb_luts.0": DECODER,
    "encoder.embeddings.make_embedding.pe.pe": None,
    "decoder.embeddings.make_embedding.pe.pe": None,
    "generator": HEAD,
    "generator.0": HEAD,  # in version 2
}

MLP = {
    "input_layernorm": "self_attention_norm",
    "precontext_layernorm": "cross_attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_up_proj": "feed_forward.linear_1",
    "mlp.down_proj": "feed_forward.linear_2",
}
EOLE: NameTable = {
    **_layers("transformer_layers", "encoder", MLP),
    **_layers("transformer_layers", "decoder", MLP),
    "src_emb.embeddings": ENCODER,
    "tgt_emb.embeddings": DECODER,
    "src_emb.pe": "model.encoder.input_embedding.positions",
    "tgt_emb.pe": "model.decoder.input_embedding.positions",
    "src_emb.pe.pe": None,
    "tgt_emb.pe.pe": None,
    "generator": HEAD,
}
