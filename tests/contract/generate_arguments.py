# SPDX-License-Identifier: Apache-2.0
"""Every argument of `generate()` by every decoder: the paper's search gives what transformers' own gives, or refuses.

`python -m tests.contract.generate_arguments` prints, for each model and decoder, how many are equal and how many are
refused, and the names of the latter.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import (
    EosTokenCriteria,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
)
from transformers.generation.streamers import BaseStreamer

from tests.families import END, FAMILIES, PAD, START, Family, tiny_batch
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.native.rnn import NativeRecurrentDecoder
from vanilla_transformer.inference.native.transformer import NativeDecoder
from vanilla_transformer.transformers_differences import CACHE

MODELS = {"Transformer": FAMILIES[0], "RNN": FAMILIES[1]}
DECODERS = ("the model itself", "built for the call", "built", "native")
NATIVE = {"Transformer": NativeDecoder, "RNN": NativeRecurrentDecoder}
GREEDY, BEAMS = {}, {"num_beams": 3}
PROMPT = torch.tensor([[START, 7, 8], [START, 9, 10], [START, 11, 12]])
PADDED_PROMPT = torch.tensor([[PAD, PAD, START, 7], [PAD, START, 9, 10], [START, 11, 12, 13]])


class ByRow(LogitsProcessor):
    """Forbids each row of the batch a third of the tokens."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        number = torch.arange(len(scores))[:, None] + torch.arange(scores.shape[1])
        return scores.masked_fill(number % 3 == 0, -torch.inf)


class EndsByRow(StoppingCriteria):
    """Ends each row of the batch at a length of its own."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs) -> torch.Tensor:
        return torch.tensor([input_ids.shape[1] > 3 + row % 3 for row in range(len(input_ids))])


class EndsByScores(StoppingCriteria):
    """Ends all where a step was sure of a token, by the scores of all steps."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs) -> torch.Tensor:
        is_sure = scores[-1].log_softmax(-1).amax() > -1.0
        return torch.full((len(input_ids),), bool(is_sure) or len(scores) > 3)


class AtMost(MaxLengthCriteria):
    """A user's own kind, which transformers adds to its own maximum."""


class EndsByRowAtMost(MaxLengthCriteria):
    """A user's own kind, which has a rule of its own."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs) -> torch.Tensor:
        return EndsByRow()(input_ids, scores)


class Silent(BaseStreamer):
    def put(self, value):
        pass

    def end(self):
        pass


def encoded(model, family: Family, beams: int) -> dict[str, Any]:
    source = source_of(model)
    return {"encoder_outputs": model.get_encoder()(**source), "input_ids": None}


def as_a_tuple(model, family: Family, beams: int) -> dict[str, Any]:
    return {"encoder_outputs": (encoded(model, family, beams)["encoder_outputs"].last_hidden_state,)}


def embedded(model, family: Family, beams: int) -> dict[str, Any]:
    width = model.get_input_embeddings().weight.shape[1]
    values = torch.randn(3, 8, width, generator=torch.Generator().manual_seed(3), dtype=model.dtype)
    return {"inputs_embeds": values, "input_ids": None}


def embedded_prompt(model, family: Family, beams: int) -> dict[str, Any]:
    return {"decoder_inputs_embeds": model.model.decoder.embed_tokens(PROMPT)}


def new_cache(model, family: Family, beams: int) -> dict[str, Any]:
    return {CACHE: family.new_cache()}


def used_cache(model, family: Family, beams: int) -> dict[str, Any]:
    """With the first two of three tokens read."""
    source = {name: tensor.repeat_interleave(beams, dim=0) for name, tensor in source_of(model).items()}
    ids = PROMPT.repeat_interleave(beams, dim=0)
    with torch.no_grad():
        cache = model(**source, decoder_input_ids=ids[:, :2], use_cache=True).cache
    return {CACHE: cache, "decoder_input_ids": PROMPT, "decoder_attention_mask": torch.ones_like(PROMPT)}


def allowed(batch_id: int, ids: torch.Tensor) -> list[int]:
    return [END, *range(3 + 9 * batch_id, 12 + 9 * batch_id)]


@dataclass(frozen=True)
class Case:
    """A value of an argument.

    Args:
        argument: whose name the refusal must have.
        options: for `generate`, or what makes them, anew for each call, of the model, its family and the beams.
        modes: greedily, by beams, or both.
        changes: whether transformers' own decoding, where it has an answer, then has another than without.
    """

    argument: str
    options: dict[str, Any] | Callable[[Any, Family, int], dict[str, Any]]
    modes: tuple[dict[str, int], ...] = (BEAMS,)
    changes: bool = True

    def options_for(self, model, family: Family, beams: int) -> dict[str, Any]:
        return self.options(model, family, beams) if callable(self.options) else dict(self.options)


def field(name: str, value: Any, *, changes: bool = True, greedy: bool = False, **others) -> Case:
    return Case(name, {name: value} | others, (GREEDY,) if greedy else (BEAMS,), changes)


def same(name: str, value: Any, **others) -> Case:
    """One that changes no token of transformers' own."""
    return field(name, value, changes=False, **others)


