# SPDX-License-Identifier: Apache-2.0
"""Section 5.1 of the paper: one vocabulary of sub-words that source and target share."""

import json
import logging
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub.dataclasses import strict

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from vanilla_transformer.data.tokenizer_class import VanillaTransformerTokenizer

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
BYTES = 256
# BPE is trained on at most the beginning of a line: it takes minutes for one unbroken megabyte.
MAX_LINE_LENGTH = 10_000  # characters

logger = logging.getLogger(__name__)


@strict
@dataclass(kw_only=True)
class TokenizerConfig:
    """How text becomes tokens.

    Args:
        kind: "bpe": byte-level byte-pair encoding, in which no text has unknown tokens. "symbols": for data that is
            tokens separated by white space already (phonemes, SCAN, numbers).
        vocab_size: of the shared vocabulary; "symbols" takes all symbols of the corpus, up to this number.
        max_training_lines: lines, of both sides, that "bpe" is trained on: of a longer corpus a random part, the same
            every time. "symbols" reads all.
        path: folder or Hub id of an existing tokenizer, which is used instead of training one.

    Raises:
        ValueError: max_training_lines is less than 2, a pair.
    """

    kind: Literal["bpe", "symbols"] = "bpe"
    vocab_size: int = 37000
    max_training_lines: int = 10_000_000
    path: str | None = None

    def __post_init__(self):
        if self.max_training_lines < 2:
            raise ValueError(f"max_training_lines={self.max_training_lines} must be at least 2")


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> "VanillaTransformerTokenizer":
    """Train a tokenizer on both sides of a corpus.

    Source and target end with `</s>`. Special tokens in a text are text, for symbols `<unk>`; tokens of
    `add_special_tokens` and `add_tokens` are found in it. BPE decodes to the text as it was, symbols to symbols
    separated by single spaces.

    Returns:
        A tokenizer whose saved folder `AutoTokenizer.from_pretrained` opens without this package. Ids: `<pad>` 0,
        `<s>` 1, `</s>` 2, and for symbols `<unk>` 3.

    Raises:
        ValueError: a vocabulary too small for the bytes, or for the symbols; a symbol that is a special token.
    """
    from tokenizers import processors

    from vanilla_transformer.data.tokenizer_class import VanillaTransformerTokenizer

    backend = _train_bpe(texts, config) if config.kind == "bpe" else _collect_symbols(texts, config)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, backend.token_to_id(EOS))]
    )
    return VanillaTransformerTokenizer(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN if config.kind == "symbols" else None,
        padding_side="right",
        split_special_tokens=True,  # "</s>" in a user's text is text
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _train_bpe(texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [PAD, BOS, EOS]
    if config.vocab_size < BYTES + len(special):
        raise ValueError(
            f"tokenizer.vocab_size={config.vocab_size} must be at least {BYTES + len(special)}: "
            f"{BYTES} bytes and {len(special)} special tokens"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((text[:MAX_LINE_LENGTH] for text in texts), trainer)
    if (size := backend.get_vocab_size()) < config.vocab_size:
        logger.warning(f"the corpus gives a vocabulary of {size}, fewer than tokenizer.vocab_size={config.vocab_size}")
    return backend


def _collect_symbols(texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    special = [PAD, BOS, EOS, UNKNOWN]
    backend = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # No limit: the trainer would drop the rarest symbols silently. It sorts by frequency, then alphabetically.
    trainer = trainers.WordLevelTrainer(vocab_size=sys.maxsize, special_tokens=special, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    vocabulary = backend.get_vocab(with_added_tokens=False)
    for index, token in enumerate(special):
        if vocabulary[token] != index:  # a symbol of that name has overwritten it
            raise ValueError(f"the corpus has the symbol {token!r}, which is a special token; rename it in the corpus")
    if len(vocabulary) > config.vocab_size:
        raise ValueError(
            f"the corpus has {len(vocabulary) - len(special)} symbols, which with {len(special)} special tokens "
            f"exceed tokenizer.vocab_size={config.vocab_size}; raise it, or use tokenizer.kind=bpe for text"
        )
    # "</s>" in a text would end it, because the vocabulary has it; without its first character it is unknown. This
    # comes after the training, which has to see whole symbols, and within the pre-tokenizer, which runs after added
    # tokens have been found.
    names = "|".join(re.escape(token.removeprefix("<")) for token in (PAD, BOS, EOS))
    unnamed = pre_tokenizers.Split(Regex(f"^<(?=(?:{names})$)"), "removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), unnamed])
    return backend


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a model folder or Hub id; code in it is not executed.

    Raises:
        FileNotFoundError: it has no tokenizer, or not the target's that its settings name.
        ValueError: its files are damaged.
    """
    from transformers import AutoTokenizer

    from vanilla_transformer.data.tokenizer_class import HAS_TARGET, TARGET_TOKENIZER

    folder = Path(path)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer: tokenizer.json is missing")
    try:
        settings = folder / "tokenizer_config.json"
        has_target = settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get(HAS_TARGET)
        if has_target and not (folder / TARGET_TOKENIZER / "tokenizer.json").is_file():
            raise OSError(f"{TARGET_TOKENIZER}/tokenizer.json, which reads and writes the target, is missing")
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)  # by default it asks whether to
    except OSError as error:
        raise FileNotFoundError(f"cannot open the tokenizer {path}: {' '.join(str(error).split())}") from error
    except Exception as error:  # tokenizers raises a bare Exception for a damaged tokenizer.json
        raise ValueError(f"the tokenizer in {path} is damaged: {' '.join(str(error).split())}") from error
