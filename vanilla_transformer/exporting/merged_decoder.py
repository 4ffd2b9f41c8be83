# SPDX-License-Identifier: Apache-2.0
"""The graphs of the first and of later steps as the one graph that transformers.js reads, as optimum merges them.

Its input `use_cache_branch` chooses between the two. It needs all inputs of both at every step; those of the other step
are not read and may be empty.
"""

from onnx import GraphProto, ModelProto, TensorProto, helper
from onnx.compose import add_prefix_graph

USE_CACHE = "use_cache_branch"


def merge_decoders(first: ModelProto, later: ModelProto) -> ModelProto:
    """A graph with the outputs of `first`; weights that both have are stored once.

    Outputs that `later` lacks, keys and values of the source, are those of its input.

    Args:
        first, later: the exported graphs; they are not changed.
    """
    inputs = {each.name: each for each in [*later.graph.input, *first.graph.input]}
    condition = helper.make_tensor_value_info(USE_CACHE, TensorProto.BOOL, [1])
    outputs = [each.name for each in first.graph.output]
    weights: dict[bytes, TensorProto] = {}
    choice = helper.make_node(
        "If",
        [USE_CACHE],
        outputs,
        then_branch=_branch(later.graph, "later", outputs, weights),
        else_branch=_branch(first.graph, "first", outputs, weights),
    )
    graph = helper.make_graph(
        [choice], "decoder", [*inputs.values(), condition], list(first.graph.output), list(weights.values())
    )
    domains = {each.domain: each for each in [*first.opset_import, *later.opset_import]}
    return helper.make_model(
        graph, opset_imports=domains.values(), ir_version=first.ir_version, producer_name="vanilla-transformer"
    )


def _branch(graph: GraphProto, kind: str, outputs: list[str], weights: dict[bytes, TensorProto]) -> GraphProto:
    """The nodes of a graph under names of their own; its weights go to `weights`, by content."""
    branch = add_prefix_graph(graph, f"{kind}.", rename_inputs=False)
    stored = {}
    for weight in branch.initializer:
        name, weight.name = weight.name, ""
        content = weight.SerializeToString(deterministic=True)
        weight.name = name
        stored[name] = weights.setdefault(content, weight).name
    for node in branch.node:
        node.input[:] = [stored.get(name, name) for name in node.input]
    found = {each.name for each in branch.output}
    for name in outputs:
        if f"{kind}.{name}" not in found:
            given = name.replace("present", "past_key_values")
            branch.node.append(helper.make_node("Identity", [given], [f"{kind}.{name}"]))
    nodes, ends = branch.node, [helper.make_empty_tensor_value_info(f"{kind}.{name}") for name in outputs]
    return helper.make_graph(nodes, kind, [], ends, value_info=branch.value_info)
