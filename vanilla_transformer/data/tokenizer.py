# SPDX-License-Identifier: Apache-2.0
"""Section 5.1 of the paper: one vocabulary of sub-words that source and target share."""

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

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
BYTES = 256
# BPE is learnt from at most this much of a line: its trainer takes minutes for one unbroken megabyte.
LEARNT_CHARACTERS = 10_000

logger = logging.getLogger(__name__)


@strict
@dataclass(kw_only=True)
class TokenizerConfig:
    """How text becomes tokens.

    Args:
        kind: "bpe" for text: byte-level byte-pair encoding, to which no string is unknown. "symbols" for data that
            is symbols separated by white space already (phonemes, SCAN, numbers).
        vocab_size: types of the shared vocabulary; "symbols" takes all it finds, up to this many.
        path: folder or Hub id of an existing tokenizer, used instead of training one.
    """

    kind: Literal["bpe", "symbols"] = "bpe"
    vocab_size: int = 37000
    path: str | None = None


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> "VanillaTransformerTokenizer":
    """Train a tokenizer on both sides of a corpus.

    Returns:
        A tokenizer that `AutoTokenizer.from_pretrained` opens from what its `save_pretrained` writes, without this
        package. Ids: `<pad>` 0, `<s>` 1, `</s>` 2, and for symbols `<unk>` 3. Source and target end with `</s>`.
        BPE returns any text unchanged; symbols come back separated by single spaces. In a text "</s>" and the like
        are text, to symbols `<unk>`; tokens of `add_special_tokens` and `add_tokens` are found in it.

    Raises:
        ValueError: a vocabulary too small for the bytes, or for the symbols; a symbol that is a special token.
    """
    from tokenizers import processors

    from vanilla_transformer.data.tokenizer_class import VanillaTransformerTokenizer

    backend = _train_bpe(texts, config) if config.kind == "bpe" else _collect_symbols(texts, config)
    end = (END, backend.token_to_id(END))
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[end]
    )
    return VanillaTransformerTokenizer(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN if config.kind == "symbols" else None,
        padding_side="right",
        split_special_tokens=True,  # "</s>" in a user's text is text
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _train_bpe(texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [PAD, START, END]
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
    backend.train_from_iterator((text[:LEARNT_CHARACTERS] for text in texts), trainer)
    if backend.get_vocab_size() < config.vocab_size:
        logger.warning(
            "the corpus gives a vocabulary of %d, fewer than tokenizer.vocab_size=%d",
            backend.get_vocab_size(),
            config.vocab_size,
        )
    return backend


def _collect_symbols(texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    special = [PAD, START, END, UNKNOWN]
    backend = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The trainer would leave out the rarest without a word, so it takes all; it sorts by frequency, then alphabet.
    trainer = trainers.WordLevelTrainer(vocab_size=sys.maxsize, special_tokens=special, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    for index, token in enumerate(special):
        if backend.get_vocab(with_added_tokens=False)[token] != index:  # a symbol of that name has overwritten it
            raise ValueError(f"the corpus has the symbol {token!r}, which is a special token; rename it in the corpus")
    if backend.get_vocab_size() > config.vocab_size:
        raise ValueError(
            f"the corpus has {backend.get_vocab_size() - len(special)} symbols, which with {len(special)} special "
            f"tokens exceed tokenizer.vocab_size={config.vocab_size}; raise it, or use tokenizer.kind=bpe for text"
        )
    # The vocabulary has them, so "</s>" in a text would be the end: without its first character it is unknown. Only
    # now, for the training has to find them; and not before added tokens are found, which may stand beside them.
    names = "|".join(re.escape(token.removeprefix("<")) for token in (PAD, START, END))
    unnamed = pre_tokenizers.Split(Regex(f"^<(?=(?:{names})$)"), "removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), unnamed])
    return backend


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a model folder or Hub id.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its files are damaged.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer: tokenizer.json is missing")
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)  # or it would ask, and run code after a yes
    except OSError as error:
        raise FileNotFoundError(f"cannot open the tokenizer {path}: {' '.join(str(error).split())}") from error
    except Exception as error:  # tokenizers raises a bare Exception for a damaged tokenizer.json
        raise ValueError(f"the tokenizer in {path} is damaged: {' '.join(str(error).split())}") from error
