# SPDX-License-Identifier: Apache-2.0
"""Both models as graphs: torch.compile, torch.export and ONNX through transformers' exporters.

The backends "eager" and "aot_eager" run what torch.compile has found as it is: with `fullgraph=True` they prove that it
is one graph, without the minutes that a compiler takes. One slow test has the compiler.
"""

from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from tests import families
from tests.families import FAMILIES, START, Family

TRANSFORMER = FAMILIES[0]
RECURRENT = [family for family in FAMILIES if families.COMPILING_AS_IT_IS in family.lacks]
# Each takes seconds: of the RNNs the one with most in it (LSTM, reversed source, input feeding); the others are slow.
FAST = {TRANSFORMER.name, "rnn_seq2seq-luong"}
FEW_LAYERS = {"num_layers": 1, "num_decoder_layers": 2}  # two: one hands on to the next
SOME_SLOW = [
    pytest.param(family, id=family.name, marks=[] if family.name in FAST else pytest.mark.slow) for family in FAMILIES
]


@pytest.fixture
def longer_source() -> dict[str, torch.Tensor]:
    """Another batch size and another length than those of `tiny_batch`."""
    source = torch.randint(3, 31, (2, 11))
    source[1, 4:] = 0
    return {"input_ids": source, "attention_mask": source.ne(0).long()}


def what_torch_must_be_told(family: Family):
    """The setting without which torch.compile refuses this family, for as long as a test needs it."""
    is_refused = families.COMPILING_AS_IT_IS in family.lacks
    return torch._dynamo.config.patch(allow_rnn=True) if is_refused else nullcontext()


# -- torch.compile


@pytest.mark.parametrize("family", SOME_SLOW)
def test_the_forward_pass_is_one_graph(family, batch):
    model = family.model(**FEW_LAYERS)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), what_torch_must_be_told(family):
        found = compiled(**batch)
    expected = model(**batch)
    assert (found.logits - expected.logits).abs().max() < 1e-5
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_training_step_is_one_graph(family, batch):
    model = family.model(torch.float64, dropout=0.0).train()
    with what_torch_must_be_told(family):
        torch.compile(model, fullgraph=True, backend="aot_eager")(**batch).loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(**batch).loss.backward()
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-12)


def test_decoding_with_a_static_cache_is_one_graph(source):
    model = TRANSFORMER.model(torch.float64)
    compiling = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiling._compile_all_devices = True  # transformers compiles on accelerators alone unless told
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    compiled = model.generate(**source, **options, cache_implementation="static", compile_config=compiling)
    assert counters["stats"]["unique_graphs"] == 1
    assert torch.equal(compiled, model.generate(**source, **options))


@pytest.mark.parametrize("family", [one for one in SOME_SLOW if one.values[0] in RECURRENT])
def test_decoding_from_a_state_is_one_graph(family, source):
    """Of one size by itself: two graphs in all, the first step and every other."""
    model = family.model(torch.float64)
    expected = model.generate(**source, max_new_tokens=8, min_new_tokens=8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    logits, cache = [], family.new_cache()
    with torch.no_grad(), what_torch_must_be_told(family):
        encoded = model.get_encoder()(**source)
        for i in range(8):
            token = expected[:, i : i + 1]
            output = compiled(encoder_outputs=encoded, decoder_input_ids=token, cache=cache, use_cache=True)
            logits.append(output.logits)
        whole = model(**source, decoder_input_ids=expected[:, :8]).logits
    assert (torch.cat(logits, dim=1) - whole).abs().max() < 1e-12
    assert cache.get_seq_length() == 8
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("family", RECURRENT, ids=lambda family: family.name)
def test_torch_refuses_recurrent_layers_unless_told(family, batch):
    compiled = torch.compile(family.model(), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Set torch._dynamo.config.allow_rnn=True"):
        compiled(**batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name in FAST], ids=lambda family: family.name
)
def test_what_the_compiler_makes_computes_the_same(family, batch):
    model = family.model()
    with torch.no_grad(), what_torch_must_be_told(family):
        found = torch.compile(model, fullgraph=True, backend="inductor")(**batch).logits
    assert (found - model(**batch).logits).abs().max() < 1e-5


# -- torch.export


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, id=one.name, marks=[] if one is TRANSFORMER else pytest.mark.slow) for one in FAMILIES],
)
def test_the_exported_forward_pass_takes_other_sizes(family, batch, longer_source):
    model = family.model(**FEW_LAYERS)
    target = batch.pop("labels").clamp(min=3)
    inputs = batch | {"decoder_input_ids": target}
    exported = DynamoExporter().export(model, dict(inputs), DynamoConfig(dynamic=True))
    assert (exported(**inputs).logits - model(**inputs).logits).abs().max() < 1e-5
    length = 6 if families.TARGETS_OF_ANY_LENGTH in family.lacks else 4
    others = longer_source | {"decoder_input_ids": torch.randint(3, 31, (2, length))}
    assert (exported(**others).logits - model(**others).logits).abs().max() < 1e-5
    if families.TARGETS_OF_ANY_LENGTH in family.lacks:
        with pytest.raises(AssertionError, match="decoder_input_ids.*== 6"):
            exported(**longer_source, decoder_input_ids=torch.randint(3, 31, (2, 4)))


# -- ONNX


@pytest.fixture
def inductor_knows_torch():
    """Inductor is imported before transformers' exporter replaces functions of torch for as long as it works.

    It knows them by identity: of one that is imported meanwhile, the true `torch.full` is not known, and every later
    flex attention in the process fails.
    """
    import torch._inductor.lowering  # noqa: F401 -- for what it registers


def on_one_thread(exported):
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3  # 3: errors
    return exported.to(device="cpu", session_options=options)


@pytest.mark.usefixtures("inductor_knows_torch")
@pytest.mark.parametrize("family", SOME_SLOW)
def test_onnx_encodes_prefills_and_decodes_as_the_model_does(family, source, longer_source):
    """The three graphs of a translation in onnxruntime, whose source has another size than that of the export."""
    model = family.model(**FEW_LAYERS)
    config = OnnxConfig(dynamic=True)
    encoder = on_one_thread(OnnxExporter().export(model.get_encoder(), dict(source), config))
    # "multi token": with two tokens in the cache, so that its length is none of the graph.
    decoder = on_one_thread(OnnxExporter().export_for_generation(model, dict(source), config, multi_token_decode=True))

    encoded = encoder(**longer_source)
    expected = model.get_encoder()(**longer_source)
    for name, tensor in expected.items():
        assert (encoded[name] - tensor).abs().max() < 1e-5, name

    given = {"encoder_outputs": encoded, "attention_mask": longer_source["attention_mask"]}
    target, logits = torch.full((2, 1), START), []
    output = decoder.runners["prefill"](**given, decoder_input_ids=target)
    for _ in range(6):
        logits.append(output.logits)
        token = output.logits.argmax(dim=-1)
        target = torch.cat([target, token], dim=1)
        output = decoder.runners["decode"](**given, decoder_input_ids=token, cache=output.cache)
    whole = model(**longer_source, decoder_input_ids=target[:, :-1]).logits
    assert (torch.cat(logits, dim=1) - whole).abs().max() < 1e-5
