# SPDX-License-Identifier: Apache-2.0
"""A tokenizer's files as every transformers since 4.40 and tokenizers since 0.19 read them."""

import json
from pathlib import Path
from typing import Any

from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER

TOKENS = ("pad_token", "bos_token", "eos_token", "unk_token")
KEPT = ("padding_side", "clean_up_tokenization_spaces", "model_input_names", "split_special_tokens")


def write_plain_tokenizers(tokenizer: Any, folder: Path) -> None:
    """`write_plain_tokenizer`, and into `target_tokenizer/` the same of the target's tokenizer, if there is one."""
    write_plain_tokenizer(tokenizer, folder)
    if (target := getattr(tokenizer, TARGET_TOKENIZER, None)) is not None:
        (folder / TARGET_TOKENIZER).mkdir()
        write_plain_tokenizer(target, folder / TARGET_TOKENIZER)


def write_plain_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of a fast tokenizer as a `PreTrainedTokenizerFast`.

    transformers 5 names the class otherwise, and writes `extra_special_tokens` as a list, on which versions 4 fail.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = backend["model"].get("merges")
    if merges and not any(" " in part for merge in merges for part in merge):
        # As tokenizers wrote them up to 0.19, which reads no pairs; every later version reads both.
        backend["model"]["merges"] = [" ".join(merge) for merge in merges]
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {name: token for name in TOKENS if (token := getattr(tokenizer, name)) is not None}
    config |= {name: getattr(tokenizer, name) for name in KEPT}
    for name, values in (("tokenizer.json", backend), ("tokenizer_config.json", config)):
        text = json.dumps(values, ensure_ascii=False, indent=2)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
