# SPDX-License-Identifier: Apache-2.0
"""Open published folders in one version of transformers: `published.py` runs this in a process.

    python in_one_version.py write FOLDER
    python in_one_version.py package|remote ANSWERS FOLDER …

`write` saves a model of each kind beneath FOLDER. `package` and `remote` open folders, with the installed package or by
the code that a folder carries, and write what the models answer to ANSWERS, or the error that refuses this version.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

LINES, TARGETS = ["a b c", "h g f e d", "c", "d e a b"], ["c b a", "d e f", "h", "a a"]


def write(root: Path) -> None:
    import torch

    import vanilla_transformer as package
    from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer

    sizes: dict[str, Any] = {"vocab_size": 12, "num_layers": 2, "num_decoder_layers": 3, "dropout": 0.0}
    sizes |= {"tie_word_embeddings": False, "share_encoder_decoder_embeddings": True}
    rnn = sizes | {"embedding_size": 8, "hidden_size": 8, "cell": "lstm"}
    models = [
        package.VanillaTransformerForConditionalGeneration(
            package.VanillaTransformerConfig(**sizes, d_model=16, d_ff=32, num_heads=2)
        ),
        package.RNNSeq2SeqForConditionalGeneration(package.RNNSeq2SeqConfig(**rnn)),
    ]
    for model in models:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():  # the same weights in every version
            for matrix in (parameter for parameter in model.parameters() if parameter.dim() > 1):
                matrix.copy_(torch.randn(matrix.shape, generator=generator) * 0.5)
        folder = root / model.config.model_type
        model.save_pretrained(folder)
        train_tokenizer(["a b c d e f g h"], TokenizerConfig(kind="symbols")).save_pretrained(folder)


def answer(folder: str, trust: bool) -> dict[str, Any]:
    """`tokens`, lists by the way of decoding, and `numbers`, in one list."""
    import torch
    from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

    base = AutoModel.from_pretrained(folder, trust_remote_code=trust)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=trust).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    is_remote = type(model).__module__.startswith("transformers_modules.")
    assert is_remote == trust, type(model)
    batch = tokenizer(LINES, return_tensors="pt", padding=True)
    labels = tokenizer(TARGETS, return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        whole = model(**batch, labels=labels, output_hidden_states=True)
        second = []
        for name in ("cache", "past_key_values"):  # the argument's two names
            first = model(**batch, decoder_input_ids=labels[:, :1], use_cache=True)
            second.append(model(**batch, decoder_input_ids=labels[:, 1:2], **{name: first.cache}).logits)
        hidden = base(**batch, decoder_input_ids=labels).last_hidden_state
    numbers = [whole.loss, whole.logits, *whole.decoder_hidden_states, *second, hidden]
    # Random weights repeat tokens often: count without repetitions.
    options: dict[str, Any] = {"max_new_tokens": 9, "no_repeat_ngram_size": 2}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    paper = {"num_beams": 4, "custom_generate": folder, "trust_remote_code": True}
    calls: dict[str, dict[str, Any]] = {"greedy": {}, "beam": {"num_beams": 4, "length_penalty": 0.6}, "paper": paper}
    if not trust:
        from vanilla_transformer.generation import beam_search

        calls["search"] = {"num_beams": 4, "custom_generate": beam_search}
    tokens = {}
    for name, call in calls.items():
        found = model.generate(**batch, **options, **call)
        tokens[name] = [until_end(target) for target in found.sequences.tolist()]
        if name != "search":
            numbers += [step.clamp(min=-1e4) for step in found.scores]
            numbers += [] if name == "greedy" else [found.sequences_scores]
    if not trust:
        assert tokens.pop("search") == tokens["paper"]
    translator: Any = pipeline("translation", folder, trust_remote_code=trust, max_new_tokens=5)  # pyright: ignore[reportCallIssue, reportArgumentType] -- transformers 5 has removed the task; ours is registered
    tokens["pipeline"] = translator(LINES, batch_size=2) + translator(LINES[:1], num_beams=2)
    numbers += trained(model, batch, labels)
    return {"tokens": tokens, "numbers": torch.cat([number.detach().flatten() for number in numbers]).tolist()}


def until_end(target: list[int]) -> list[int]:
    """A target without what fills its row, which is padding or EOS by the version."""
    return target[: target.index(2) + 1] if 2 in target else target


def trained(model: Any, batch: Any, labels: Any) -> list[Any]:
    """The logits after an update of transformers' Trainer, of two batches, with gradient checkpointing."""
    import torch
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    arguments = Seq2SeqTrainingArguments(
        "trainer",
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        predict_with_generate=True,
    )
    rows = [
        {"input_ids": source, "attention_mask": mask, "labels": target.masked_fill(target == 0, -100)}
        for source, mask, target in zip(batch["input_ids"], batch["attention_mask"], labels, strict=True)
    ]
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=rows, eval_dataset=rows)  # pyright: ignore[reportArgumentType] -- any sequence will do
    trainer.train()
    evaluated = torch.tensor(trainer.evaluate(max_new_tokens=5)["eval_loss"])
    with torch.no_grad():
        return [evaluated, model.eval()(**batch, labels=labels).logits]


def main(task: str, target: str, *folders: str) -> None:
    if task == "write":
        write(Path(target))
        return
    answers: dict[str, Any] = {"version": version("transformers")}
    try:
        if task == "package":
            import vanilla_transformer  # noqa: F401 -- registers the models
        else:
            sys.modules["vanilla_transformer"] = None  # pyright: ignore[reportArgumentType] -- importing it raises an error
        for folder in folders:
            answers[folder] = answer(folder, trust=task == "remote")
    except ImportError as error:
        answers["refused"] = str(error)
    Path(target).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
