# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from tests.visualization.example_attention import example_attention
from vanilla_transformer.visualization.layer_attention import MAX_TOKENS, select_layers

SOURCE, TARGET = ["a", "cat", "</s>"], ["eine", "Katze", "da", "</s>"]


def test_by_default_all_heads_of_the_last_layer_of_each_kind():
    attention = example_attention(SOURCE, TARGET)
    encoder, decoder, cross = select_layers(attention)
    np.testing.assert_array_equal(encoder.weights, attention.encoder[1])
    np.testing.assert_array_equal(decoder.weights, attention.decoder[2])
    np.testing.assert_array_equal(cross.weights, attention.cross[2])
    assert (decoder.queries, decoder.keys) == (TARGET, ["<s>", *TARGET[:-1]])
    assert (cross.queries, cross.keys, cross.heads) == (TARGET, SOURCE, ["head 1", "head 2"])


def test_layer_head_and_average_are_selected():
    attention = example_attention(SOURCE, TARGET)
    [single] = select_layers(attention, ["cross"], layer=1, head=2)
    np.testing.assert_array_equal(single.weights, attention.cross[0, 1:2])
    [mean] = select_layers(attention, ["cross"], layer=2, average=True)
    np.testing.assert_allclose(mean.weights[0], attention.cross[1].mean(0))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"kinds": ["encoder"], "layer": 3}, "layer of the encoder self-attention: 3 must be between 1 and 2"),
        ({"kinds": ["cross"], "head": 9}, "head of the cross-attention: 9 must be between 1 and 2"),
    ],
)
def test_an_unknown_layer_or_head_is_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        select_layers(example_attention(SOURCE, TARGET), **choice)


def test_an_rnn_has_cross_attention_only():
    attention = example_attention(SOURCE, TARGET, is_rnn=True)
    assert [layer.title for layer in select_layers(attention)] == ["Cross-attention, layer 1 of 1"]
    with pytest.raises(ValueError, match="no decoder self-attention .* it has: cross"):
        select_layers(attention, ["decoder"])


def test_too_long_a_translation_is_refused():
    with pytest.raises(ValueError, match=f"the translation has {MAX_TOKENS + 1} tokens; .* {MAX_TOKENS} at most"):
        select_layers(example_attention(SOURCE, ["a"] * (MAX_TOKENS + 1)))
