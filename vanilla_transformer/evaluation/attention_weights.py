# SPDX-License-Identifier: Apache-2.0
"""Which tokens a model attended to when it translated a sentence, as arrays and readable tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.data.tokenizer_class import source_alone
from vanilla_transformer.inference.model_modes import eager_attention, evaluation_mode
from vanilla_transformer.inference.translation import generate
from vanilla_transformer.inference.translator import Translator
from vanilla_transformer.visualization.layer_attention import AttentionWeights

REPLACEMENT = "\ufffd"  # what incomplete bytes of a character decode to
MAX_TOKENS_PER_CHARACTER = 8  # a character has four bytes at most, but a token may also hold the end of another


def attention_weights(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: Sequence[int]
) -> AttentionWeights:
    """The weights of a finished translation, from one more forward pass.

    The pass uses the "eager" attention backend, which alone returns the weights, and then restores the model's own.
    No other thread may use the model meanwhile.

    Args:
        target: as `generate` returns it: the start token, then the tokens produced.

    Raises:
        ValueError: a source without a token; a target without a produced token; a model without attention.
    """
    inputs = _tokenize(model, tokenizer, source)
    if len(target) < 2:
        raise ValueError(f"target={list(target)} must hold the start token and at least one that was produced")
    decoder_input_ids = torch.tensor([target[:-1]], device=model.device)  # (1, target_length)
    with evaluation_mode(model), eager_attention(model), torch.inference_mode():
        outputs: Any = model(
            **inputs, decoder_input_ids=decoder_input_ids, use_cache=False, output_attentions=True, return_dict=True
        )
    if outputs.cross_attentions is None:
        raise ValueError(
            f"this model of model_type={model.config.model_type!r} has no attention: its decoder knows the source by "
            "the encoder's last state alone"
        )
    return AttentionWeights(
        source_tokens=readable_tokens(source_alone(tokenizer), inputs["input_ids"][0].tolist()),
        target_tokens=readable_tokens(tokenizer, target[1:]),
        target_inputs=readable_tokens(tokenizer, target[:-1]),
        encoder=_stacked(outputs.encoder_attentions),
        decoder=_stacked(outputs.decoder_attentions),
        cross=_stacked(outputs.cross_attentions),
    )


def explain(
    translator: Translator, line: str, *, max_length: int | None = None, **options
) -> tuple[str, AttentionWeights]:
    """Translate a sentence, and return the attention weights of the translation.

    Args:
        max_length: the longest source accepted, in tokens; `None`: any. The weights take memory by the square of the
            length, for every layer and head.
        options: what `Translator.translate` takes for one sentence: `num_beams`, `alpha`, `max_new_tokens`, …

    Raises:
        ValueError: an empty sentence, or one longer than `max_length`, before it is translated; and as
            `attention_weights`.
    """
    model, tokenizer = translator.model, translator.tokenizer
    inputs = _tokenize(model, tokenizer, line)
    length = inputs["input_ids"].shape[1]
    if max_length is not None and length > max_length:
        raise ValueError(f"the sentence has {length:,} tokens, more than the limit of {max_length:,}; split it")
    target = generate(model, inputs, translator.decoder, options).sequences[0].tolist()
    text = str(tokenizer.decode(target, skip_special_tokens=True))
    return text, attention_weights(model, tokenizer, line, target)


def _tokenize(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str) -> Any:
    """`input_ids` and `attention_mask`, `(1, source_length)`."""
    inputs = tokenizer([sentence], return_tensors="pt").to(model.device)
    if not sentence.strip() or inputs["input_ids"].shape[1] == 0:
        raise ValueError("the sentence is empty: there is nothing to translate")
    return inputs


def readable_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """A readable label for every token: without marks of word starts, special tokens by their names.

    Tokens that are bytes of one character share it: "中 1/2", "中 2/2". White space alone becomes "␣", and control
    characters are escaped.
    """
    labels: list[str] = []
    while len(labels) < len(ids):
        start = len(labels)
        text, count = _shortest_text(tokenizer, ids[start : start + MAX_TOKENS_PER_CHARACTER])
        text = text.strip(" ") or "␣"
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        labels += [text] if count == 1 else [f"{text} {part}/{count}" for part in range(1, count + 1)]
    return labels


def _shortest_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, int]:
    """The text of the fewest first tokens that make whole characters, and their number; of one token if none do."""
    prefixes = (list(ids[:count]) for count in range(1, len(ids) + 1))
    texts = [str(tokenizer.decode(prefix, clean_up_tokenization_spaces=False)) for prefix in prefixes]
    whole = ((text, count) for count, text in enumerate(texts, start=1) if REPLACEMENT not in text)
    return next(whole, (texts[0], 1))


def _stacked(attentions: Sequence[torch.Tensor] | None) -> Any:
    """`(1, heads, queries, keys)` of each layer → `(layers, heads, queries, keys)` in float32."""
    if not attentions:
        return None
    return torch.cat([weights.float().cpu() for weights in attentions]).numpy()
