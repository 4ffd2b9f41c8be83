# SPDX-License-Identifier: Apache-2.0
"""What every model of this package does as a model of transformers; each behaviour once, for each model.

`FAMILIES` lists the models; a tiny one of each goes through all of it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

import vanilla_transformer as package
from vanilla_transformer.recurrence import RecurrentCache

PAD, START, END = 0, 1, 2


@dataclass(frozen=True)
class Family:
    name: str
    config_class: type[PreTrainedConfig]
    base_class: type
    seq2seq_class: type
    tiny: dict[str, Any]
    backends: tuple[str, ...]
    new_cache: Callable[[], Cache]
    # Of a source of (3, 8) and a target of (3, 6): what the outputs of these names are shaped like, layer by layer.
    shapes: dict[str, list[tuple[int, ...]] | None]

    def config(self, **changes) -> PreTrainedConfig:
        return self.config_class(**(self.tiny | changes))

    def model(self, dtype: torch.dtype = torch.float32, **changes):
        torch.manual_seed(0)
        model = self.seq2seq_class(self.config(**changes)).to(dtype).eval()
        with torch.no_grad():  # away from the symmetric start, so that differences show
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model


def recurrent(name: str, architecture: dict[str, Any], encoder_width: int) -> Family:
    """An RNN; its embeddings are wider than its state, so that confusing them shows."""
    decoder_layers = architecture.get("num_decoder_layers", 3)
    return Family(
        name=f"rnn_seq2seq-{name}",
        config_class=package.RNNSeq2SeqConfig,
        base_class=package.RNNSeq2SeqModel,
        seq2seq_class=package.RNNSeq2SeqForConditionalGeneration,
        tiny={
            "vocab_size": 31,
            "embedding_size": 12,
            "hidden_size": 10,
            "num_layers": 2,
            "num_decoder_layers": decoder_layers,
            "tie_word_embeddings": True,
            "dropout": 0.1,
            "label_smoothing": 0.1,
        }
        | architecture,
        backends=("eager",),
        new_cache=RecurrentCache,
        shapes={
            "encoder_attentions": None,
            "decoder_attentions": None,
            "cross_attentions": None if architecture["attention"] == "none" else [(3, 1, 6, 8)],
            "encoder_hidden_states": [(3, 8, 12)] + [(3, 8, encoder_width)] * 2,
            "decoder_hidden_states": [(3, 6, 12)] + [(3, 6, 10)] * decoder_layers,
        },
    )


FAMILIES = [
    Family(
        name="vanilla_transformer",
        config_class=package.VanillaTransformerConfig,
        base_class=package.VanillaTransformerModel,
        seq2seq_class=package.VanillaTransformerForConditionalGeneration,
        tiny={"vocab_size": 31, "d_model": 16, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2},
        backends=("eager", "sdpa", "flex_attention"),
        new_cache=lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
        shapes={
            "encoder_attentions": [(3, 2, 8, 8)] * 2,
            "decoder_attentions": [(3, 2, 6, 6)] * 3,
            "cross_attentions": [(3, 2, 6, 8)] * 3,
            "encoder_hidden_states": [(3, 8, 16)] * 3,
            "decoder_hidden_states": [(3, 6, 16)] * 4,
        },
    ),
    recurrent(
        "bahdanau",
        {"cell": "gru", "bidirectional": True, "attention": "additive", "input_feeding": "context"},
        encoder_width=20,
    ),
    recurrent(
        "luong",
        {"cell": "lstm", "bidirectional": False, "attention": "multiplicative", "input_feeding": "attentional"}
        | {"num_decoder_layers": 2, "reverse_source": True},
        encoder_width=10,
    ),
    recurrent(
        "at_once",
        {"cell": "lstm", "bidirectional": True, "attention": "multiplicative", "input_feeding": "none"}
        | {"residual": True},
        encoder_width=20,
    ),
    recurrent(
        "sutskever",
        {"cell": "tanh", "bidirectional": False, "attention": "none", "input_feeding": "none", "reverse_source": True}
        | {"num_decoder_layers": 2},
        encoder_width=10,
    ),
]
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    source = torch.randint(3, 31, (3, 8))
    source[0, 5:] = PAD
    labels = torch.randint(3, 31, (3, 6))
    labels[1, 4:] = -100
    return {"input_ids": source, "attention_mask": source.ne(PAD).long(), "labels": labels}


# -- saving and loading


def test_auto_classes_open_what_was_saved(family, batch, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(loaded, family.seq2seq_class)
    assert isinstance(AutoModel.from_pretrained(tmp_path), family.base_class)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), family.config_class)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_the_base_model_loads_the_same_weights(family, batch, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    base = family.base_class.from_pretrained(tmp_path).eval()
    labels = batch.pop("labels").clamp(min=0)
    expected = model.model
    outputs = (m(**batch, decoder_input_ids=labels).last_hidden_state for m in (base, expected))
    assert torch.equal(next(outputs), next(outputs))


def test_loading_in_bfloat16_keeps_the_positions_exact(family, batch, tmp_path):
    family.model().save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = family.model().to(torch.bfloat16)
    assert torch.equal(loaded(**batch).logits, cast(**batch).logits)


def test_tied_weights_are_one_tensor_and_written_once(family, tmp_path):
    from safetensors import safe_open

    model = family.model()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tables = [name for name in file.keys() if "embed_tokens" in name or "lm_head" in name]  # noqa: SIM118 -- not a dict
    assert len(tables) == 1
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert loaded.model.decoder.embed_tokens.weight is loaded.get_input_embeddings().weight


def test_untied_weights_are_three_tensors(family, batch, tmp_path):
    model = family.model(tie_word_embeddings=False)
    tables = [model.get_input_embeddings(), model.model.decoder.embed_tokens, model.get_output_embeddings()]
    assert len({table.weight.data_ptr() for table in tables}) == 3
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)(**batch).logits, model(**batch).logits)


def test_config_survives_json(family, tmp_path):
    config = family.config(dropout=0.25)
    config.save_pretrained(tmp_path)
    assert family.config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_keep_the_old_logits(family, batch, tied):
    model = family.model(tie_word_embeddings=tied)
    before = model(**batch).logits
    model.resize_token_embeddings(31 + 5)
    after = model(**batch).logits
    assert after.shape[-1] == 36
    if tied:  # the new rows change no old logit
        assert torch.allclose(after[..., :31], before, atol=1e-6)
    assert model.config.vocab_size == 36


# -- forward


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["float32", "float64"])
def test_attention_backends_agree(family, batch, dtype, tolerance):
    model = family.model(dtype)
    logits = {}
    for backend in family.backends:
        if backend == "flex_attention" and dtype == torch.float64:
            continue  # flex attention has no float64 kernel on a CPU
        model.set_attn_implementation(backend)
        with torch.no_grad():
            logits[backend] = model(**batch).logits
    for backend, values in logits.items():
        difference = (values - logits["eager"]).abs().max().item()
        print(f"max abs difference of {backend} from eager in {dtype}: {difference:.1e}")
        assert difference < tolerance


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
def test_padding_of_the_source_changes_nothing(family, batch, dtype, tolerance, side):
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
def test_left_padding_of_the_target_changes_nothing(family, batch, dtype, tolerance):
    model = family.model(dtype)
    target = batch.pop("labels").clamp(min=3)
    padded = torch.cat([torch.full((3, 2), PAD), target], dim=1)
    with torch.no_grad():
        plain = model(**batch, decoder_input_ids=target).logits
        shifted = model(**batch, decoder_input_ids=padded, decoder_attention_mask=padded.ne(PAD).long()).logits[:, 2:]
    assert (shifted - plain).abs().max() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["float32", "float64"])
def test_batch_mates_change_nothing(family, batch, dtype, tolerance):
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


def test_no_position_sees_later_ones(family, batch):
    model = family.model(torch.float64)
    target = batch.pop("labels").clamp(min=3)
    changed = target.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 31
    one, other = (model(**batch, decoder_input_ids=ids).logits for ids in (target, changed))
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.equal(one[:, 4:], other[:, 4:])


def test_inputs_embeds_stand_for_input_ids(family, batch):
    model = family.model()
    source = batch.pop("input_ids")
    embedded = model.get_input_embeddings()(source)
    assert torch.equal(model(inputs_embeds=embedded, **batch).logits, model(input_ids=source, **batch).logits)


def test_both_kinds_of_input_are_an_error(family, batch):
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


def test_old_name_of_the_cache_is_accepted(family, batch):
    model = family.model()
    target = batch.pop("labels").clamp(min=3)
    cache = family.new_cache()
    with pytest.warns(FutureWarning, match="past_key_values"):
        output = model(**batch, decoder_input_ids=target, past_key_values=cache)
    assert output.cache is cache


# -- loss and training


def test_labels_are_shifted_once(family, batch):
    model = family.model(label_smoothing=0.0)
    labels = batch["labels"]
    decoder_input_ids = torch.cat([torch.full((3, 1), START), labels[:, :-1]], dim=1).clamp(min=0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, decoder_input_ids=decoder_input_ids).logits
    expected = torch.nn.functional.cross_entropy(logits.view(-1, 31), labels.view(-1))
    assert model(**batch).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_padding_in_the_labels_counts_as_ignored(family, batch):
    model = family.model()
    padded = batch | {"labels": batch["labels"].masked_fill(batch["labels"] == -100, PAD)}
    assert model(**padded).loss.item() == model(**batch).loss.item()


def test_training_mode_leaves_the_logits_out(family, batch):
    model = family.model(dropout=0.0).train()
    output = model(**batch)
    assert output.logits is None
    assert output.loss.item() == pytest.approx(model.eval()(**batch).loss.item(), abs=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_accumulated_gradients_equal_the_whole_batchs(family, batch, parts):
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
    other = copy.deepcopy(model)
    other.activation_checkpointing_enable()
    for each in (model, other):
        each(**batch).loss.backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, atol=1e-12)


def test_a_few_updates_learn_a_batch_by_heart(family, batch):
    model = family.model(dropout=0.0, label_smoothing=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


# -- generation

MODES = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "sampling": {"do_sample": True},
    "beam sampling": {"do_sample": True, "num_beams": 2},
    "n-best": {"num_beams": 3, "num_return_sequences": 3},
}


@pytest.mark.parametrize("mode", MODES)
def test_generation_with_cache_equals_generation_without(family, batch, mode):
    model = family.model(torch.float64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        outputs.append(model.generate(**inputs, **MODES[mode], max_new_tokens=9, use_cache=use_cache))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_generation_without_a_mask_infers_it(family, batch, mode):
    model = family.model(torch.float64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = model.generate(**inputs, **MODES[mode], max_new_tokens=9)
    assert torch.equal(model.generate(batch["input_ids"], **MODES[mode], max_new_tokens=9), expected)


def test_greedy_generation_follows_the_logits(family, batch):
    model = family.model(torch.float64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    generated = model.generate(**inputs, max_new_tokens=7, min_new_tokens=7)
    logits = model(**inputs, decoder_input_ids=generated[:, :-1]).logits
    logits[..., END] = -torch.inf  # min_new_tokens forbids it
    assert torch.equal(logits.argmax(-1), generated[:, 1:])


def test_static_cache_equals_dynamic_cache(family, batch):
    model = family.model(torch.float64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"num_beams": 3, "max_new_tokens": 6}
    expected = model.generate(**inputs, **options)
    assert torch.equal(
        model.generate(**inputs, **options, cache_implementation="static", disable_compile=True), expected
    )


def test_longest_output_is_relative_to_the_source(family, batch):
    model = family.model()
    model.generation_config.max_tokens_beyond_source = 4
    generated = model.generate(batch["input_ids"], min_new_tokens=500)
    assert generated.shape[1] == 1 + batch["input_ids"].shape[1] + 4


def test_generation_config_with_the_relative_length_survives_saving(family, tmp_path):
    model = family.model()
    model.generation_config = GenerationConfig(max_tokens_beyond_source=4, decoder_start_token_id=START)
    model.save_pretrained(tmp_path)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config.max_tokens_beyond_source == 4
