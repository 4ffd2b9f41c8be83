# SPDX-License-Identifier: Apache-2.0
"""The contract of a transformers model, forward and training, for a tiny model of each of `tests/families.py`.

Loading, generation and export have files of their own beside this one.
"""

import copy
import re
from contextlib import nullcontext

import pytest
import torch

from tests import families
from tests.families import FAMILIES, PAD, START
from vanilla_transformer.transformers_differences import CACHE, recompute_activations

DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}


# -- the declarations of families.py


def test_unsupported_behaviours_are_named_constants():
    named = {value for name, value in vars(families).items() if name.isupper() and isinstance(value, str)}
    for family in FAMILIES:
        assert family.lacks.keys() <= named
        assert family.name.startswith("rnn_seq2seq") or not family.lacks


def test_unsupported_behaviours_are_printed_with_their_reasons():
    text = families.unsupported_behaviours()
    for family in FAMILIES:
        assert f"{family.name}:" in text
        assert all(f"{behaviour}: {reason}" in text for behaviour, reason in family.lacks.items())


# -- forward


HALF = {dtype: 16 * torch.finfo(dtype).eps for dtype in (torch.bfloat16, torch.float16)}  # logits are below 3


def differences_from_eager(model, batch, backends: tuple[str, ...]) -> dict[str, float]:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected, found = model(**batch).logits, {}
        for backend in backends:
            model.set_attn_implementation(backend)
            found[backend] = (model(**batch).logits - expected).abs().max().item()
            print(f"max abs difference of {backend} from eager in {model.dtype}: {found[backend]:.1e}")
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), (DTYPES | HALF).items(), ids=["float32", "float64", "bfloat16", "float16"]
)
def test_attention_backends_agree(family, batch, dtype, tolerance):
    backends = tuple(backend for backend in family.backends if backend != "flex_attention")
    assert max(differences_from_eager(family.model(dtype), batch, backends).values()) < tolerance


@pytest.mark.slow  # flex attention is compiled, in the next tests too
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "AVX2",
    reason="torch 2.13's flex attention is at times wrong by whole units on a CPU without AVX512",
)
def test_flex_attention_agrees(batch):
    assert differences_from_eager(FAMILIES[0].model(), batch, ("flex_attention",))["flex_attention"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), HALF.items(), ids=["bfloat16", "float16"])
def test_flex_attention_agrees_in_half_precision(batch, dtype, tolerance):
    found = differences_from_eager(FAMILIES[0].model(dtype), batch, ("flex_attention",))
    assert found["flex_attention"] < tolerance


@pytest.mark.slow
def test_flex_attention_has_no_float64_on_a_cpu(batch):
    model = FAMILIES[0].model(torch.float64)
    model.set_attn_implementation("flex_attention")
    with torch.no_grad(), pytest.raises(Exception, match="supported in FlexAttention for CPU.*torch.float64"):
        model(**batch)


@pytest.mark.parametrize(("dtype", "tolerance"), HALF.items(), ids=["bfloat16", "float16"])
def test_half_precision_is_near_the_exact_logits(family, batch, dtype, tolerance):
    model = family.model()
    exact = model(**batch).logits
    assert (model.to(dtype)(**batch).logits - exact).abs().max() < tolerance


def test_unsupported_attention_backends_are_refused(family):
    model = family.model()
    for backend in ("sdpa", "flex_attention"):
        if families.ATTENTION_BACKENDS in family.lacks:
            assert backend not in family.backends
            with pytest.raises(ValueError, match="does not support an attention implementation"):
                model.set_attn_implementation(backend)
        else:
            model.set_attn_implementation(backend)
            assert model.model.decoder.config._attn_implementation == backend


FLASH = ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "paged|flash_attention_2"]
FLASH += ["kernels-community/flash-attn3:flash_attention", "someone/attention"]


