# SPDX-License-Identifier: Apache-2.0
"""Section 6.1 of the paper: beam search with the length penalty of Wu et al. (2016, arXiv:1609.08144).

A model folder has this file as custom_generate/generate.py, where transformers looks for `generate`, and the files that
it imports beside it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from transformers.cache_utils import Cache
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput
from transformers.utils.generic import ModelOutput

from .decoder import BuildsDecoder, Decoder, DecoderState, ModelDecoder, SupportsPrefill, map_tensors
from .ensemble import EnsembleDecoder, check_members
from .search import BeamSearch, BeamSearchConfig, DecodingError, StepRecords, greedy_search
from .transformers_differences import CACHE

__all__ = ["DecodingError", "beam_search", "generate", "length_penalty"]

BEAMS, ALPHA = 4, 0.6  # "chosen after experimentation on the development set"
NOT_OFFERED = (  # fields of a generation config that ask for another way of decoding, or for outputs not offered
    *("do_sample", "penalty_alpha", "dola_layers", "diversity_penalty", "num_beam_groups", "constraints"),
    *("force_words_ids", "low_memory", "use_mtp", "is_assistant", "prompt_lookup_num_tokens", "assistant_early_exit"),
    *("guidance_scale", "prefill_chunk_size", "output_attentions", "output_hidden_states"),
)


def generate(inputs: torch.Tensor | None = None, *, model, ensemble=(), **kwargs):
    """The paper's decoding: `model.generate(…, custom_generate=folder, trust_remote_code=True)` calls this.

    Args:
        inputs, kwargs: as for `model.generate`, and `beam_search`'s own. With no `num_beams`, neither here nor in a
            generation config, there are 4 as in the paper.
        ensemble: other models of this package that decode with `model`, all with equal weights; see `ensemble.py`.

    Raises:
        ValueError: members of an ensemble with different vocabularies.
    """
    config = kwargs.get("generation_config") or model.generation_config
    if "num_beams" not in kwargs and config.num_beams is None:
        kwargs["num_beams"] = BEAMS
    if ensemble:
        check_members(members := [model, *ensemble])
        source = kwargs.get("input_ids") if inputs is None else inputs
        if (mask := kwargs.get("attention_mask")) is None:
            mask = (source != model.config.pad_token_id).long()
        decoder = kwargs["decoder"] = EnsembleDecoder([member.build_decoder() for member in members])
        kwargs |= {"attention_mask": mask, "encoder_outputs": decoder.encode(source, mask)}
    return type(model).generate(model, inputs, custom_generate=beam_search, **kwargs)


def length_penalty(length: Any, alpha: float) -> Any:
    """lp(Y) = ((5 + |Y|) / 6)^alpha, the divisor of a log-probability; `length` in tokens, EOS included."""
    return ((5 + length) / 6) ** alpha


@torch.no_grad()
def beam_search(
    model,
    input_ids: torch.Tensor,
    logits_processor,
    stopping_criteria,
    generation_config,
    synced_gpus: bool = False,
    alpha: float | None = None,
    length_penalty: float | None = None,
    rule: Literal["gnmt", "transformers"] = "gnmt",
    coverage_penalty: float = 0.0,
    decoder: Decoder | None = None,
    select_candidates: Callable | None = None,
    **model_kwargs,
) -> torch.Tensor | GenerateBeamEncoderDecoderOutput | GenerateEncoderDecoderOutput:
    """The paper's beam search, for `model.generate(…, custom_generate=beam_search, num_beams=4)`.

    A sentence is finished when no unfinished hypothesis can still become one of the best `num_return_sequences`, so
    the result is that of the maximum length ("but terminate early when possible"); with `early_stopping=True` when
    `num_beams` hypotheses are finished. Each sentence has its own maximum length: its source tokens plus
    `max_tokens_beyond_source` of the generation config, unless another limit is given. One beam is greedy decoding.

    Every argument of `generate` has the effect that it has there, or is refused. For models of other packages
    transformers drops `streamer`, `assistant_model`, `synced_gpus` and `tokenizer` before this function is called.

    Args:
        model: any encoder-decoder with transformers' `GenerationMixin`. A model of this package decodes faster, with
            weights that are laid out anew for this call, unless an argument needs the model's own forward pass.
        input_ids: the beginning of the target, `(sentences * num_beams, prompt_length)`.
        alpha: the length penalty's exponent; 0: plain sums of log-probabilities. `None`: that of the generation config,
            else the paper's 0.6.
        rule: "transformers" divides by length^`length_penalty` instead, and stops as transformers does.
        coverage_penalty: beta of Wu et al. (2016), for models that return attention; 0: none.
        decoder: `model.build_decoder()`, built once for many calls. It has its own cache, whatever `use_cache` and
            `cache_implementation` say.
        select_candidates: chooses the hypotheses that go on, as `BeamSearchConfig` says.

    Returns:
        `(sentences * num_return_sequences, target_length)`, best first for each sentence. With
        `return_dict_in_generate` transformers' output, with `scores` and `logits` where asked for, and for several
        beams `beam_indices` with them and always `sequences_scores`: log-probability over the length penalty, plus
        the coverage penalty; -inf where fewer targets are possible. Scores are kept for every step, `(sentences *
        num_beams, vocab_size)`, and slow the search down; there is no `cache`.

    Raises:
        ValueError: what this search does not offer (`NOT_OFFERED`, `synced_gpus`); an unknown rule, or another rule's
            penalty; a coverage penalty without attention or with a part of the target; with a `decoder`, arguments
            that only the model's forward pass reads.
        DecodingError: logits that are NaN; a sentence for which every token is forbidden.
    """
    settings = vars(generation_config)  # transformers' own, and whatever else a folder has there
    _check(settings, synced_gpus, rule, coverage_penalty)
    num_beams = generation_config.num_beams or 1
    # transformers replaces its own MaxLengthCriteria and EosTokenCriteria by the user's. A subclass may do anything.
    max_length = min(criterion.max_length for criterion in stopping_criteria if type(criterion) is MaxLengthCriteria)
    eos_criteria = [criterion for criterion in stopping_criteria if type(criterion) is EosTokenCriteria]
    eos_token_ids = [criterion.eos_token_id.to(input_ids.device) for criterion in eos_criteria]
    own = (MaxLengthCriteria, EosTokenCriteria)
    others = [criterion for criterion in stopping_criteria if type(criterion) not in own]
    config = BeamSearchConfig(
        num_beams=num_beams,
        num_return_sequences=generation_config.num_return_sequences or 1,
        length_normalizer=length_normalizer(rule, settings, alpha, length_penalty),
        eos_token_ids=torch.cat([input_ids.new_empty(0), *eos_token_ids]),
        pad_token_id=0 if (pad := generation_config._pad_token_tensor) is None else int(pad),
        # One beam is greedy, also where its tokens are chosen: the first end is the end.
        stopping="max_finished" if num_beams == 1 else _stopping(rule, generation_config.early_stopping),
        coverage_penalty=coverage_penalty,
        logits_processor=logits_processor if len(logits_processor) else None,
        stopping_criteria=type(stopping_criteria)(others) if others else None,
        records=_records(settings),
        select_candidates=select_candidates,
    )
    prompt = input_ids[::num_beams]  # transformers repeats every row for the beams
    source_mask = _source_mask(model_kwargs)[::num_beams]  # (sentences, source_length)
    max_lengths = _max_lengths(settings, max_length, prompt, source_mask)
    decoder = _choose_decoder(decoder, model, generation_config, coverage_penalty, model_kwargs)
    state = decoder.begin(
        map_tensors(model_kwargs["encoder_outputs"], lambda rows: rows[::num_beams]),
        source_mask,
        prompt.shape[1] + int(max_lengths.max()),
        num_beams,
        output_attentions=coverage_penalty != 0,
    )
    coverage = read_prompt(state, prompt)
    outputs: dict[str, Any] = {}
    if num_beams == 1 and select_candidates is None:
        sequences = greedy_search(state, prompt, max_lengths, config)
    else:
        best = BeamSearch(state, prompt, max_lengths, config, source_mask, coverage).run()
        sequences = best.sequences[:, :, : prompt.shape[1] + int(best.lengths.max())].flatten(0, 1)
        outputs["sequences_scores"] = best.scores.flatten()
        if config.records is not None:
            assert best.last_beams is not None
            outputs["beam_indices"] = config.records.beam_indices(best.lengths, best.last_beams)
    if not generation_config.return_dict_in_generate:
        return sequences
    kind: Any = GenerateBeamEncoderDecoderOutput if outputs else GenerateEncoderDecoderOutput
    if config.records is not None:
        outputs |= config.records.outputs
    return kind(sequences=sequences, **outputs)


def _check(settings: dict[str, Any], synced_gpus: bool, rule: str, coverage_penalty: float) -> None:
    if rule not in ("gnmt", "transformers"):
        raise ValueError(f"rule={rule!r} must be 'gnmt' (the paper's) or 'transformers'")
    if not 0 <= coverage_penalty < math.inf:
        raise ValueError(f"coverage_penalty={coverage_penalty} must be a finite number, at least 0")
    for name, value in [("synced_gpus", synced_gpus), *((name, settings.get(name)) for name in NOT_OFFERED)]:
        if value and (name, value) not in (("num_beam_groups", 1), ("guidance_scale", 1)):
            raise ValueError(f"{name}={value} is not offered by the paper's decoding; leave it or custom_generate out")


def length_normalizer(
    rule: str, settings: dict[str, Any], alpha: float | None, penalty: float | None
) -> Callable[[Any], Any]:
    """The length penalty of the rule, as the call sets it (`alpha`, `penalty`), else as `settings` do."""
    given = {"alpha": alpha, "length_penalty": penalty}
    name, default = ("alpha", ALPHA) if rule == "gnmt" else ("length_penalty", 1.0)
    power = next(value for value in (given.pop(name), settings.get(name), default) if value is not None)
    [(other, unused)] = given.items()
    if unused is not None:
        raise ValueError(f"{other}={unused} has no part in rule={rule!r}; use {name}, or another rule")
    if not math.isfinite(power):
        raise ValueError(f"{name}={power} must be a finite number")
    return partial(length_penalty, alpha=power) if rule == "gnmt" else lambda length: length**power


def _stopping(rule: str, early_stopping: bool | str | None) -> Literal["exact", "max_finished", "heuristic"]:
    if early_stopping is True:
        return "max_finished"
    return "heuristic" if rule == "transformers" and early_stopping != "never" else "exact"


def _records(settings: dict[str, Any]) -> StepRecords | None:
    names = [name for name in ("scores", "logits") if settings.get(f"output_{name}")]
    return StepRecords(names) if names and settings.get("return_dict_in_generate") else None


def _source_mask(model_kwargs: dict[str, Any]) -> torch.Tensor:
    """`(sentences * beams, source_length)`, 1 for real tokens: as given, as the encoder inferred it, or all."""
    encoded = model_kwargs["encoder_outputs"]
    mask = model_kwargs.get("attention_mask")
    if mask is None and isinstance(encoded, ModelOutput):
        mask = encoded.get("attention_mask")
    return encoded[0].new_ones(encoded[0].shape[:2], dtype=torch.long) if mask is None else mask


def _max_lengths(
    settings: dict[str, Any], max_length: int, prompt: torch.Tensor, source_mask: torch.Tensor
) -> torch.Tensor:
    """The maximum length of each target without its prompt, `(sentences)`."""
    limit, beyond = max(1, max_length - prompt.shape[1]), settings.get("max_tokens_beyond_source")
    if beyond is not None and max_length == settings["max_length"]:
        return (source_mask.sum(dim=1) + beyond).clamp(max=limit)
    return torch.full(prompt.shape[:1], limit, device=prompt.device)


def _choose_decoder(
    decoder: Decoder | None, model, generation_config, coverage_penalty: float, model_kwargs: dict[str, Any]
) -> Decoder:
    """The decoder given, one built for this call, or the model's own forward pass where an argument needs it."""
    unread = _unread_by_decoders(model_kwargs)
    if decoder is not None:
        if unread:
            raise ValueError(f"`decoder` does not read {', '.join(unread)}; without it the model itself decodes")
        return decoder
    cache_is_requested = generation_config.use_cache is False or generation_config.cache_implementation is not None
    if isinstance(model, BuildsDecoder) and not unread and not cache_is_requested and model.can_build_decoder():
        return model.build_decoder()
    if coverage_penalty and {CACHE, "decoder_attention_mask"} & set(unread):
        raise ValueError(f"coverage_penalty={coverage_penalty} needs whole targets; leave {', '.join(unread)} out")
    return ModelDecoder(model, generation_config, model_kwargs)


