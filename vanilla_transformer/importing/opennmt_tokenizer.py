# SPDX-License-Identifier: Apache-2.0
"""The vocabularies of OpenNMT-py and eole, and the subword models that their transforms name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vanilla_transformer.data.sentencepiece_tokenizer import read_sentencepiece, sentencepiece_tokenizer
from vanilla_transformer.data.special_tokens import SpecialTokens
from vanilla_transformer.data.tokenizer_class import with_target
from vanilla_transformer.importing.word_tokenizer import CODES, read_codes, subword_tokenizer, words_tokenizer

SUBWORDS = ("sentencepiece", "bpe")  # transforms with a model
ONLY_IN_TRAINING = {"filtertoolong", "filterfeats", "switchout", "tokendrop", "tokenmask", "bart", "uppercase"}


def read_vocabularies(vocab: dict[str, Any], origin: str) -> tuple[list[str], list[str]]:
    """Tokens of source and target by id; one list if they are the same."""
    for side in ("src", "tgt"):
        tokens = vocab.get(side)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError(f"{origin} has no list of tokens {side!r} in its vocabulary")
        if len(set(tokens)) < len(tokens):
            raise ValueError(f"{origin} has a token twice in its vocabulary {side!r}")
    source, target = vocab["src"], vocab["tgt"]
    return source, source if source == target else target


def read_special_tokens(
    vocab: dict[str, Any], source: list[str], target: list[str], origin: str
) -> tuple[SpecialTokens, SpecialTokens]:
    """Names in the vocabulary of the source, where nothing stands around a text, and in that of the target.

    Raises:
        ValueError: the target lacks a name; a token has two ids.
    """
    saved = vocab.get("specials") or {}  # eole's since version 0.1
    defaults = {"pad": "<blank>", "unk": "<unk>", "bos": "<s>", "eos": "</s>"}
    of_target = SpecialTokens(**{name: saved.get(f"{name}_token") or token for name, token in defaults.items()})  # pyright: ignore[reportArgumentType] -- all are strings
    if of_target.bos not in target:
        of_target = replace(of_target, bos=None)
    # OpenNMT-py 2 has no tokens for the ends of a sentence in the vocabulary of the source.
    ends = {name: token if (token := getattr(of_target, name)) in source else None for name in ("bos", "eos")}
    of_source = replace(of_target, **ends, appends_eos=False)
    of_source.check(source, origin)
    of_target.check(target, origin)
    for name in of_source.names():
        places = source.index(name), target.index(name)
        if places[0] != places[1]:
            raise ValueError(f"{origin} has {name!r} as token {places[0]} of its source and {places[1]} of its target")
    return of_source, of_target


def read_tokenizer(
    folder: Path,
    origin: str,
    options: dict[str, Any],
    vocabularies: Sequence[list[str]],
    special: Sequence[SpecialTokens],
) -> tuple[Any, str]:
    """The source's tokenizer with the target's, and a note on the texts that they expect.

    They come from the subword models that the transforms name, or from those that lie in `folder`; without any, they
    are of whole words.

    Raises:
        FileNotFoundError: a subword model that the transforms name.
        ValueError: several in the folder, and no transform that says which.
    """
    data = options.get("data")
    corpora = data.values() if isinstance(data, dict) else []
    named = [options, *(corpus for corpus in corpora if isinstance(corpus, dict))]
    transforms = list(dict.fromkeys(name for place in named for name in place.get("transforms") or []))
    kind = next((name for name in SUBWORDS if name in transforms), None)
    if kind is not None:
        paths = [options.get(f"{side}_subword_model") or options.get("src_subword_model") for side in ("src", "tgt")]
        files = [_find(folder, path, origin) for path in paths]
    else:
        kind, files = _beside(folder)
    others = ", ".join(name for name in transforms if name not in {*SUBWORDS, *ONLY_IN_TRAINING})
    notes = [f"Its transforms {others} are yours to apply."] if others else []
    pairs = list(zip(vocabularies, special, strict=True))
    both = zip(files, pairs, strict=False)  # files are none, or two
    if kind == "sentencepiece":
        made = [sentencepiece_tokenizer(read_sentencepiece(file), *pair) for file, pair in both]
    elif kind == "bpe":
        made = [subword_tokenizer(read_codes(file), *pair) for file, pair in both]
        notes.append("Its texts are words and punctuation separated by spaces, as before subword-nmt's BPE.")
    else:
        made = [words_tokenizer(*pair) for pair in pairs]
        notes.append("Its texts are tokens separated by spaces, exactly as in the source's vocabulary.")
    return with_target(made[0], made[1]), " ".join(notes)


def _find(folder: Path, path: Any, origin: str) -> Path:
    """The subword model beside the checkpoint, or where it was in training."""
    found = [file for file in (folder / Path(str(path)).name, Path(str(path))) if file.is_file()]
    if not found:
        raise FileNotFoundError(f"{origin} names the subword model {path}; put it into {folder}")
    return found[0]


def _beside(folder: Path) -> tuple[str | None, list[Path]]:
    """The kind of the subword models in a folder, and those of source and target."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    spm = [file for file in files if file.suffix in (".model", ".spm")]
    codes = [file for file in files if file.name in CODES]
    for kind, found in (("sentencepiece", spm), ("bpe", codes)):
        if len(found) == 1:
            return kind, found * 2
        if found:
            sides = [
                [file for file in found if file.name.startswith(names)]
                for names in (("source", "src"), ("target", "tgt"))
            ]
            if len(sides[0]) != 1 or len(sides[1]) != 1:
                names = ", ".join(file.name for file in found)
                raise ValueError(f"{folder} has {names}; leave one, or name them source.model and target.model")
            return kind, [sides[0][0], sides[1][0]]
    return None, []
