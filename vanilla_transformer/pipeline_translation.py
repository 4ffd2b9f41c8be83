# SPDX-License-Identifier: Apache-2.0
"""`pipeline("translation")`, which transformers 5 dropped, for the models of this package."""

from typing import Any

import torch
from transformers import AutoTokenizer, Pipeline

from .language_tags import tag_options
from .transformers_differences import PIPELINE_KEEPS_ARGUMENTS, generate_arguments


class TranslationPipeline(Pipeline):
    """Text in, text out: `pipeline("vanilla-translation", folder)("A man sleeps.")`.

    A call takes a text, a list of them or any iterable, and the arguments of `generate()`; with `tgt_lang="de"` a model
    of several languages translates into that of its tag `<2de>`. For each text it returns `num_return_sequences` times
    `{"translation_text": …}`, best first.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = PIPELINE_KEEPS_ARGUMENTS

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        tokenizer: Any = self.tokenizer
        self.target_tokenizer = tokenizer  # the package's decodes targets, by a vocabulary of their own if there is one
        if tokenizer.init_kwargs.get("has_target_tokenizer") and not hasattr(tokenizer, "target_tokenizer"):
            commit = getattr(self.model.config, "_commit_hash", None)
            place = {"subfolder": "target_tokenizer", "revision": commit or "main"}
            self.target_tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path, **place)

    def _sanitize_parameters(self, tgt_lang: str | None = None, **generate_kwargs) -> tuple[dict, dict, dict]:
        before, options = tag_options(self.tokenizer, self.model.generation_config, None, tgt_lang)
        return {"before": before} if before else {}, options | generate_kwargs, {}

    def preprocess(self, text: str, before: list[int] | None = None) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride] -- the base leaves the input's name open
        if not isinstance(text, str):
            raise ValueError(f"a text to translate must be a string; {type(text).__name__} was given")
        inputs = dict(self.tokenizer(text, return_tensors="pt"))  # pyright: ignore[reportOptionalCall] -- _load_tokenizer
        if before:  # the ids of tags, which text cannot give
            first = {
                "input_ids": torch.tensor([before]),
                "attention_mask": torch.ones(1, len(before), dtype=torch.long),
            }
            inputs = {name: torch.cat([first[name], tokens], dim=1) for name, tokens in inputs.items()}
        return inputs

    def _forward(self, inputs: dict[str, Any], **generate_kwargs) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride] -- as above
        options = generate_arguments(self, generate_kwargs, return_dict_in_generate=False)
        # (batch * num_return_sequences, target_length)
        sequences = self.model.generate(**inputs, **options)  # pyright: ignore[reportCallIssue] -- the model mixes it in
        # transformers splits a batch's outputs along the first dimension.
        return {"sequences": sequences.unflatten(0, (len(inputs["input_ids"]), -1))}  # (batch, returned, target_length)

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, str]]:  # pyright: ignore[reportIncompatibleMethodOverride] -- as above
        texts = self.target_tokenizer.batch_decode(outputs["sequences"][0], skip_special_tokens=True)
        return [{"translation_text": text} for text in texts]


__all__ = ["TranslationPipeline"]
