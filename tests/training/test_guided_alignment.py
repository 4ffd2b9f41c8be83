# SPDX-License-Identifier: Apache-2.0
"""Guided alignment: the loss by its formula, the gradients of an update, and the head that the model then names."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from tests.families import FAMILIES
from vanilla_transformer.data.corpus import CorpusConfig
from vanilla_transformer.inference.alignment import AlignmentHeads, alignment_heads_of
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.training.gradients import backward
from vanilla_transformer.training.guided_alignment import alignment_loss, name_guided_head
from vanilla_transformer.training.setup import set_up

RNN = "model={model_type: rnn_seq2seq, hidden_size: 8, embedding_size: 8, num_layers: 1}"
GUIDED = ("training.guided_alignment=0.5", "training.attention=eager")


def with_alignments(run) -> tuple[str, ...]:
    """Overrides for a tiny run whose targets are their sources in reverse."""
    values = yaml.safe_load(run.config.read_text(encoding="utf-8"))["data"]["train"]
    lengths = [len(line.split()) for line in Path(values["source"]).read_text(encoding="utf-8").splitlines()]
    lines = [" ".join(f"{length - 1 - t}-{t}" for t in range(length)) for length in lengths]
    path = run.folder / "train.align"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return (*GUIDED, f"data.train.alignments={path}")


def test_the_loss_is_the_cross_entropy_of_the_guided_head():
    """Head 0 of the second of 3 layers learns; the second of two target tokens is linked to two source tokens."""
    layers = [torch.full((1, 2, 2, 3), math.nan) for _ in range(3)]
    layers[1][0, 0] = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    links = torch.tensor([[[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]])
    expected = -(math.log(0.25) + 0.5 * math.log(0.1) + 0.5 * math.log(0.7)) / 5
    assert alignment_loss(layers, links, torch.tensor(5)).item() == pytest.approx(expected)


def test_right_attention_costs_nothing_and_a_lost_link_is_finite():
    links = torch.eye(3)[None]
    assert alignment_loss([torch.eye(3)[None, None]], links, torch.tensor(3)).item() == 0
    assert math.isfinite(alignment_loss([1 - torch.eye(3)[None, None]], links, torch.tensor(3)).item())


def test_an_update_has_the_gradients_of_both_losses(tiny_run):
    run = set_up(tiny_run.load(*with_alignments(tiny_run), "model.dropout=0", "model.num_decoder_layers=2"))
    model, training = run.state.bare_model(), run.config.training
    batch = next(iter(run.batches))
    losses = backward(run.state, [batch], training)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    links = batch.pop("links")
    output = model(**batch, output_attentions=True)
    total = output.loss - 0.5 * (links * output.cross_attentions[0][:, 0].log()).sum() / batch.target_tokens
    assert losses.loss.item() == pytest.approx(output.loss.item(), rel=1e-5)  # the translation's alone
    total.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)
    assert links.sum() == (batch["labels"] >= 0).sum() - len(links)  # each letter is linked, </s> is not


def test_a_batch_in_parts_has_the_gradients_of_the_whole(tiny_run):
    run = set_up(tiny_run.load(*with_alignments(tiny_run), "model.dropout=0"))
    model, training = run.state.bare_model(), run.config.training
    batch = next(iter(run.batches))
    backward(run.state, [batch], training)
    whole = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    backward(run.state, batch.halves(), training)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["model.num_decoder_layers=2", RNN], ids=["transformer", "rnn"])
def test_the_finished_model_names_the_guided_head(tiny_run, model):
    tiny_run.train(*with_alignments(tiny_run), model, "training.max_updates=2")
    opened = load_model_folder(tiny_run.output_dir / "model")
    assert alignment_heads_of(opened) == AlignmentHeads(((0, 0),), shift=0)
    values = json.loads((tiny_run.output_dir / "model" / "generation_config.json").read_text(encoding="utf-8"))
    assert (values["alignment_heads"], values["alignment_shift"]) == ([[0, 0]], 0)


def test_the_guided_layer_is_the_last_but_one():
    for layers, expected in ((1, 0), (2, 0), (6, 4)):
        model = FAMILIES[0].model(num_decoder_layers=layers)
        name_guided_head(model)
        assert alignment_heads_of(model) == AlignmentHeads(((expected, 0),), shift=0)


class TestRefusals:
    def message(self, run, *overrides: str) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the tests below look at the message
            run.load(*overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("override", "needed"),
        [
            ("training.attention=sdpa", "training.attention=eager, not sdpa"),
            ("training.compile=true", "training.compile=false, not True"),
            ("training.gradient_checkpointing=true", "training.gradient_checkpointing=false, not True"),
        ],
    )
    def test_training_that_returns_no_weights(self, tiny_run, override, needed):
        overrides = {text.partition("=")[0]: text for text in (*with_alignments(tiny_run), override)}
        assert needed in self.message(tiny_run, *overrides.values())

    def test_one_without_the_other(self, tiny_run):
        guided, attention, alignments = with_alignments(tiny_run)
        assert "data.train.alignments=None and training.guided_alignment=0.5: each needs the other" in self.message(
            tiny_run, guided, attention
        )
        assert "training.guided_alignment=None: each needs the other" in self.message(tiny_run, alignments)

    @pytest.mark.parametrize("weight", ["0", "-1", ".nan", ".inf"])
    def test_an_impossible_weight(self, tiny_run, weight):
        message = self.message(tiny_run, f"training.guided_alignment={weight}")
        assert message.startswith("training.guided_alignment")
        assert "greater than 0, and finite" in message

    def test_dropout_of_the_weights(self, tiny_run):
        message = self.message(tiny_run, *with_alignments(tiny_run), "model.attention_dropout=0.1")
        assert "needs model.attention_dropout=0, not 0.1" in message

    def test_a_model_without_attention(self, tiny_run):
        model = "model={model_type: rnn_seq2seq, attention: none, input_feeding: none}"
        assert "model.attention is 'none'" in self.message(tiny_run, *with_alignments(tiny_run), model)

    def test_alignments_of_a_validation_corpus(self, tiny_run):
        validation = [*tiny_run.validation(), "data.validation.alignments=x"]
        assert "only data.train has alignments" in self.message(tiny_run, *validation)

    @pytest.mark.parametrize("other", [{"path": "a.tsv"}, {"source": "a", "target": "b", "streaming": True}])
    def test_alignments_beside_anything_but_two_files(self, other):
        with pytest.raises(ValueError, match="alignments=x is used only with source, and without streaming"):
            CorpusConfig(**other, alignments="x")

    def test_lines_that_are_no_alignment_of_their_pair(self, tiny_run):
        overrides = with_alignments(tiny_run)
        path = tiny_run.folder / "train.align"
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([*lines[:4], "0-99", *lines[5:]]) + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"train\.align, line 5: '0-99' links words"):
            set_up(tiny_run.load(*overrides))
