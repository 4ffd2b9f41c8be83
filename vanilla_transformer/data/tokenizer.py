# SPDX-License-Identifier: Apache-2.0
"""Section 5.1 of the paper: one vocabulary of sub-words that source and target share."""

import json
import logging
import re
import sys
from collections import Counter
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
# BPE and unigram are trained on at most the beginning of a line: they take minutes for one unbroken megabyte.
MAX_LINE_LENGTH = 10_000  # characters
SENTENCEPIECE = (".model", ".spm")  # how the names of its models end

logger = logging.getLogger(__name__)


@strict
@dataclass(kw_only=True)
class TokenizerConfig:
    """How text becomes tokens.

    Args:
        kind: "bpe": byte-level byte-pair encoding, in which no text has unknown tokens. "unigram": the pieces of a
            unigram model (Kudo 2018) over bytes, likewise. "char": characters, and bytes for those that the vocabulary
            lacks. "symbols": for data that is tokens separated by white space already (phonemes, SCAN, numbers).
        shared: one vocabulary for both sides, as in the paper; `False`: source and target have one each, and their
            embeddings are two matrices. `None`, of fine-tuning: as `path` has it.
        vocab_size: size of the shared vocabulary, or of each; "symbols" takes all symbols of the corpus, up to this
            number, and "char" the most frequent characters.
        max_training_lines: lines, of both sides, that a tokenizer is trained on: of a longer corpus a random part, the
            same every time. "symbols" reads all.
        path: folder or Hub id of an existing tokenizer, or a SentencePiece model (.model, .spm) of type BPE or unigram,
            which is used instead of training one.
        target_path: the same for the target, with `shared=False`; a folder at `path` may have both.
        add_tokens: more tokens of the vocabulary, or of both, such as a language's tag "<2fr>": never split.

    Raises:
        ValueError: max_training_lines is less than 2, a pair; fields that do not go together; tokens that are no words.
    """

    kind: Literal["bpe", "unigram", "char", "symbols"] = "bpe"
    shared: bool | None = True
    vocab_size: int = 37000
    max_training_lines: int = 10_000_000
    path: str | None = None
    target_path: str | None = None
    add_tokens: list[str] | None = None

    def __post_init__(self):
        if self.max_training_lines < 2:
            raise ValueError(f"max_training_lines={self.max_training_lines} must be at least 2")
        if self.target_path is not None and (self.path is None or self.shared):
            raise ValueError(
                f"tokenizer.target_path={self.target_path} is the target's beside that of the source: give "
                "tokenizer.path too, and tokenizer.shared=false"
            )
        if self.shared is None and self.path is None:
            raise ValueError("tokenizer.shared=null is as tokenizer.path has it; give tokenizer.path, or true or false")
        check_tokens(self.add_tokens)


def check_tokens(tokens: list[str] | None) -> None:
    """Raise ValueError unless `tokenizer.add_tokens` are different words."""
    if tokens is not None and (len(set(tokens)) < len(tokens) or any(token.split() != [token] for token in tokens)):
        raise ValueError(f"tokenizer.add_tokens={tokens} must be different tokens, without white space")


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> "VanillaTransformerTokenizer":
    """Train a tokenizer on the lines of one side of a corpus, or of both.

    Source and target end with `</s>`. Special tokens in a text are text, for symbols `<unk>`; tokens of
    `add_special_tokens` and `add_tokens` are found in it. All kinds decode to the text as it was, but symbols to
    symbols separated by single spaces.

    Returns:
        A tokenizer whose saved folder `AutoTokenizer.from_pretrained` opens without this package. Ids: `<pad>` 0,
        `<s>` 1, `</s>` 2, and for symbols `<unk>` 3.

    Raises:
        ValueError: a vocabulary too small for the bytes, or for the symbols; a symbol that is a special token.
    """
    from tokenizers import processors

    from vanilla_transformer.data.tokenizer_class import VanillaTransformerTokenizer

    train = {"bpe": _train_subwords, "unigram": _train_subwords, "char": _collect_characters}
    backend = train.get(config.kind, _collect_symbols)(texts, config)
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


def _train_subwords(texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
    """BPE or a unigram model over bytes, which GPT-2's pattern has cut into words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = _special_beside_bytes(config)
    backend = Tokenizer(models.BPE() if config.kind == "bpe" else models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = (trainers.BpeTrainer if config.kind == "bpe" else trainers.UnigramTrainer)(
        vocab_size=config.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((text[:MAX_LINE_LENGTH] for text in texts), trainer)
    if (size := backend.get_vocab_size()) < config.vocab_size:
        logger.warning(f"the corpus gives a vocabulary of {size}, fewer than tokenizer.vocab_size={config.vocab_size}")
    return backend


def _special_beside_bytes(config: TokenizerConfig) -> list[str]:
    special = [PAD, BOS, EOS]
    if config.vocab_size < BYTES + len(special):
        raise ValueError(
            f"tokenizer.vocab_size={config.vocab_size} must be at least {BYTES + len(special)}: "
            f"{BYTES} bytes and {len(special)} special tokens"
        )
    return special


def _collect_characters(texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
    """Byte-pair encoding without any pair: a character that the vocabulary lacks is its bytes in UTF-8."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    special = _special_beside_bytes(config)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    characters = sorted(counts, key=lambda character: (-counts[character], character))
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(BYTES)), *characters][: config.vocab_size]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
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


def open_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """`load_tokenizer`, which also takes a SentencePiece model.

    Raises:
        FileNotFoundError, ValueError: as `load_tokenizer` and `open_sentencepiece`.
    """
    from vanilla_transformer.data.sentencepiece_tokenizer import open_sentencepiece

    return open_sentencepiece(Path(path)) if str(path).endswith(SENTENCEPIECE) else load_tokenizer(path)


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