def _unread_by_decoders(model_kwargs: dict[str, Any]) -> list[str]:
    """The arguments that only a model's own forward pass honours."""
    # The encoder has read `inputs_embeds`; transformers hands `labels` to no step.
    read = {"encoder_outputs", "attention_mask", "use_cache", "inputs_embeds", "labels"}
    unread = {name: value for name, value in model_kwargs.items() if value is not None and name not in read}
    mask, cache = unread.get("decoder_attention_mask"), unread.get(CACHE)
    if mask is not None and bool(mask.all()):
        del unread["decoder_attention_mask"]
    if isinstance(cache, Cache) and not (cache.get_seq_length() or getattr(cache, "_is_user_defined", False)):
        del unread[CACHE]  # transformers has made it
    if not isinstance(model_kwargs["encoder_outputs"], ModelOutput):
        unread["encoder_outputs"] = None
    return list(unread)


def read_prompt(state: DecoderState, prompt: torch.Tensor) -> torch.Tensor | None:
    """Read the prompt, `(sentences, prompt_length)`, but its last token; return the sum of the attention, if any."""
    if isinstance(state, SupportsPrefill):
        state.prefill(prompt)
        return None
    coverage = None
    for token in prompt[:, :-1].unbind(dim=1):
        state(token[:, None])
        if state.attention is not None:
            coverage = state.attention.float() + (0.0 if coverage is None else coverage)
    return coverage