@pytest.mark.parametrize("backend", FLASH)
def test_flash_attention_is_refused_with_the_reason(family, tmp_path, backend):
    model = family.model()
    model.save_pretrained(tmp_path)
    ways = [
        lambda: model.set_attn_implementation(backend),
        lambda: model.set_attn_implementation({"": backend}),
        lambda: type(model).from_pretrained(tmp_path, attn_implementation=backend),
        lambda: type(model)._from_config(family.config(), attn_implementation=backend),
    ]
    for way in ways:
        with pytest.raises(
            ValueError, match=f"attn_implementation='{re.escape(backend)}': .*#35032.*another"
        ) as caught:
            way()
        assert "\n" not in str(caught.value)
    assert "flash" not in model.config._attn_implementation


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["float32", "float64"])
def test_cached_decoding_equals_the_whole_target(family, batch, dtype, tolerance):
    model = family.model(dtype)
    target = batch.pop("labels").clamp(min=3)
    with torch.no_grad():
        whole = model(**batch, decoder_input_ids=target).logits
        cache, steps = None, []
        for i in range(target.shape[1]):
            output = model(**batch, decoder_input_ids=target[:, i : i + 1], cache=cache, use_cache=True)
            cache, steps = output.cache, [*steps, output.logits]
    difference = (torch.cat(steps, dim=1) - whole).abs().max().item()
    print(f"max abs difference of cached from whole in {dtype}: {difference:.1e}")
    assert difference < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["float32", "float64"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_source_padding_invariance(family, batch, dtype, tolerance, side):
    model = family.model(dtype)
    source, target = batch["input_ids"][1:2], batch["labels"][2:3]
    padding = torch.full((1, 4), PAD)
    padded = torch.cat([padding, source] if side == "left" else [source, padding], dim=1)
    with torch.no_grad():
        alone = model(input_ids=source, labels=target).logits
        difference = (model(input_ids=padded, attention_mask=padded.ne(PAD), labels=target).logits - alone).abs().max()
    print(f"max abs difference with {side} padding in {dtype}: {difference.item():.1e}")
    assert difference < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["float32", "float64"])
def test_target_left_padding_invariance(family, batch, dtype, tolerance):
    model = family.model(dtype)
    target = batch.pop("labels").clamp(min=3)
    padded = torch.cat([torch.full((3, 2), PAD), target], dim=1)
    with torch.no_grad():
        plain = model(**batch, decoder_input_ids=target).logits
        shifted = model(**batch, decoder_input_ids=padded, decoder_attention_mask=padded.ne(PAD).long()).logits[:, 2:]
    assert (shifted - plain).abs().max() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["float32", "float64"])
def test_batch_invariance(family, batch, dtype, tolerance):
    model = family.model(dtype)
    with torch.no_grad():
        together = model(**batch).logits
        for i in range(3):
            alone = model(**{name: tensor[i : i + 1] for name, tensor in batch.items()}).logits
            assert (together[i] - alone[0]).abs().max() < tolerance


def test_mask_is_inferred_from_padding(family, batch):
    model = family.model()
    without = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    assert torch.equal(model(**without).logits, model(**batch).logits)


def test_causal_mask_hides_later_positions(family, batch):
    model = family.model(torch.float64)
    target = batch.pop("labels").clamp(min=3)
    changed = target.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 31
    before, after = (model(**batch, decoder_input_ids=ids).logits for ids in (target, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_inputs_embeds_stand_for_input_ids(family, batch):
    model = family.model()
    source = batch.pop("input_ids")
    embedded = model.get_input_embeddings()(source)
    assert torch.equal(model(inputs_embeds=embedded, **batch).logits, model(input_ids=source, **batch).logits)


def test_decoder_inputs_embeds_stand_for_decoder_input_ids(family, batch):
    model = family.model()
    target = batch.pop("labels").clamp(min=3)
    embedded = model.get_decoder().embed_tokens(target)
    expected = model(**batch, decoder_input_ids=target).logits
    assert torch.equal(model(**batch, decoder_inputs_embeds=embedded).logits, expected)
    with pytest.raises(ValueError, match="decoder_input_ids or decoder_inputs_embeds; both was given"):
        model(**batch, decoder_input_ids=target, decoder_inputs_embeds=embedded)


def test_input_ids_beside_inputs_embeds_are_an_error(family, batch):
    model = family.model()
    embedded = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="both was given"):
        model(inputs_embeds=embedded, **batch)


def test_encoder_outputs_stand_for_the_source(family, batch):
    model = family.model()
    encoded = model.get_encoder()(batch["input_ids"], batch["attention_mask"])
    output = model(encoder_outputs=encoded, labels=batch["labels"])
    assert torch.equal(output.logits, model(**batch).logits)


def test_attentions_and_hidden_states_have_their_shapes(family, batch):
    model = family.model()
    model.set_attn_implementation("eager")
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    found = {name: output.get(name) for name in family.shapes}
    assert {name: layers and [layer.shape for layer in layers] for name, layers in found.items()} == family.shapes


def test_attention_maps_are_missing_only_where_declared(family, batch):
    model = family.model()
    model.set_attn_implementation("eager")
    output = model(**batch, output_attentions=True)
    lacks_self, lacks_cross = (name in family.lacks for name in (families.SELF_ATTENTION, families.CROSS_ATTENTION))
    assert (output.encoder_attentions is None) == (output.decoder_attentions is None) == lacks_self
    assert (output.cross_attentions is None) == lacks_cross


def test_attention_weights_sum_to_one_and_skip_padding(family, batch):
    model = family.model()
    model.set_attn_implementation("eager")
    for weights in model(**batch, output_attentions=True).cross_attentions or ():
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:3]), atol=1e-6)
        assert weights[0, :, :, 5:].abs().max() == 0