ASSISTS = "only beside an assistant (is_assistant, assistant_model, prompt_lookup_num_tokens), which is refused"

# Every field of a GenerationConfig: what was tried, or why it can change no token.
FIELDS: dict[str, list[Case] | str] = {
    "max_length": [field("max_length", 4), field("max_length", 4, greedy=True)],
    "max_new_tokens": [field("max_new_tokens", 3), field("max_new_tokens", 3, greedy=True)],
    "min_length": [field("min_length", 7), field("min_length", 7, greedy=True)],
    "min_new_tokens": [field("min_new_tokens", 7)],
    "early_stopping": [field("early_stopping", True), same("early_stopping", "never")],
    "max_time": [field("max_time", 0.0), field("max_time", 0.0, greedy=True)],
    "stop_strings": [field("stop_strings", ["a"]), field("stop_strings", ["a"], tokenizer=object())],
    "do_sample": [field("do_sample", True), field("do_sample", True, greedy=True)],
    "num_beams": [field("num_beams", 2), field("num_beams", 5, num_return_sequences=2)],
    "use_mtp": [field("use_mtp", True, greedy=True)],
    "use_cache": [same("use_cache", False), same("use_cache", False, greedy=True)],
    "cache_implementation": [  # "offloaded" needs a GPU, and "paged" is not decoding by `generate`
        *(same("cache_implementation", kind, disable_compile=True) for kind in ("static", "dynamic")),
        field("cache_implementation", "quantized"),
    ],
    "cache_config": [same("cache_config", {"backend": "quanto"})],
    "max_cache_len": [same("max_cache_len", 30, cache_implementation="static", disable_compile=True)],
    "temperature": [same("temperature", 0.3)],
    "top_k": [same("top_k", 1)],
    "top_p": [same("top_p", 0.1)],
    "min_p": [same("min_p", 0.5)],
    "top_h": [same("top_h", 0.5)],
    "typical_p": [same("typical_p", 0.1)],
    "epsilon_cutoff": [same("epsilon_cutoff", 0.5)],
    "eta_cutoff": [same("eta_cutoff", 0.5)],
    "repetition_penalty": [
        field("repetition_penalty", 3.0),
        field("repetition_penalty", 3.0, greedy=True),
        field("repetition_penalty", 3.0, decoder_input_ids=PROMPT, decoder_attention_mask=torch.ones_like(PROMPT)),
    ],
    "encoder_repetition_penalty": [field("encoder_repetition_penalty", 3.0)],
    "length_penalty": [
        field("length_penalty", -3.0),
        field("length_penalty", 3.0),
        same("length_penalty", 2.0, greedy=True),
    ],
    "no_repeat_ngram_size": [field("no_repeat_ngram_size", 1), field("no_repeat_ngram_size", 1, greedy=True)],
    "bad_words_ids": [field("bad_words_ids", [[token] for token in range(3, 15)])],
    "renormalize_logits": [field("renormalize_logits", True, suppress_tokens=list(range(3, 15)))],
    "forced_bos_token_id": [field("forced_bos_token_id", 9), field("forced_bos_token_id", 9, greedy=True)],
    "forced_eos_token_id": [field("forced_eos_token_id", END, max_new_tokens=3)],
    "remove_invalid_values": [same("remove_invalid_values", True)],
    "exponential_decay_length_penalty": [field("exponential_decay_length_penalty", (1, 3.0))],
    "suppress_tokens": [field("suppress_tokens", list(range(3, 15))), field("suppress_tokens", [END], greedy=True)],
    "begin_suppress_tokens": [field("begin_suppress_tokens", list(range(3, 25)))],
    "sequence_bias": [field("sequence_bias", {(7,): 5.0, (8, 9): 5.0})],
    "token_healing": [field("token_healing", True)],
    "guidance_scale": [
        same("guidance_scale", 1.0),
        field("guidance_scale", 1.5, negative_prompt_ids=torch.full((9, 2), 7)),
    ],
    "watermarking_config": [field("watermarking_config", WatermarkingConfig(bias=9.0))],
    "num_return_sequences": [field("num_return_sequences", 2)],
    "output_attentions": [same("output_attentions", True, return_dict_in_generate=True)],
    "output_hidden_states": [same("output_hidden_states", True, return_dict_in_generate=True)],
    "output_scores": [same("output_scores", True, return_dict_in_generate=True)],
    "output_logits": [same("output_logits", True, return_dict_in_generate=True)],
    "return_dict_in_generate": [same("return_dict_in_generate", True)],
    "pad_token_id": [field("pad_token_id", 5), field("pad_token_id", 5, greedy=True)],
    "bos_token_id": [same("bos_token_id", 5)],
    "eos_token_id": [field("eos_token_id", [5, 9, 12, 15, 20]), field("eos_token_id", [5, 9, 12], greedy=True)],
    "encoder_no_repeat_ngram_size": [field("encoder_no_repeat_ngram_size", 1)],
    "decoder_start_token_id": [field("decoder_start_token_id", 9), field("decoder_start_token_id", [4, 9, 12])],
    "is_assistant": [same("is_assistant", True, greedy=True)],
    "num_assistant_tokens": ASSISTS,
    "num_assistant_tokens_schedule": ASSISTS,
    "assistant_confidence_threshold": ASSISTS,
    "prompt_lookup_num_tokens": [same("prompt_lookup_num_tokens", 2, greedy=True)],
    "max_matching_ngram_size": ASSISTS,
    "assistant_early_exit": [field("assistant_early_exit", 1, greedy=True)],
    "assistant_lookbehind": ASSISTS,
    "target_lookbehind": ASSISTS,
    "assistant_ensemble_weight": ASSISTS,
    "speculation_type": ASSISTS,
    "compile_config": "how a static cache is compiled on a GPU; the search calls the model as it is",
    "disable_compile": "as compile_config",
    "continuous_batching_config": "of generate_batch alone, deprecated here",
    "low_memory": [field("low_memory", True)],
    "penalty_alpha": [field("penalty_alpha", 0.6, top_k=4, greedy=True)],
    "dola_layers": [field("dola_layers", "low", greedy=True)],
    "diversity_penalty": [field("diversity_penalty", 1.0, num_beam_groups=3), same("diversity_penalty", 1.0)],
    "num_beam_groups": [field("num_beam_groups", 3)],
    "constraints": [field("constraints", [object()])],
    "force_words_ids": [field("force_words_ids", [[7]])],
    "prefill_chunk_size": [field("prefill_chunk_size", 2)],  # transformers cuts the mask of the source by it
    "transformers_version": "who wrote the file",
    "_from_model_config": "where it came from",
    "_commit_hash": "where it came from",
}

