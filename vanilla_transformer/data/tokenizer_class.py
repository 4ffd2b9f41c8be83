# SPDX-License-Identifier: Apache-2.0
"""The class of this package's tokenizers: added special tokens are found in text, the reserved ones are not."""

from typing import Any

from transformers import AddedToken, PreTrainedTokenizerFast

RESERVED = ("pad_token", "bos_token", "eos_token", "unk_token")


class VanillaTransformerTokenizer(PreTrainedTokenizerFast):
    """A tag of `add_special_tokens`, such as a language's, is a single id in a text; "</s>" in a text is text.

    transformers has one switch for both, `split_special_tokens`, under which no special token is found in text. So a
    tag is written to tokenizer.json as an added token that is not special, which any tokenizer class finds.
    `skip_special_tokens` skips tags only with this class; without this package they stay, as those of `add_tokens` do.
    """

    def _add_tokens(self, new_tokens: list[str | AddedToken], special_tokens: bool = False) -> int:
        reserved = {str(self._special_tokens_map.get(name)) for name in RESERVED}
        backend, added = self.backend_tokenizer, 0
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
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        if skip_special_tokens:
            ids, special = [token_ids] if isinstance(token_ids, int) else token_ids, set(self.all_special_ids)
            token_ids = [token for token in ids if token not in special]
        return super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
