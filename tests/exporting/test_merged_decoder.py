# SPDX-License-Identifier: Apache-2.0
import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from vanilla_transformer.exporting.merged_decoder import merge_decoders

WEIGHT = np.array([[2.0, 0.0], [0.0, 3.0]], dtype=np.float32)
GIVEN = {
    "x": np.array([[1.0, 2.0]], dtype=np.float32),
    "source": np.array([[5.0, 7.0]], dtype=np.float32),
    "past_key_values.0.encoder.key": np.array([[11.0, 13.0]], dtype=np.float32),
}


def graph_of(weight: str, nodes: list, inputs: list[str], outputs: list[str], shift: float) -> ModelProto:
    """A step with the matrix under a name of its own, and another constant under the same name as the other step's."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in outputs]
    weights = [numpy_helper.from_array(WEIGHT, weight), numpy_helper.from_array(np.float32([shift]), "shift")]
    graph = helper.make_graph(nodes, "step", values, results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def steps() -> tuple[ModelProto, ModelProto]:
    """Logits x W + 1 and a key of the source; then logits x W + 100 + the key."""
    times = helper.make_node("MatMul", ["x", "w1"], ["product"])
    plus = helper.make_node("Add", ["product", "shift"], ["logits"])
    key = helper.make_node("Neg", ["source"], ["present.0.encoder.key"])
    first = graph_of("w1", [times, plus, key], ["x", "source"], ["logits", "present.0.encoder.key"], 1)
    times = helper.make_node("MatMul", ["x", "w2"], ["product"])
    plus = helper.make_node("Add", ["product", "shift"], ["sum"])
    past = helper.make_node("Add", ["sum", "past_key_values.0.encoder.key"], ["logits"])
    later = graph_of("w2", [times, plus, past], ["x", "past_key_values.0.encoder.key"], ["logits"], 100)
    return first, later


def test_each_branch_computes_its_step(steps):
    merged = merge_decoders(*steps)
    checker.check_model(merged, full_check=True)
    session = onnxruntime.InferenceSession(merged.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, key = session.run(None, {**GIVEN, "use_cache_branch": np.array([False])})
    np.testing.assert_array_equal(logits, [[3, 7]])
    np.testing.assert_array_equal(key, [[-5, -7]])
    logits, key = session.run(None, {**GIVEN, "use_cache_branch": np.array([True])})
    np.testing.assert_array_equal(logits, [[113, 119]])
    np.testing.assert_array_equal(key, GIVEN["past_key_values.0.encoder.key"])


def test_a_weight_of_both_steps_is_stored_once(steps):
    before = [model.SerializeToString(deterministic=True) for model in steps]
    stored = [numpy_helper.to_array(weight).shape for weight in merge_decoders(*steps).graph.initializer]
    assert sorted(stored) == [(1,), (1,), (2, 2)]
    assert [model.SerializeToString(deterministic=True) for model in steps] == before
