# SPDX-License-Identifier: Apache-2.0
"""The end of a run: the mean of its last checkpoints as a model folder in Hub format, and the run's facts."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from vanilla_transformer.data.corpus import load_corpus
from vanilla_transformer.evaluation.translate import translate_lines
from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.preparation import Run


def write_finished_model(run: Run) -> Path:
    """Write `output_dir/model` and `output_dir/results.json`; the model is scored on `data.test` if there is one.

    Returns:
        The folder: config.json, model.safetensors, generation_config.json and the tokenizer's files.
    """
    folder = run.output_dir / "model"
    if run.accelerator.is_main_process:
        checkpoints = list_checkpoints(run.output_dir / "checkpoints")
        model = average_checkpoints(checkpoints[-(run.config.training.average_checkpoints or 1) :])
        model.save_pretrained(folder)
        run.tokenizer.save_pretrained(folder)
        scores = []
        if run.config.data.test is not None:
            test = load_corpus(run.config.data.test)[:]
            best = translate_lines(
                model.to(run.accelerator.device),
                run.tokenizer,
                test["source"],
                max_batch_tokens=run.config.generation.batch_tokens,
            )
            scores.append({"data": "test", **score_translations([b[0].text for b in best], test["target"])})
        facts = _facts(run, model.num_parameters(), scores)
        (run.output_dir / "results.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    run.accelerator.wait_for_everyone()
    return folder


def _facts(run: Run, parameters: int, scores: list[dict[str, Any]]) -> dict[str, Any]:
    """What a model card needs to know of the run."""
    accelerator, progress = run.accelerator, run.progress
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    else:
        device = f"{platform.machine()} {accelerator.device.type}, {os.cpu_count()} cores"
    return {
        "config": run.config.to_dict(),
        "parameters": parameters,
        "pairs": len(run.train.pairs),
        "updates": progress.updates,
        "epochs": round(progress.epoch + progress.batches / len(run.batches.batch_sampler), 2),
        "target_tokens": progress.target_tokens,
        "training_seconds": round(progress.seconds, 1),
        "best_validation_bleu": progress.best_bleu,
        "hardware": f"{accelerator.num_processes} x {device}",
        "mixed_precision": accelerator.mixed_precision,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "scores": scores,
    }
