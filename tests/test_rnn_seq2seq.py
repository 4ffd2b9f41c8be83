# SPDX-License-Identifier: Apache-2.0
"""The RNN against an independent computation: torch's cells step by step, and each formula written out."""

import itertools

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from vanilla_transformer import RNNSeq2SeqConfig, RNNSeq2SeqForConditionalGeneration
from vanilla_transformer.recurrence import RecurrentCache, RecurrentState

PAD = 0
CELLS = {"tanh": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
TINY = {"vocab_size": 23, "embedding_size": 6, "hidden_size": 5, "num_layers": 2, "tie_word_embeddings": True}


def tiny_model(dtype: torch.dtype = torch.float64, **changes) -> RNNSeq2SeqForConditionalGeneration:
    torch.manual_seed(3)
    model = RNNSeq2SeqForConditionalGeneration(RNNSeq2SeqConfig(**(TINY | changes))).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


# -- the independent computation, of one sentence without padding


def cell_of(recurrence: nn.RNNBase, kind: str, direction: str = "") -> nn.RNNCellBase:
    cell = CELLS[kind](recurrence.input_size, recurrence.hidden_size).to(recurrence.weight_ih_l0.dtype)
    for name, parameter in cell.named_parameters():
        parameter.data = getattr(recurrence, f"{name}_l0{direction}").data
    return cell


def steps(cell: nn.RNNCellBase, inputs: list[torch.Tensor], state) -> tuple[list[torch.Tensor], object]:
    outputs = []
    for x in inputs:
        state = cell(x, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return outputs, state


def as_parts(state) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def encode_by_hand(model, source: list[int]) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, ...]]]:
    """The outputs at each token, and each layer's last state (both directions concatenated)."""
    config = model.config
    inputs = [model.model.encoder.embed_tokens.weight[token] for token in source]
    finals = []
    for layer in model.model.encoder.stack.layers:
        there = inputs[::-1] if config.reverse_source else inputs
        outputs, state = steps(cell_of(layer.recurrence, config.cell), there, None)
        outputs = outputs[::-1] if config.reverse_source else outputs
        parts = as_parts(state)
        if config.bidirectional:
            back, state = steps(cell_of(layer.recurrence, config.cell, "_reverse"), inputs[::-1], None)
            outputs = [torch.cat(pair) for pair in zip(outputs, back[::-1], strict=True)]
            parts = tuple(torch.cat(pair) for pair in zip(parts, as_parts(state), strict=True))
        if config.residual and len(inputs[0]) == len(outputs[0]):
            outputs = [x + output for x, output in zip(inputs, outputs, strict=True)]
        inputs = outputs
        finals.append(parts)
    return inputs, finals


