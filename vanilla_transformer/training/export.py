# SPDX-License-Identifier: Apache-2.0
"""The end of a run: the finished model as a folder in Hub format, and the run's facts in results.json."""

import json
import os
import platform
from dataclasses import asdict
from typing import Any

import torch
import transformers
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.distributed.processes import wait_for_everyone
from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_on_all_processes
from vanilla_transformer.training.atomic_folder import atomic_folder
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.finetuning import FineTuningConfig
from vanilla_transformer.training.lora import load_adapter, merge_adapter, save_weights
from vanilla_transformer.training.setup import Run
from vanilla_transformer.training.validation import BEST, Validation, best_validation

MODEL, RESULTS, ADAPTER = "model", "results.json", "adapter"  # in the run's output_dir
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_model(run: Run, validation: Validation | None) -> None:
    """Write `output_dir/model` and `output_dir/results.json`; score the model on `data.test` if there is one.

    With LoRA, also write `output_dir/adapter`, which is merged into the model.

    Args:
        validation: the last weights', for results.json, unless the finished model is that of the best validation.
    """
    if run.config.training.finishes_with_best():
        validation = best_validation(run)
    results = _facts(run, validation)
    if run.state.accelerator.is_main_process:
        model = _finished_model(run)
        with atomic_folder(run.output_dir / MODEL) as folder:
            model.save_pretrained(folder)
            run.tokenizer.save_pretrained(folder)
        results["parameters"] = model.num_parameters()
    _write_results(run, results)
    wait_for_everyone()
    if run.corpora.test:
        _write_results(run, results | {"scores": _score_on_tests(run)})


def _finished_model(run: Run) -> PreTrainedModel:
    training, best = run.config.training, run.output_dir / BEST
    if isinstance(run.config, FineTuningConfig) and run.config.lora is not None:
        if training.finishes_with_best():
            load_adapter(run.state.bare_model(), best)
        with atomic_folder(run.output_dir / ADAPTER) as folder:
            save_weights(run.state.bare_model(), folder)
        return merge_adapter(run.config.model, run.output_dir / ADAPTER, run.tokenizer)
    if training.finishes_with_best():
        return average_checkpoints([best])
    return average_checkpoints(run.checkpoints.newest(training.average_checkpoints or 1))


def _write_results(run: Run, results: dict[str, Any]) -> None:
    if run.state.accelerator.is_main_process:
        write_atomically(run.output_dir / RESULTS, json.dumps(results, indent=2) + "\n")


def _score_on_tests(run: Run) -> list[dict[str, Any]]:
    model = load_model_folder(run.output_dir / MODEL, run.state.accelerator.device)
    batch_tokens, scores = run.config.generation.batch_tokens, []
    for name, test in run.corpora.test.items():
        translations = translate_on_all_processes(
            model, run.tokenizer, test.sources, max_batch_tokens=batch_tokens, **test.options
        )
        scores += _scores(name, score_translations([best[0].text for best in translations], test.references))
    return scores


def _scores(corpus: str, scores: Any) -> list[dict[str, Any]]:
    return [
        {"data": corpus, "metric": metric, "value": scores[key], "signature": scores[f"{key}_signature"]}
        for metric, key in (("BLEU", "bleu"), ("chrF", "chrf"))
    ]


def _facts(run: Run, validation: Validation | None) -> dict[str, Any]:
    """The run's facts for results.json, from which reports and model cards are written."""
    accelerator, progress, model = run.state.accelerator, run.state.progress, run.state.bare_model()
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    else:
        device = f"{platform.machine()} {accelerator.device.type}, {os.cpu_count()} cores"
    facts = {
        "config": run.config.to_dict(),
        "model_type": model.config.model_type,
        "vocab_size": model.config.vocab_size,
        "decoder_vocab_size": model.config.decoder_vocab_size,
        "pairs": run.corpora.pairs(),
        "updates": progress.updates,
        "epochs": round(run.epochs(), 2),
        "target_tokens": progress.target_tokens,
        "training_seconds": round(progress.seconds, 3),
        "devices": accelerator.num_processes,
        "hardware": f"{accelerator.num_processes} x {device}",
        "sustained_flops": round(sustained_flops(accelerator.device, accelerator.mixed_precision)),
        "mixed_precision": accelerator.mixed_precision,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "validation": asdict(validation) if validation is not None else None,
        "scores": [],
    }
    if isinstance(run.config, FineTuningConfig):
        facts["loss"] = validation.loss if validation is not None else None
        facts["scores"] = _scores("validation", asdict(validation)) if validation is not None else []
    return facts


def sustained_flops(device: torch.device, mixed_precision: str) -> float:
    """A device's floating-point operations per second in a product of large matrices, at the run's precision.

    The paper's estimate of training cost (section 6.1, Table 2) needs it.

    The median of about half a second after a warm-up, on a CPU with the current number of threads. Processes that share
    a CPU should measure at the same time, as they trained at the same time.

    Args:
        mixed_precision: Accelerate's: "no", "bf16" or "fp16".
    """
    size = 1024 if device.type == "cpu" else 4096  # large enough to be bound by computing, not by memory
    generator = torch.Generator(device).manual_seed(0)  # does not advance the run's generator
    matrices = {
        name: torch.rand(size, size, generator=generator, device=device).to(DTYPES[mixed_precision])
        for name in ("left", "right")
    }
    timer = Timer("left @ right", globals=matrices, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange().median