def test_return_dict_false_gives_the_same_tuple(family, batch):
    model = family.model()
    as_tuple, as_dict = model(**batch, return_dict=False), model(**batch)
    assert torch.equal(as_tuple[0], as_dict.loss)
    assert torch.equal(as_tuple[1], as_dict.logits)


def test_return_dict_false_in_the_config_gives_tuples(family, batch):
    model = family.model(return_dict=False)
    inputs = batch | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch.pop("labels"))}
    expected = family.model()
    assert torch.equal(model(**inputs)[0], expected(**inputs).logits)
    assert torch.equal(model.model(**inputs)[0], expected.model(**inputs).last_hidden_state)


def test_old_name_of_the_cache_is_accepted(family, batch):
    model = family.model()
    target = batch.pop("labels").clamp(min=3)
    cache = family.new_cache()
    is_renamed = CACHE == "cache"
    with pytest.warns(FutureWarning, match="past_key_values") if is_renamed else nullcontext():
        output = model(**batch, decoder_input_ids=target, past_key_values=cache)
    assert output.cache is cache


def test_stacks_and_base_model_give_the_same_tuples(family, batch):
    model = family.model()
    target = batch.pop("labels").clamp(min=0)
    encoder, base = model.get_encoder(), model.model
    assert torch.equal(encoder(**batch, return_dict=False)[0], encoder(**batch).last_hidden_state)
    as_tuple = base(**batch, decoder_input_ids=target, return_dict=False)
    assert torch.equal(as_tuple[0], base(**batch, decoder_input_ids=target).last_hidden_state)


def test_forward_is_deterministic(family, batch):
    model = family.model()
    assert torch.equal(model(**batch).logits, model(**batch).logits)


def test_output_flags_do_not_change_logits(family, batch):
    model = family.model()
    model.set_attn_implementation("eager")
    asked = model(**batch, output_hidden_states=True, output_attentions=True)
    assert torch.equal(asked.logits, model(**batch).logits)


def test_field_names_of_transformers_are_checked_like_ours(family):
    with pytest.raises(ValueError, match="num_layers=0 must lie between 1 and"):
        family.config_class(num_hidden_layers=0)


def test_a_head_is_as_wide_as_the_given_hidden_size_allows():
    config = FAMILIES[0].config_class(hidden_size=64, num_attention_heads=4)
    assert (config.d_model, config.d_k, config.d_v) == (64, 16, 16)


def test_a_negative_chunk_is_an_error():
    with pytest.raises(ValueError, match="chunk_size_feed_forward=-1 must be at least 0"):
        FAMILIES[0].config(chunk_size_feed_forward=-1)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_feed_forward_chunking_invariance(family, batch, chunk):
    if families.FEED_FORWARD_CHUNKS in family.lacks:
        with pytest.raises(ValueError, match=f"chunk_size_feed_forward={chunk}: an RNN has no feed-forward networks"):
            family.config(chunk_size_feed_forward=chunk)
        return
    whole, chunked = family.model(torch.float64), family.model(torch.float64, chunk_size_feed_forward=chunk)
    assert torch.allclose(chunked(**batch).logits, whole(**batch).logits, atol=1e-12)
    widths = []
    chunked.model.encoder.layers[0].feed_forward.linear_1.register_forward_hook(
        lambda _, inputs, output: widths.append(output.shape[1])
    )
    generated = chunked.generate(batch["input_ids"], max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(
        generated, family.model(torch.float64).generate(batch["input_ids"], max_new_tokens=3, min_new_tokens=3)
    )
    assert max(widths) == min(chunk, 8)


# -- loss and training


def test_labels_are_shifted_once(family, batch):
    model = family.model(label_smoothing=0.0)
    labels = batch["labels"]
    decoder_input_ids = torch.cat([torch.full((3, 1), START), labels[:, :-1]], dim=1).clamp(min=0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, decoder_input_ids=decoder_input_ids).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.view(-1))
    assert model(**batch).loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("skip_logits", [False, True])
def test_only_minus_100_is_ignored_among_labels(family, batch, skip_logits):
    """The pad id is a token like others: a corpus may have it, and Trainer counts it."""
    model = family.model(label_smoothing=0.1)
    labels = batch["labels"].masked_fill(batch["labels"] == -100, PAD)
    labels[0, 0] = -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    logits = model(**inputs, decoder_input_ids=decoder_input_ids).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    loss = model(**inputs, labels=labels, skip_logits=skip_logits).loss
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_training_loss_has_a_gradient_through_the_logits(family, batch):
    output = family.model(torch.float64, dropout=0.0, label_smoothing=0.1).train()(**batch)
    logits = output.logits.detach().requires_grad_()
    cross_entropy = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1
    )
    (expected,) = torch.autograd.grad(cross_entropy, logits)
    (found,) = torch.autograd.grad(output.loss, output.logits)
    assert output.loss.item() == pytest.approx(cross_entropy.item(), abs=1e-12)
    assert torch.allclose(found, expected, atol=1e-12)


