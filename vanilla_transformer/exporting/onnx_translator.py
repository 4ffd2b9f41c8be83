# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding of a folder that `export --to onnx` wrote, by onnxruntime alone, without torch and transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

ENCODER, FIRST_STEP, LATER_STEPS = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"
# Fields of generation_config.json: READ ones change the tokens; greedy decoding ignores UNUSED ones.
READ = {"bad_words_ids", "suppress_tokens", "decoder_start_token_id", "eos_token_id", "pad_token_id"}
READ |= {"max_length", "max_tokens_beyond_source", "forced_eos_token_id"}
UNUSED = {"bos_token_id", "num_beams", "alpha", "length_penalty", "early_stopping", "use_cache"}
UNUSED |= {"transformers_version", "_from_model_config"}


class OnnxTranslator:
    """A Transformer's or an RNN's exported folder: `OnnxTranslator(folder).translate(lines)`.

    Args:
        threads: of each graph; 0: as many as cores.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: generation_config.json asks for what this does not offer, or bounds no target.
    """

    def __init__(self, folder: Path, threads: int = 0):
        self.settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        for name, value in self.settings.items():
            if value and name not in READ | UNUSED:
                raise ValueError(f"{name}={value!r} in {folder}/generation_config.json is not offered in ONNX")
        if not self.settings.keys() & {"max_length", "max_tokens_beyond_source"}:
            raise ValueError(f"{folder}/generation_config.json has neither max_length nor max_tokens_beyond_source")
        eos = self.settings["eos_token_id"]
        self.eos_token_ids = [eos] if isinstance(eos, int) else eos
        words = self.settings.get("bad_words_ids") or []
        if longer := [word for word in words if len(word) > 1]:
            raise ValueError(f"bad_words_ids={longer[0]} in {folder}/generation_config.json must be one token each")
        self.forbidden = [word[0] for word in words] + (self.settings.get("suppress_tokens") or [])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3  # errors, not hints to the exporter
        self.graphs = {
            name: onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, FIRST_STEP, LATER_STEPS)
            if name != LATER_STEPS or (folder / name).is_file()  # an RNN has the state from the first step on
        }
        self.tokenizer = _open_tokenizer(folder)
        target = folder / "target_tokenizer"
        self.target_tokenizer = _open_tokenizer(target) if target.is_dir() else self.tokenizer

    def translate(self, lines: Sequence[str], batch_size: int = 64) -> list[str]:
        """The translation of each line, in order; an empty line stays empty."""
        encoded = self.tokenizer.encode_batch(list(lines))
        sources = [encoding.ids if line.strip() else [] for line, encoding in zip(lines, encoded, strict=True)]
        results = [""] * len(lines)
        order = sorted((i for i, source in enumerate(sources) if source), key=lambda i: len(sources[i]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            targets = self.greedy([sources[i] for i in places])
            for i, text in zip(places, self.target_tokenizer.decode_batch(targets), strict=True):
                results[i] = text
        return results

    def greedy(self, sources: Sequence[Sequence[int]]) -> list[list[int]]:
        """The tokens of each target, without start and EOS."""
        lengths = np.array([len(source) for source in sources])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)  # (sentences, source_length)
        tokens = np.full(mask.shape, self.settings["pad_token_id"])
        tokens[mask == 1] = np.concatenate(sources)
        values = {"input_ids": tokens, "attention_mask": mask, "encoder_attention_mask": mask}
        self._run(ENCODER, values)
        limits = self._limits(lengths)
        last = np.full(len(sources), self.settings["decoder_start_token_id"])
        targets: list[list[int]] = [[] for _ in sources]
        is_alive = np.ones(len(sources), dtype=bool)
        later = LATER_STEPS if LATER_STEPS in self.graphs else FIRST_STEP
        for step in range(int(limits.max())):
            values["input_ids"] = last[:, None]
            self._run(later if step else FIRST_STEP, values)
            logits = values["logits"][:, -1]  # (sentences, vocab_size)
            logits[:, self.forbidden] = -np.inf
            last = logits.argmax(axis=-1)
            is_alive &= (step < limits) & ~np.isin(last, self.eos_token_ids)
            if not is_alive.any():
                break
            for i in is_alive.nonzero()[0]:
                targets[i].append(int(last[i]))
        return targets

    def _limits(self, lengths: np.ndarray) -> np.ndarray:
        """The maximum length of each target, `(sentences)`: `max_length` counts the start token and a forced EOS."""
        uncounted = 1 + (self.settings.get("forced_eos_token_id") is not None)
        limits = np.full_like(lengths, self.settings.get("max_length", np.iinfo(lengths.dtype).max) - uncounted)
        beyond = self.settings.get("max_tokens_beyond_source")
        return limits if beyond is None else np.minimum(limits, lengths + beyond)

    def _run(self, file: str, values: dict[str, np.ndarray]) -> None:
        """Compute a graph of `values` by name, and put its outputs where the next step looks for them."""
        graph = self.graphs[file]
        found: Any = graph.run(None, {each.name: values[each.name] for each in graph.get_inputs()})
        for output, tensor in zip(graph.get_outputs(), found, strict=True):
            name = output.name.replace("present.", "past_key_values.")
            values["encoder_hidden_states" if name == "last_hidden_state" else name] = tensor


def _open_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a folder; whether "</s>" in a text is text is transformers' setting."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens"))
    return tokenizer
