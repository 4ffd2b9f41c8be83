# SPDX-License-Identifier: Apache-2.0
"""The three graphs in onnxruntime alone, by the loop that optimum has."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from transformers import AutoTokenizer, GenerationConfig

from tests.conftest import write_reversals
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.exporting.onnx import ENCODER, FIRST_STEP, LATER_STEPS, quantize_graphs, write_onnx
from vanilla_transformer.inference.model_folder import load_model_folder

NEW_TOKENS = 8
pytestmark = pytest.mark.slow  # the exporter takes seconds for each graph


@pytest.fixture(scope="module")
def onnx_folder(model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_onnx(load_model_folder(model_folder), load_tokenizer(model_folder), folder)
    return folder


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def greedy_logits(folder: Path, batch: dict[str, np.ndarray], targets: np.ndarray) -> np.ndarray:
    """The logits after each token of `targets` `(sentences, length)`, a token at a time with the cache."""
    encoder, first, later = (open_graph(folder / name) for name in (ENCODER, FIRST_STEP, LATER_STEPS))
    mask = batch["attention_mask"]
    [encoded] = encoder.run(None, {"input_ids": batch["input_ids"], "attention_mask": mask})
    source = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
    found = named(first, {"input_ids": targets[:, :1], **source})
    logits, cache = [found.pop("logits")], found
    for i in range(1, targets.shape[1]):
        past = {name.replace("present", "past_key_values"): tensor for name, tensor in cache.items()}
        found = named(later, {"input_ids": targets[:, i : i + 1], "encoder_attention_mask": mask, **past})
        logits.append(found.pop("logits"))
        cache |= found
    return np.concatenate(logits, axis=1)


def named(graph: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip([output.name for output in graph.get_outputs()], graph.run(None, inputs), strict=True))


def batch_and_expected(model_folder: Path, tmp_path: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """1,000 sentences of different lengths, our greedy targets, and the logits of our model along them."""
    lines = Path(write_reversals(tmp_path, "lines", 1000)["source"]).read_text(encoding="utf-8").splitlines()
    model, tokenizer = load_model_folder(model_folder), load_tokenizer(model_folder)
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    options = {"num_beams": 1, "length_penalty": None, "early_stopping": None, "eos_token_id": None}
    targets = model.generate(**batch, max_new_tokens=NEW_TOKENS, **options)
    logits = model(**batch, decoder_input_ids=targets).logits.detach().numpy()
    return {name: tensor.numpy() for name, tensor in batch.items()}, targets.numpy(), logits


def test_each_greedy_token_is_ours(model_folder, onnx_folder, tmp_path):
    batch, targets, expected = batch_and_expected(model_folder, tmp_path)
    found = greedy_logits(onnx_folder, batch, targets)
    assert np.abs(found - expected).max() < 1e-4
    # By induction: after the same tokens the same next token, thus the same target.
    assert (found[:, :-1].argmax(axis=-1) == targets[:, 1:]).all()


def test_int8_is_close_and_smaller(model_folder, onnx_folder, tmp_path):
    folder = tmp_path / "int8"
    shutil.copytree(onnx_folder, folder)
    quantize_graphs(folder, (ENCODER, FIRST_STEP, LATER_STEPS))
    batch, targets, expected = batch_and_expected(model_folder, tmp_path)
    difference = np.abs(greedy_logits(folder, batch, targets) - expected)
    assert 0 < difference.mean() < 0.1 * expected.std()
    assert b"MatMulInteger" in (folder / LATER_STEPS).read_bytes()


def test_the_folder_has_what_optimum_reads(onnx_folder):
    graphs = {ENCODER, FIRST_STEP, LATER_STEPS}
    files = {path.name for path in onnx_folder.iterdir()}
    assert files == graphs | {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert AutoTokenizer.from_pretrained(onnx_folder)("a b")["input_ids"][-1] == 2
    assert GenerationConfig.from_pretrained(onnx_folder).num_beams == 4
    names = [each.name for each in open_graph(onnx_folder / LATER_STEPS).get_inputs()]
    cached = [f"past_key_values.0.{side}.{part}" for side in ("decoder", "encoder") for part in ("key", "value")]
    assert names == ["input_ids", "encoder_attention_mask", *cached]
