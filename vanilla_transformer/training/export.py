# SPDX-License-Identifier: Apache-2.0
"""The end of a run: the mean of its last checkpoints as a model folder in Hub format, and the run's facts."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_on_all_processes
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.checkpoint import replaced_whole
from vanilla_transformer.training.flops import sustained_flops
from vanilla_transformer.training.preparation import Run
from vanilla_transformer.training.validation import Validation

MODEL, RESULTS = "model", "results.json"  # in the run's output_dir


def write_finished_model(run: Run, validation: Validation | None) -> None:
    """Write `output_dir/model` and `output_dir/results.json`; the model is scored on `data.test` if there is one.

    The folder holds config.json, model.safetensors, generation_config.json and the tokenizer's files.

    Args:
        validation: the last one, of the last weights; for results.json.
    """
    folder = run.output_dir / MODEL
    if run.accelerator.is_main_process:
        model = average_checkpoints(run.checkpoints.newest(run.config.training.average_checkpoints or 1))
        with replaced_whole(folder) as unfinished:
            model.save_pretrained(unfinished)
            run.tokenizer.save_pretrained(unfinished)
    run.accelerator.wait_for_everyone()
    results = _facts(run, validation)
    _write_results(run, results)
    if run.corpora.test is not None:
        _write_results(run, results | {"scores": _score_on_test(run, *run.corpora.test, folder)})


def _write_results(run: Run, results: dict[str, Any]) -> None:
    if run.accelerator.is_main_process:
        unfinished = run.output_dir / f".{RESULTS}"
        unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(run.output_dir / RESULTS)


def _score_on_test(run: Run, sources: list[str], references: list[list[str]], folder: Path) -> list[dict[str, Any]]:
    """Every process translates its share of the test corpus."""
    translations = translate_on_all_processes(
        load_model_folder(folder, run.accelerator.device),
        run.tokenizer,
        sources,
        max_batch_tokens=run.config.generation.batch_tokens,
    )
    score = score_translations([best[0].text for best in translations], references)
    return [
        {"data": "test", "metric": metric, "value": score[key], "signature": score[f"{key}_signature"]}
        for metric, key in (("BLEU", "bleu"), ("chrF", "chrf"))
    ]


def _facts(run: Run, validation: Validation | None) -> dict[str, Any]:
    """What a report or a model card needs to know of the run."""
    accelerator, progress = run.accelerator, run.progress
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    else:
        device = f"{platform.machine()} {accelerator.device.type}, {os.cpu_count()} cores"
    return {
        "config": run.config.to_dict(),
        "vocab_size": run.bare_model().config.vocab_size,
        "parameters": run.bare_model().num_parameters(),
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
