# SPDX-License-Identifier: Apache-2.0
"""Both models as graphs: torch.compile, torch.export and ONNX through transformers' exporters.

The backends "eager" and "aot_eager" run the captured graph without compiling it: `fullgraph=True` proves that it
is one graph, without the minutes that a compiler takes. One slow test compiles with inductor.
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
# Each takes seconds. The RNN has an LSTM, a reversed source and input feeding; the others are marked slow.
FAST = {TRANSFORMER.name, "rnn_seq2seq-luong"}
FEW_LAYERS = {"num_layers": 1, "num_decoder_layers": 2}  # two, so that layers are stacked
SOME_SLOW = [
    pytest.param(family, id=family.name, marks=[] if family.name in FAST else pytest.mark.slow) for family in FAMILIES
]


@pytest.fixture
def longer_source() -> dict[str, torch.Tensor]:
    """A batch whose size and length differ from those of `tiny_batch`."""
    source = torch.randint(3, 31, (2, 11))
    source[1, 4:] = 0
    return {"input_ids": source, "attention_mask": source.ne(0).long()}


def compiling_allowed(family: Family):
    """A context in which torch.compile accepts the family: it refuses recurrent layers by default."""
    is_refused = families.COMPILING_AS_IT_IS in family.lacks
    return torch._dynamo.config.patch(allow_rnn=True) if is_refused else nullcontext()


# -- torch.compile


@pytest.mark.parametrize("family", SOME_SLOW)
def test_the_forward_pass_is_one_graph(family, batch):
    model = family.model(**FEW_LAYERS)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), compiling_allowed(family):
        found = compiled(**batch)
    expected = model(**batch)
    assert (found.logits - expected.logits).abs().max() < 1e-5
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_training_step_is_one_graph(family, batch):
    model = family.model(torch.float64, dropout=0.0).train()
    with compiling_allowed(family):
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


@pytest.mark.parametrize("family", [family for family in SOME_SLOW if family.values[0] in RECURRENT])
def test_decoding_from_a_state_is_one_graph(family, source):
    """The state has a static size, so two graphs suffice: the first step and all later ones."""
    model = family.model(torch.float64)
    expected = model.generate(**source, max_new_tokens=8, min_new_tokens=8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    logits, cache = [], family.new_cache()
    with torch.no_grad(), compiling_allowed(family):
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
def test_torch_compile_refuses_recurrent_layers_by_default(family, batch):
    compiled = torch.compile(family.model(), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Set torch._dynamo.config.allow_rnn=True"):
        compiled(**batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name in FAST], ids=lambda family: family.name
)
def test_inductor_computes_the_same(family, batch):
    model = family.model()
    with torch.no_grad(), compiling_allowed(family):
        found = torch.compile(model, fullgraph=True, backend="inductor")(**batch).logits
    assert (found - model(**batch).logits).abs().max() < 1e-5


# -- torch.export


@pytest.mark.parametrize(
    "family",
    [pytest.param(each, id=each.name, marks=[] if each is TRANSFORMER else pytest.mark.slow) for each in FAMILIES],
)
def test_the_exported_forward_pass_has_dynamic_shapes(family, batch, longer_source):
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
    """Imports inductor before transformers' exporter replaces functions of torch during the export.

    Inductor registers torch's functions by identity. Imported during an export it would register the replacements, and
    flex attention would fail in the rest of the process.
    """
    import torch._inductor.lowering  # noqa: F401 -- registers torch's functions


def on_one_thread(exported):
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3  # 3: errors
    return exported.to(device="cpu", session_options=options)


@pytest.mark.usefixtures("inductor_knows_torch")
@pytest.mark.parametrize("family", SOME_SLOW)
def test_onnx_encodes_prefills_and_decodes_as_the_model_does(family, source, longer_source):
    """The three graphs of a translation in onnxruntime, with a source of another size than at the export."""
    model = family.model(**FEW_LAYERS)
    config = OnnxConfig(dynamic=True)
    encoder = on_one_thread(OnnxExporter().export(model.get_encoder(), dict(source), config))
    # "multi token" exports with two tokens in the cache, so that the graph does not fix its length.
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
