# SPDX-License-Identifier: Apache-2.0
"""Tags, tokens that stand for a language or a kind of text: before the source, or first in the target."""

from collections.abc import Iterable
from typing import Any

TAG_OF_LANGUAGE = "<2{}>"
# In generation_config.json, as Whisper's has it: the tags that a target begins with, and their ids.
TARGET_TAGS = "lang_to_id"


def tag_id(tokenizer: Any, tag: str, others: Iterable[str] = ()) -> int:
    """The id of a tag: one of the tokens that were added to the tokenizer's vocabulary.

    Args:
        others: tags that the message names, too.

    Raises:
        ValueError: there is no such tag; names those that there are.
    """
    added = tokenizer.get_added_vocab()
    if tag not in added:
        tags = sorted({*added, *others} - set(tokenizer.all_special_tokens))
        raise ValueError(f"the tokenizer has no tag {tag!r}; it has {', '.join(map(repr, tags)) or 'no tags'}")
    return added[tag]


def tag_options(
    tokenizer: Any, generation_config: Any, tag: str | None, target_language: str | None
) -> tuple[list[int], dict[str, int]]:
    """Source ids and options of `generate` for a tag and a target language.

    Args:
        generation_config: its `lang_to_id`, if there is one, says that targets begin with the tag of their language.
        tag: before the source, such as "<bt>".
        target_language: such as "de", whose tag is "<2de>".

    Returns:
        The ids before those of the source, and options of `generate`.

    Raises:
        ValueError: as `tag_id`; two tags before the source.
    """
    before = [] if tag is None else [tag_id(tokenizer, tag)]
    if target_language is None:
        return before, {}
    language, first_tokens = (
        TAG_OF_LANGUAGE.format(target_language),
        getattr(generation_config, TARGET_TAGS, None) or {},
    )
    if language in first_tokens:  # its id in the target's vocabulary
        return before, {"forced_bos_token_id": first_tokens[language]}
    language_id = tag_id(tokenizer, language, first_tokens)
    if before:
        raise ValueError(f"tag={tag!r}, target_language={target_language!r}: a source has one tag; give one of them")
    return [language_id], {}