def attend_by_hand(model, state: torch.Tensor, source: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    attention = model.model.decoder.attention
    if model.config.attention == "additive":  # v^T tanh(W s + U h_j)
        scores = [
            attention.v.weight[0] @ torch.tanh(attention.q_proj.weight @ state + attention.k_proj.weight @ h)
            for h in source
        ]
    else:  # s^T W h_j
        scores = [state @ attention.k_proj.weight @ h for h in source]
    weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
    return sum(weight * h for weight, h in zip(weights, source, strict=True)), weights


def logits_by_hand(model, source: list[int], target: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`(target_length, vocab_size)`, and the weights `(target_length, source_length)` if there is attention."""
    config, decoder = model.config, model.model.decoder
    encoded, finals = encode_by_hand(model, source)
    layers = len(decoder.stack.layers)
    if decoder.bridge.is_copy:
        states = finals
    else:
        linear = list(decoder.bridge.projections)
        parts = len(finals[0])
        squash = (lambda x: x) if config.bridge == "top_linear" else torch.tanh
        states = [
            tuple(
                squash(
                    linear[part * layers + i].weight
                    @ (
                        finals[max(0, len(finals) - layers + i)][part]
                        if config.bridge == "counterparts"
                        else finals[-1][0]
                    )
                    + linear[part * layers + i].bias
                )
                for part in range(parts)
            )
            for i in range(layers)
        ]
    cells = [cell_of(layer.recurrence, config.cell) for layer in decoder.stack.layers]
    bias = decoder.readout.linear.bias if config.readout_bias else 0.0
    fed = torch.zeros(config.embedding_size, dtype=torch.float64)
    all_logits, all_weights = [], []
    for token in target:
        x = decoder.embed_tokens.weight[token]
        if config.input_feeding == "context":
            context, weights = attend_by_hand(model, states[-1][0], encoded)
            x = torch.cat([x, context])
        elif config.input_feeding == "attentional":
            x = torch.cat([x, fed])
        new_states = []
        for cell, state in zip(cells, states, strict=True):
            parts = as_parts(cell(x, state if len(state) > 1 else state[0]))
            x = x + parts[0] if config.residual and len(x) == len(parts[0]) else parts[0]
            new_states.append(parts)
        states = new_states
        if config.attention == "none":
            vector = x if len(x) == config.embedding_size else torch.tanh(decoder.readout.linear.weight @ x)
        else:
            if config.input_feeding != "context":
                context, weights = attend_by_hand(model, x, encoded)
            vector = torch.tanh(decoder.readout.linear.weight @ torch.cat([context, x]) + bias)
            all_weights.append(weights)
        fed = vector
        all_logits.append(model.lm_head.weight @ vector)
    return torch.stack(all_logits), torch.stack(all_weights) if all_weights else None


ATTENTIONS = [
    ("none", "none"),
    *itertools.product(("additive", "multiplicative"), ("none", "context", "attentional")),
]


@pytest.mark.parametrize("reading", ["forward", "reverse", "both"])
@pytest.mark.parametrize(("attention", "input_feeding"), ATTENTIONS)
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_logits_and_weights_equal_torchs_cells_step_by_step(cell, attention, input_feeding, reading):
    model = tiny_model(
        cell=cell,
        attention=attention,
        input_feeding=input_feeding,
        bidirectional=reading == "both",
        reverse_source=reading == "reverse",
    )
    sources, targets = [[3, 4, 5, 6, 7], [8, 9, 10]], [[1, 11, 12], [1, 13, 14]]
    padded = torch.tensor([sources[0], [*sources[1], PAD, PAD]])
    output = model(input_ids=padded, decoder_input_ids=torch.tensor(targets), output_attentions=True)
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        logits, weights = logits_by_hand(model, source, target)
        assert (output.logits[i] - logits).abs().max() < 1e-6
        if weights is not None:
            assert (output.cross_attentions[0][i, 0, :, : len(source)] - weights).abs().max() < 1e-6


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
@pytest.mark.parametrize("decoder_layers", [1, 3])
def test_residual_connections_and_other_depths_equal_torchs_cells(cell, decoder_layers):
    architecture = {"attention": "multiplicative", "input_feeding": "none", "residual": True}
    model = tiny_model(cell=cell, num_decoder_layers=decoder_layers, **architecture)
    logits, _ = logits_by_hand(model, [3, 4, 5], [1, 6])
    output = model(input_ids=torch.tensor([[3, 4, 5]]), decoder_input_ids=torch.tensor([[1, 6]])).logits[0]
    assert (output - logits).abs().max() < 1e-6


@pytest.mark.parametrize("bridge", ["top", "top_linear"])
@pytest.mark.parametrize(("cell", "layers", "decoder_layers"), [("gru", 2, 1), ("lstm", 3, 2)])
@torch.no_grad()
def test_the_bridge_from_the_top_layer_and_the_bias_of_the_readout(cell, layers, decoder_layers, bridge):
    depth = {"num_layers": layers, "num_decoder_layers": decoder_layers, "bidirectional": layers == 2}
    attention = {"attention": "multiplicative", "input_feeding": "attentional", "readout_bias": True}
    model = tiny_model(cell=cell, bridge=bridge, **depth, **attention)
    logits, _ = logits_by_hand(model, [3, 4, 5], [1, 6])
    output = model(input_ids=torch.tensor([[3, 4, 5]]), decoder_input_ids=torch.tensor([[1, 6]])).logits[0]
    assert (output - logits).abs().max() < 1e-6


@torch.no_grad()
def test_the_tanh_cell_is_the_plain_rnn():
    model = tiny_model(cell="tanh", bidirectional=False, attention="none", input_feeding="none", num_layers=1)
    layer, x = model.model.encoder.stack.layers[0].recurrence, model.model.encoder.embed_tokens.weight[[3, 4]]
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    first = torch.tanh(layer.weight_ih_l0 @ x[0] + bias)
    second = torch.tanh(layer.weight_ih_l0 @ x[1] + layer.weight_hh_l0 @ first + bias)
    encoded = model.get_encoder()(torch.tensor([[3, 4]])).last_hidden_state[0]
    assert torch.allclose(encoded, torch.stack([first, second]), atol=1e-12)


# -- padding


@pytest.mark.parametrize("padded", [[PAD, PAD, 3, 4, 5], [3, 4, 5, PAD, PAD], [3, PAD, 4, PAD, 5]])
@torch.no_grad()
def test_the_backward_direction_starts_at_the_last_real_token(padded):
    encoder = tiny_model(cell="lstm").get_encoder()
    ids = torch.tensor([padded])
    alone, found = encoder(torch.tensor([[3, 4, 5]])), encoder(ids)
    assert torch.allclose(found.last_hidden_state[ids != PAD], alone.last_hidden_state[0], atol=1e-12)
    assert torch.allclose(found.final_hidden, alone.final_hidden, atol=1e-12)
    assert torch.allclose(found.final_cell_state, alone.final_cell_state, atol=1e-12)


@pytest.mark.parametrize("input_feeding", ["none", "context", "attentional"])
@torch.no_grad()
def test_padding_after_the_target_leaves_the_state_as_it_was(input_feeding):
    model = tiny_model(input_feeding=input_feeding)
    source, target = torch.tensor([[3, 4, 5]]), torch.tensor([[1, 6, 7]])
    mask = torch.tensor([[1, 1, 0]])
    padded = model(input_ids=source, decoder_input_ids=target, decoder_attention_mask=mask, use_cache=True).cache
    plain = model(input_ids=source, decoder_input_ids=target[:, :2], use_cache=True).cache
    for name, tensor in plain.state.tensors.items():
        assert torch.allclose(padded.state.tensors[name], tensor, atol=1e-12)


@pytest.mark.parametrize("input_feeding", ["none", "context", "attentional"])
@torch.no_grad()
def test_padding_before_the_target_fed_token_by_token_leaves_the_state_as_it_was(input_feeding):
    model = tiny_model(input_feeding=input_feeding)
    source, target = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[PAD, 1, 9], [1, 10, 11]])
    mask = target.ne(PAD).long()
    whole = model(input_ids=source, decoder_input_ids=target, decoder_attention_mask=mask).logits
    cache, steps = None, []
    for i in range(3):
        options = {"decoder_attention_mask": mask[:, : i + 1], "cache": cache, "use_cache": True}
        output = model(input_ids=source, decoder_input_ids=target[:, i : i + 1], **options)
        cache, steps = output.cache, [*steps, output.logits]
    stepwise = torch.cat(steps, dim=1)
    assert torch.allclose(stepwise[mask.bool()], whole[mask.bool()], atol=1e-12)


@pytest.mark.parametrize(("layers", "decoder_layers"), [(3, 1), (1, 3), (3, 3)])
def test_every_layer_learns_without_attention_too(layers, decoder_layers):
    model = tiny_model(attention="none", input_feeding="none", num_layers=layers, num_decoder_layers=decoder_layers)
    model.train()(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[5, 2]])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


@torch.no_grad()
def test_a_source_without_any_token_stays_finite():
    model = tiny_model()
    logits = model(input_ids=torch.tensor([[3, 4], [PAD, PAD]]), decoder_input_ids=torch.tensor([[1], [1]])).logits
    assert logits.isfinite().all()


# -- the state in generate()


@pytest.mark.parametrize(
    "architecture",
    [
        {"cell": "gru", "attention": "additive", "input_feeding": "context"},
        {"cell": "lstm", "attention": "multiplicative", "input_feeding": "attentional"},
        {"cell": "lstm", "attention": "none", "input_feeding": "none"},
    ],
    ids=["bahdanau", "luong", "none"],
)
def test_beam_search_reorders_the_recurrent_state(architecture, monkeypatch):
    model = tiny_model(**architecture, tie_word_embeddings=False)
    source = torch.tensor([[3, 4, 5, 6], [7, 8, 9, PAD]])
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 10, "min_new_tokens": 10}
    expected = model.generate(source, **options, use_cache=False)
    assert torch.equal(model.generate(source, **options), expected)
    monkeypatch.setattr(RecurrentState, "reorder_cache", lambda self, beam_idx: None)
    assert not torch.equal(model.generate(source, **options), expected)


def test_the_state_is_repeated_and_selected_like_any_cache():
    model = tiny_model(cell="lstm", attention="multiplicative", input_feeding="attentional")
    source, target = torch.tensor([[3, 4], [5, 6]]), torch.tensor([[1], [1]])
    cache = model(input_ids=source, decoder_input_ids=target, use_cache=True).cache
    before = {name: tensor.clone() for name, tensor in cache.state.tensors.items()}
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert set(before) == {"hidden", "cell_state", "attentional"}
    for name, tensor in before.items():
        assert torch.equal(cache.state.tensors[name], tensor[[1, 0]])
    assert cache.state.source_keys.shape[0] == 2


def test_the_cache_counts_tokens_and_can_be_emptied():
    model = tiny_model()
    cache = model(input_ids=torch.tensor([[3, 4]]), decoder_input_ids=torch.tensor([[1, 5, 6]]), use_cache=True).cache
    assert cache.get_seq_length() == 3
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.state.tensors == {}


def test_attention_weights_come_out_of_generate():
    model = tiny_model()
    output = model.generate(
        torch.tensor([[3, 4, 5]]),
        max_new_tokens=4,
        min_new_tokens=4,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    assert [step[0].shape for step in output.cross_attentions] == [(1, 1, 1, 3)] * 4


# -- training


def test_bfloat16_autocast_trains_every_architecture():
    for cell, (attention, feeding) in itertools.product(CELLS, ATTENTIONS):
        model = tiny_model(torch.float32, cell=cell, attention=attention, input_feeding=feeding, residual=True).train()
        source = torch.tensor([[3, 4, 5], [6, 7, PAD]])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=source, labels=torch.tensor([[8, 9, 2], [10, 2, -100]])).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), (
            cell,
            attention,
            feeding,
        )


def test_initialisation_is_orthogonal_with_open_forget_gates():
    torch.manual_seed(0)
    model = RNNSeq2SeqForConditionalGeneration(RNNSeq2SeqConfig(**TINY, cell="lstm"))
    layer = model.model.decoder.stack.layers[0].recurrence
    for gate in layer.weight_hh_l0.split(5):
        assert torch.allclose(gate @ gate.T, torch.eye(5), atol=1e-5)
    assert layer.bias_ih_l0.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10
    assert layer.bias_hh_l0.abs().max() == 0


def test_loading_keeps_the_recurrent_weights(tmp_path):
    model = tiny_model(torch.float32, cell="lstm")
    model.save_pretrained(tmp_path)
    loaded = RNNSeq2SeqForConditionalGeneration.from_pretrained(tmp_path)
    for (name, before), after in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(before, after), name


# -- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 must lie between 1 and"),
        ({"num_decoder_layers": 0}, "num_decoder_layers=0 must lie between 1 and"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and less than 1"),
        ({"reverse_source": True}, "reverse_source=True has no meaning with bidirectional=True"),
        (
            {"attention": "none", "input_feeding": "none", "readout_bias": True, "embedding_size": 5},
            "readout_bias=True: without attention and with embedding_size=5, the hidden_size, the projection reads",
        ),
        ({"attention": "none"}, "input_feeding='context' feeds what attention computes, and attention is 'none'"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        RNNSeq2SeqConfig(**(TINY | changes))


@pytest.mark.parametrize("changes", [{"cell": "elman"}, {"attention": "dot"}, {"hidden_size": "5"}])
def test_unknown_names_and_wrong_types_are_named(changes):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(changes))):
        RNNSeq2SeqConfig(**(TINY | changes))


def test_a_decoder_without_encoder_outputs_is_an_error():
    decoder = tiny_model().get_decoder()
    with pytest.raises(ValueError, match="give encoder_outputs as the encoder returns them .*, not NoneType"):
        decoder(torch.tensor([[1]]))


def test_another_kind_of_cache_is_an_error():
    model = tiny_model()
    with pytest.raises(ValueError, match="the cache of an RNN is a RecurrentCache, its state; EncoderDecoderCache"):
        model(
            input_ids=torch.tensor([[3]]),
            decoder_input_ids=torch.tensor([[1]]),
            cache=EncoderDecoderCache(DynamicCache(), DynamicCache()),
        )


def test_a_cache_implementation_that_an_rnn_cannot_have_is_an_error():
    with pytest.raises(ValueError, match="cache_implementation='offloaded': an RNN has a state"):
        tiny_model().generate(torch.tensor([[3]]), cache_implementation="offloaded")


def test_a_users_own_cache_is_used():
    model, cache = tiny_model(), RecurrentCache()
    model(input_ids=torch.tensor([[3]]), decoder_input_ids=torch.tensor([[1]]), cache=cache)
    assert cache.get_seq_length() == 1