# `generate`'s own arguments, and what it takes out of the others before the model sees them.
OF_GENERATE: dict[str, list[Case] | str] = {
    "inputs": "the source, by position; the cases give it by name",
    "generation_config": [
        field("generation_config", GenerationConfig(num_beams=2, max_new_tokens=4, decoder_start_token_id=4))
    ],
    "logits_processor": [
        Case("logits_processor", {"logits_processor": LogitsProcessorList([ByRow()])}, (GREEDY, BEAMS)),
    ],
    "stopping_criteria": [
        Case("stopping_criteria", {"stopping_criteria": StoppingCriteriaList([item])}, (GREEDY, BEAMS))
        for item in (
            EndsByRow(),
            AtMost(4),
            EndsByRowAtMost(12),
            MaxLengthCriteria(4),
            EosTokenCriteria(torch.tensor([5, 9, 12, 15, 20])),
        )
    ]
    + [
        field("stopping_criteria", StoppingCriteriaList([MaxLengthCriteria(20)]), greedy=True),
        Case(
            "stopping_criteria",
            {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(6), MaxLengthCriteria(4)])},
            (GREEDY, BEAMS),
        ),
        Case(
            "stopping_criteria",
            {"stopping_criteria": StoppingCriteriaList([EndsByScores()])}
            | {"output_scores": True, "return_dict_in_generate": True},
            (GREEDY, BEAMS),
        ),
    ],
    "prefix_allowed_tokens_fn": [
        Case("prefix_allowed_tokens_fn", {"prefix_allowed_tokens_fn": allowed}, (GREEDY, BEAMS))
    ],
    "synced_gpus": [
        Case("synced_gpus", {"synced_gpus": value}, (GREEDY, BEAMS), changes=value) for value in (False, True)
    ],
    "assistant_model": [
        Case("assistant_model", lambda model, family, beams: {"assistant_model": model}, (GREEDY, BEAMS), False)
    ],
    "streamer": [Case("streamer", {"streamer": Silent()}, (GREEDY, BEAMS), changes=False)],
    "negative_prompt_ids": [same("negative_prompt_ids", torch.full((3, 2), 7))],
    "negative_prompt_attention_mask": [same("negative_prompt_attention_mask", torch.ones(3, 2))],
    "custom_generate": "what all of this is about",
    "kwargs": "see the other tables",
    "trust_remote_code": "of code from the Hub alone",
    "tokenizer": [same("tokenizer", object())],
    "assistant_tokenizer": [same("assistant_tokenizer", object())],
}