def test_skip_logits_gives_the_same_loss_and_gradients(family, batch):
    model = family.model(torch.float64, dropout=0.0, label_smoothing=0.1).train()
    whole, chunked = model(**batch), model(**batch, skip_logits=True)
    assert chunked.logits is None
    assert chunked.loss.item() == pytest.approx(whole.loss.item(), abs=1e-12)
    assert chunked.negative_log_likelihood.item() == pytest.approx(whole.negative_log_likelihood.item(), abs=1e-12)
    parameters = list(model.parameters())
    gradients = zip(
        torch.autograd.grad(whole.loss, parameters), torch.autograd.grad(chunked.loss, parameters), strict=True
    )
    assert all(torch.allclose(*pair, atol=1e-12) for pair in gradients)


def test_skip_logits_runs_hooks_of_the_projection(family, batch):
    """With a hook or an adapter the weight is not the whole projection."""
    model = family.model(torch.float64, dropout=0.0).train()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: 2 * logits)
    whole, skipped = model(**batch), model(**batch, skip_logits=True)
    assert skipped.logits is None
    assert skipped.loss.item() == pytest.approx(whole.loss.item(), abs=1e-12)


def test_skip_logits_needs_labels(family, batch):
    with pytest.raises(ValueError, match="skip_logits=True leaves nothing to return without labels"):
        family.model()(batch["input_ids"], decoder_input_ids=batch["input_ids"], skip_logits=True)


@pytest.mark.parametrize("tokens", [None, 0, torch.tensor(0)])
@pytest.mark.parametrize("skip_logits", [False, True])
def test_a_batch_without_a_label_has_loss_0_and_zero_gradients(family, batch, skip_logits, tokens):
    model = family.model().train()
    labels = torch.full_like(batch["labels"], -100)
    output = model(**batch | {"labels": labels}, skip_logits=skip_logits, num_items_in_batch=tokens)
    output.loss.backward()
    assert output.loss.item() == output.negative_log_likelihood.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("label", [-1, -101, 37])
@pytest.mark.parametrize("skip_logits", [False, True])
def test_a_label_out_of_range_is_an_error(family, batch, skip_logits, label):
    labels = batch["labels"].clone()
    labels[0, -1] = label  # the last: the decoder does not read it
    with pytest.raises((IndexError, RuntimeError), match=rf"{label} is out of bounds"):
        family.model()(**batch | {"labels": labels}, skip_logits=skip_logits)


@pytest.mark.parametrize("parts", [1, 3])
def test_gradient_accumulation_equals_the_whole_batch(family, batch, parts):
    model = family.model(torch.float64, dropout=0.0).train()
    tokens = (batch["labels"] != -100).sum()
    model(**batch).loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for i in range(0, 3, 3 // parts):
        part = {name: tensor[i : i + 3 // parts] for name, tensor in batch.items()}
        model(**part, num_items_in_batch=tokens).loss.backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-12)


def test_every_parameter_gets_a_gradient(family, batch):
    model = family.model().train()
    model(**batch).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_checkpointed_activations_give_the_same_gradients(family, batch):
    model = family.model(torch.float64, dropout=0.0).train()
    checkpointed = copy.deepcopy(model)
    recompute_activations(checkpointed)
    for each in (model, checkpointed):
        each(**batch).loss.backward()
    for expected, found in zip(model.parameters(), checkpointed.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, atol=1e-12)


def test_a_few_updates_overfit_one_batch(family, batch):
    model = family.model(dropout=0.0, label_smoothing=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):  # 42 to 101 are enough
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.1:
            return
    pytest.fail(f"the loss is still {loss.item()}")


def test_the_same_seed_gives_the_same_dropout(family, batch):
    model = family.model(dropout=0.5).train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(**batch).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_hidden_states_and_attention_maps_have_gradients(family, batch):
    """The next layer reads the returned tensors themselves, not copies."""
    model = family.model()
    model.set_attn_implementation("eager")
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    steps, state_alone = (name in family.lacks for name in (families.INNER_GRADIENTS, families.CROSS_ATTENTION))
    for name in family.shapes:
        for number, layer in enumerate(output.get(name) or ()):
            layer.retain_grad()
            from_steps = steps and (name == "cross_attentions" or (name == "decoder_hidden_states" and number))
            unread = state_alone and name == "encoder_hidden_states" and number == 2
            layer.is_read = not (from_steps or unread)
    output.loss.backward()
    for name in family.shapes:
        for number, layer in enumerate(output.get(name) or ()):
            assert (layer.grad is not None) == layer.is_read, (name, number)
            assert layer.grad is None or layer.grad.abs().max() > 0, (name, number)
