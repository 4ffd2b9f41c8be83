# SPDX-License-Identifier: Apache-2.0
"""Whole runs on real text: our `train`, and transformers' Seq2SeqTrainer with MarianMT and its usual collator."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import DataCollatorForSeq2Seq, MarianMTModel, Seq2SeqTrainer, Seq2SeqTrainingArguments

from vanilla_transformer.benchmark.memory import in_own_process
from vanilla_transformer.benchmark.train_configuration import MARIAN, OURS, TrainBenchmarkConfig
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus
from vanilla_transformer.data.tokenized_pairs import prepare_pairs
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.exporting.marian import marian_config
from vanilla_transformer.inference.model_folder import default_device
from vanilla_transformer.loss import IGNORE_INDEX
from vanilla_transformer.training.configuration import CorporaConfig, model_config_of, run_config_of
from vanilla_transformer.training.loop import fit
from vanilla_transformer.training.setup import set_up

TRAINER = f"Seq2SeqTrainer, {MARIAN}"


class RunMeter:
    """Counts the tokens of a run, and clocks its updates, by torch's own hooks: whoever trains is measured alike."""

    def __init__(self, model: nn.Module, started: float):
        self.started, self.begins, self.ends = started, [], []
        self.pairs, self.positions, self.real = [], [], []  # of each batch; `real` on the device
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        register_optimizer_step_post_hook(lambda *arguments: self.ends.append(time.time()))

    def _begin(self, module: nn.Module, arguments: Any, batch: dict[str, torch.Tensor]) -> None:
        self.begins.append(time.time())
        self.pairs.append(len(batch["labels"]))
        self.positions.append(batch["input_ids"].numel() + batch["labels"].numel())
        self.real.append(batch["attention_mask"].sum() + (batch["labels"] != IGNORE_INDEX).sum())

    def figures(self) -> dict[str, float]:
        """`tokens_per_second` and `waiting_share` from the second update on, and of the whole run the rest."""
        assert len(self.begins) == len(self.ends), "an update has one forward pass"
        real = [int(tokens) for tokens in self.real]
        seconds = self.ends[-1] - self.ends[0]
        waits = (begin - end for begin, end in zip(self.begins[1:], self.ends[:-1], strict=True))
        return {
            "tokens_per_second": sum(real[1:]) / seconds,
            "waiting_share": sum(waits) / seconds,
            "padding_share": 1 - sum(real) / sum(self.positions),
            "first_update": self.ends[0] - self.started,
            "pairs": mean(self.pairs),
        }


def measure_corpus_runs(config: TrainBenchmarkConfig, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Runs of both in turns, each in a new process, after one of ours that fills the caches.

    Returns:
        `each`: system → `RunMeter.figures` of each run; `runs`: their medians; `ratio`: of our tokens per second.
    """
    each: dict[str, list[dict[str, float]]] = {OURS: [], TRAINER: []}
    with tempfile.TemporaryDirectory() as temporary:
        warm = Path(temporary, "warm")
        pairs = round(in_own_process(run_ours, config, warm, time.time(), imports_anew=True)["pairs"])
        on_progress("corpus: the caches are warm")
        for number in range(config.corpus.repeats):
            output = Path(temporary, str(number))
            ours = in_own_process(run_ours, config, output, time.time(), imports_anew=True)
            theirs = in_own_process(run_trainer, config, warm, pairs, time.time(), imports_anew=True)
            for name, figures in zip(each, (ours, theirs), strict=True):
                each[name].append(figures)
                on_progress(f"corpus: {name} {figures['tokens_per_second']:,.0f} tokens/s")
    runs = {name: {key: median(figures[key] for figures in found) for key in found[0]} for name, found in each.items()}
    return {"runs": runs, "each": each, "ratio": runs[OURS]["tokens_per_second"] / runs[TRAINER]["tokens_per_second"]}


def run_ours(config: TrainBenchmarkConfig, output_dir: Path, started: float) -> dict[str, float]:
    """One run by our loop; `started` is the time of the command."""
    corpus, device = config.corpus, _device(config)
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    run = set_up(
        run_config_of(
            {
                "data": {"train": {"source": corpus.source, "target": corpus.target}},
                "tokenizer": {"kind": "bpe", "vocab_size": corpus.vocab_size},
                "model": config.models[corpus.size]["transformer"],
                "training": {
                    "output_dir": str(output_dir),
                    "max_updates": corpus.updates,
                    "max_source_tokens": corpus.batch_tokens,
                    "max_target_tokens": corpus.batch_tokens,
                    "mixed_precision": corpus.mixed_precision,
                    "attention": _attention(device),
                    "checkpoint_every": corpus.updates,
                    "trackers": [],
                },
            }
        )
    )
    meter = RunMeter(run.state.bare_model(), started)
    fit(run)
    return meter.figures()


def run_trainer(config: TrainBenchmarkConfig, warm: Path, pairs: int, started: float) -> dict[str, float]:
    """One run by Seq2SeqTrainer, with the tokenizer of our run in `warm` and its tokens, in batches of `pairs`."""
    corpus, device = config.corpus, _device(config)
    tokenizer = load_tokenizer(warm / "tokenizer")
    text: Any = load_corpus(CorpusConfig(source=corpus.source, target=corpus.target))
    rows: Any = prepare_pairs(text, tokenizer, CorporaConfig().max_length)[0]
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    special_tokens = {name: getattr(tokenizer, name) for name in names}
    special_tokens["decoder_start_token_id"] = tokenizer.bos_token_id
    ours: Any = model_config_of(config.models[corpus.size]["transformer"], vocab_size=len(tokenizer), **special_tokens)
    options = {"attn_implementation": _attention(device)}
    model = MarianMTModel(marian_config(ours, CorporaConfig().max_length, **options))
    arguments = Seq2SeqTrainingArguments(
        str(warm / "trainer"),
        max_steps=corpus.updates,
        per_device_train_batch_size=pairs,
        bf16=corpus.mixed_precision == "bf16",
        use_cpu=device.type == "cpu",
        save_strategy="no",
        report_to="none",
    )
    dataset, collator = rows.select_columns(["input_ids", "labels"]), DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=dataset, data_collator=collator)
    meter = RunMeter(model, started)
    trainer.train()
    return meter.figures()


def _device(config: TrainBenchmarkConfig) -> torch.device:
    return default_device() if config.device == "auto" else torch.device(config.device)


def _attention(device: torch.device) -> str:
    """For sentences: on a CPU the plain product is faster."""
    return "eager" if device.type == "cpu" else "sdpa"