# Arguments of the model's own forward pass.
KERNELS = "of attention kernels for packed sequences"
OF_THE_MODEL: dict[str, list[Case] | str] = {
    "input_ids": "the source of every case",
    "attention_mask": [
        Case("attention_mask", {"attention_mask": None}, (GREEDY, BEAMS), changes=False),
        Case("attention_mask", {"attention_mask": torch.tensor([[1] * 5 + [0] * 3] * 3)}, (GREEDY, BEAMS)),
    ],
    "decoder_input_ids": [Case("decoder_input_ids", {"decoder_input_ids": PROMPT}, (GREEDY, BEAMS))],
    "decoder_attention_mask": [
        Case(
            "decoder_attention_mask",
            {"decoder_input_ids": ids, "decoder_attention_mask": ids.ne(PAD).long()},
            (GREEDY, BEAMS),
        )
        for ids in (PROMPT, PADDED_PROMPT)
    ]
    + [same("decoder_attention_mask", torch.ones(3, 1, dtype=torch.long))],
    "encoder_outputs": [
        Case("encoder_outputs", encoded, (GREEDY, BEAMS), changes=False),
        Case("encoder_outputs", as_a_tuple, (GREEDY,), changes=False),
    ],
    CACHE: [
        Case(CACHE, new_cache, (GREEDY,), changes=False),
        Case(CACHE, used_cache, (GREEDY, BEAMS)),
    ],
    "inputs_embeds": [Case("inputs_embeds", embedded, (GREEDY, BEAMS))],
    "decoder_inputs_embeds": [Case("decoder_inputs_embeds", embedded_prompt, (GREEDY, BEAMS))],
    "labels": [same("labels", PROMPT)],
    "num_items_in_batch": [same("num_items_in_batch", 7)],
    "skip_logits": [same("skip_logits", True)],
    "position_ids": [same("position_ids", torch.arange(8).expand(3, -1))],
    "decoder_position_ids": [same("decoder_position_ids", PROMPT)],
    "is_causal": [same("is_causal", False)],
    "kwargs": "a name of no argument is refused by transformers",
    "no such argument": [same("no_such_argument", 1)],
    "cu_seq_lens_q": KERNELS,
    "cu_seq_lens_k": KERNELS,
    "max_length_q": KERNELS,
    "max_length_k": KERNELS,
    "seq_idx": KERNELS,
    "block_sequence_ids": KERNELS,
    "output_router_logits": "of mixtures of experts",
}

