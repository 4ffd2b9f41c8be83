# SPDX-License-Identifier: Apache-2.0
"""The class of this package's tokenizers: added special tokens are found in text, the reserved ones are not."""

import copy
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TARGET_TOKENIZER = "target_tokenizer"  # a folder beside tokenizer.json
HAS_TARGET = "has_target_tokenizer"  # in tokenizer_config.json
RESERVED = ("pad_token", "bos_token", "eos_token", "unk_token")


class VanillaTransformerTokenizer(PreTrainedTokenizerFast):
    """A tag of `add_special_tokens`, such as a language's, is a single id in a text; "</s>" in a text is text.

    So are the tags of a run's corpora, which the run and `translate --tag` put by their ids.

    transformers has one switch for both, `split_special_tokens`, under which no special token is found in text. So a
    tag is written to tokenizer.json as an added token that is not special, which any tokenizer class finds.
    `skip_special_tokens` skips tags only with this class; without this package they stay, as those of `add_tokens` do.

    There may be two tokenizers: `target_tokenizer` then encodes `text_target`, and decodes. Without this
    package it opens by itself, `AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer")`.
    """

    target_tokenizer: "VanillaTransformerTokenizer | None" = None
    _source_backend: Any = None  # while the target's is in its place

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *inputs: Any, **kwargs: Any) -> Any:
        """As in transformers, with the target's tokenizer where there is one."""
        tokenizer = super().from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)
        if tokenizer.init_kwargs.get(HAS_TARGET):
            folder = PurePosixPath(kwargs.pop("subfolder", ""), TARGET_TOKENIZER).as_posix()
            tokenizer.target_tokenizer = super().from_pretrained(
                pretrained_model_name_or_path, *inputs, subfolder=folder, **kwargs
            )
        return tokenizer

    def save_pretrained(self, save_directory: Any, *inputs: Any, **kwargs: Any) -> Any:
        """As in transformers, with the target's tokenizer where there is one."""
        if self.target_tokenizer is not None:
            self.init_kwargs[HAS_TARGET] = True
            self.target_tokenizer.save_pretrained(Path(save_directory, TARGET_TOKENIZER))
        return super().save_pretrained(save_directory, *inputs, **kwargs)

    def _switch_to_target_mode(self) -> None:
        """transformers calls it around the tokenization of `text_target`."""
        if self.target_tokenizer is not None:
            self._source_backend, self._tokenizer = self._tokenizer, self.target_tokenizer._tokenizer

    def _switch_to_input_mode(self) -> None:
        if self._source_backend is not None:
            self._tokenizer, self._source_backend = self._source_backend, None

    def _add_tokens(self, new_tokens: list[str | AddedToken], special_tokens: bool = False) -> int:
        reserved = {str(self._special_tokens_map.get(name)) for name in RESERVED}
        backend, added = self.backend_tokenizer, 0
        # Tags of a run's corpora are special in tokenizer.json, so that no text gives them.
        reserved |= {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        for token in new_tokens:
            if isinstance(token, str):
                token = AddedToken(token, special=special_tokens, normalized=not special_tokens)
            if token.content in reserved:
                added += backend.add_special_tokens([token])
            else:
                flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
                added += backend.add_tokens([AddedToken(token.content, special=False, **flags)])
        return added

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        if self.target_tokenizer is not None:
            return self.target_tokenizer._decode(token_ids, skip_special_tokens, **kwargs)
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        if skip_special_tokens:
            ids, special = [token_ids] if isinstance(token_ids, int) else token_ids, set(self.all_special_ids)
            token_ids = [token for token in ids if token not in special]
        return super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)


def target_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of the target: its own, or the one of both sides."""
    return getattr(tokenizer, TARGET_TOKENIZER, None) or tokenizer


def source_alone(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The source's tokenizer without the target's: it decodes ids of the source."""
    alone: Any = copy.copy(tokenizer)
    if getattr(alone, TARGET_TOKENIZER, None) is not None:
        alone.target_tokenizer = None
    return alone


def with_target(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast | None) -> VanillaTransformerTokenizer:
    """The source's tokenizer with that of the target, if there is another; both get this package's class."""
    made, of_target = (None if each is None else _as_this_class(each) for each in (source, target))
    assert made is not None
    made.target_tokenizer = of_target
    return made


def _as_this_class(tokenizer: PreTrainedTokenizerFast) -> VanillaTransformerTokenizer:
    if isinstance(tokenizer, VanillaTransformerTokenizer):
        return tokenizer
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return VanillaTransformerTokenizer.from_pretrained(folder)