CASES = [
    case
    for table in (FIELDS, OF_GENERATE, OF_THE_MODEL)
    for cases in table.values()
    if not isinstance(cases, str)
    for case in cases
]


@functools.cache
def model_of(name: str):
    """With wide random weights and a bias to the end, so that targets have many tokens and lengths."""
    model = MODELS[name].model(torch.float64, tie_word_embeddings=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(2 * torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    bias = torch.zeros(31, dtype=model.dtype)
    bias[END] = {"Transformer": 3.0, "RNN": 2.0}[name]
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


def source_of(model) -> dict[str, torch.Tensor]:
    batch = tiny_batch()
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@functools.cache
def decoder_of(name: str, decoder: str):
    return NATIVE[name](model_of(name)) if decoder == "native" else model_of(name).build_decoder()


def decode(name: str, case: Case | None, mode: dict[str, int], **search) -> list[list[int]]:
    model, family = model_of(name), MODELS[name]
    # A padding whose number is not 0, for which transformers would fill up with the end token.
    options = {"max_new_tokens": 6, "pad_token_id": 30} | mode | search
    given = {} if case is None else case.options_for(model, family, mode.get("num_beams", 1))
    if "max_length" in given or "generation_config" in given:
        del options["max_new_tokens"]
    if "generation_config" in given:
        options.pop("num_beams", None)
    source = {key: value for key, value in (source_of(model) | options | given).items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.generate(**source)
    return (output if isinstance(output, torch.Tensor) else output.sequences).tolist()


@functools.cache
def expected(name: str, case: int | None, mode: int) -> list[list[int]] | Exception:
    """The result of transformers' own decoding, or the error that it raises."""
    try:
        return decode(name, None if case is None else CASES[case], (GREEDY, BEAMS)[mode])
    except Exception as error:
        return error


def outcome(name: str, decoder: str, case: int, mode: int) -> str:
    """ "equal", "refused", or what is wrong."""
    theirs = expected(name, case, mode)
    model = model_of(name)
    search: dict[str, Any] = {"custom_generate": beam_search, "rule": "transformers"}
    if decoder == "the model itself":
        model.can_build_decoder = lambda: False
    elif decoder != "built for the call":
        search["decoder"] = decoder_of(name, decoder)
    try:
        ours = decode(name, CASES[case], (GREEDY, BEAMS)[mode], **search)
    except ValueError as error:
        is_clear = CASES[case].argument in str(error) and "\n" not in str(error)
        return "refused" if is_clear or str(error) == str(theirs) else f"refused unclearly: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        model.__dict__.pop("can_build_decoder", None)
    if isinstance(theirs, Exception):
        return f"ignored, where transformers raises {type(theirs).__name__}: {theirs}"
    return "equal" if ours == theirs else "other tokens"


def combinations() -> list[tuple[str, str, int, int]]:
    """Model, decoder, number of the case and of its mode."""
    return [
        (name, decoder, case, (GREEDY, BEAMS).index(mode))
        for name in MODELS
        for decoder in DECODERS
        for case, item in enumerate(CASES)
        for mode in item.modes
    ]


def report() -> str:
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    wrong = []
    for name, decoder, case, mode in combinations():
        result, argument = outcome(name, decoder, case, mode), CASES[case].argument
        kinds = found.setdefault((name, decoder), {"equal": [], "refused": []})
        if result in kinds:
            kinds[result].append(argument)
        else:
            wrong.append(f"  {name}, {decoder}, {('greedy', 'beams')[mode]}, {argument} (case {case}): {result}")
    arguments = len({case.argument for case in CASES})
    lines = [f"{arguments} arguments, {len(CASES)} values of them, greedily or by beams or both", ""]
    lines += [f"{'model':13}{'decoder':23}{'equal':>7}{'refused':>9}   refused"]
    for (name, decoder), kinds in found.items():
        refused = ", ".join(dict.fromkeys(kinds["refused"]))
        lines.append(f"{name:13}{decoder:23}{len(kinds['equal']):7}{len(kinds['refused']):9}   {refused}")
    return "\n".join([*lines, "", f"neither equal nor refused: {len(wrong)}", *wrong])


if __name__ == "__main__":
    print(report())
