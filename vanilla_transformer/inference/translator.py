# SPDX-License-Identifier: Apache-2.0
"""A trained model, opened once to translate whatever comes."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.data.alignment import Link
from vanilla_transformer.data.corpus import BYTE_ORDER_MARK
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER
from vanilla_transformer.decoder import Decoder
from vanilla_transformer.ensemble import EnsembleDecoder, Mean, check_members
from vanilla_transformer.inference.alignment import align
from vanilla_transformer.inference.model_folder import default_device, load_model_folder
from vanilla_transformer.inference.native.engine import Engine, fast_decoder, is_native
from vanilla_transformer.inference.shortlist import ShortlistDecoder, read_shortlist
from vanilla_transformer.inference.translate import Translation, translate_lines, translate_windows
from vanilla_transformer.packed_linear import Precision
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration


def _stripped(lines: Iterable[str]) -> Iterator[str]:
    """Lines, as of an open file, without their line ends and without a byte order mark at the start."""
    mark = BYTE_ORDER_MARK
    for line in lines:
        yield line.removeprefix(mark).removesuffix("\n") if isinstance(line, str) else line
        mark = ""


class Translator:
    """Lines in, translations out, by the paper's beam search: `Translator.from_pretrained(folder).translate(lines)`.

    The arguments are as for `translate_lines`. The decoder is built once: later changes of the model's weights have no
    effect.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoder: Decoder):
        self.model, self.tokenizer, self.decoder = model, tokenizer, decoder

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        precision: Precision = "float32",
        device: torch.device | str | None = None,
        engine: Engine = "auto",
        shortlist: str | Path | None = None,
    ) -> "Translator":
        """Open a model folder or Hub id; code in it is not executed.

        Args:
            precision: the linear maps'. "bfloat16" takes half of the memory. "int8" quantizes the linear maps of
                encoder and decoder, for the models of this package on a CPU.
            device: `None`: the accelerator that torch finds, or the CPU; for int8 the CPU.
            engine: "native": kernels compiled once for this machine, which decode on a CPU and are faster
                than "torch", PyTorch's operations; "auto": native where that is possible.
            shortlist: a lexical table, whose tokens alone a translation may have, as `Shortlist` says; `None`: it may
                have all.

        Raises:
            FileNotFoundError, ValueError: as `load_model_folder` and `load_tokenizer`; two vocabularies and one
                tokenizer; an unknown precision; int8 for another kind of model, or elsewhere than on a CPU; engine
                "native" where it cannot decode; a shortlist that `read_shortlist` refuses.
        """
        if device is None:
            device = "cpu" if precision == "int8" else default_device()
        model = load_model_folder(path, torch.device(device))
        model.to(dtype=torch.float32)  # pyright: ignore[reportCallIssue] -- transformers' wrapper hides the keyword
        if precision == "bfloat16" and not is_native(model, engine):
            model.to(dtype=torch.bfloat16)  # pyright: ignore[reportCallIssue] -- as above
        tokenizer = load_tokenizer(path)
        own = model.config.decoder_vocab_size if isinstance(model, BaseForConditionalGeneration) else None
        if own is not None and getattr(tokenizer, TARGET_TOKENIZER, None) is None:
            raise ValueError(
                f"{path} has decoder_vocab_size={own}, a vocabulary of the target's own, but no {TARGET_TOKENIZER}/ "
                "that decodes it: add the folder, set null if the target has the source's vocabulary, or import again"
            )
        table = None if shortlist is None else read_shortlist(shortlist, model, tokenizer)
        decoder = fast_decoder(model, precision, engine)
        return cls(model, tokenizer, decoder if table is None else ShortlistDecoder(decoder, table))

    @classmethod
    def ensemble(
        cls,
        paths: Sequence[str | Path],
        precision: Precision = "float32",
        device: torch.device | str | None = None,
        engine: Engine = "auto",
        *,
        weights: Sequence[float] | None = None,
        mean: Mean = "probabilities",
    ) -> "Translator":
        """Several model folders with one vocabulary that decode together, Transformers and RNNs in any mixture.

        The first one's generation config decides how to search. One path is that model, exactly.

        Args:
            weights, mean: as for `EnsembleDecoder`.
            precision, device, engine: of every member, as for `from_pretrained`.

        Raises:
            FileNotFoundError, ValueError: as `from_pretrained` and `EnsembleDecoder`; models of other packages, or with
                different vocabularies.
        """
        members = [cls.from_pretrained(path, precision, device, engine) for path in paths]
        decoder = EnsembleDecoder([member.decoder for member in members], weights, mean)
        first = members[0]
        if len(members) > 1:
            for path, member in zip(paths, members, strict=True):
                if not isinstance(member.model, BaseForConditionalGeneration):
                    raise ValueError(
                        f"{path} has model_type={member.model.config.model_type!r}: an ensemble needs ours"
                    )
                if member._vocabularies() != first._vocabularies():
                    raise ValueError(f"{path} has another vocabulary than {paths[0]}: members of an ensemble share one")
            check_members([member.model for member in members])
        return cls(first.model, first.tokenizer, decoder)

    def _vocabularies(self) -> list[dict[str, int]]:
        target = getattr(self.tokenizer, TARGET_TOKENIZER, None) or self.tokenizer
        return [self.tokenizer.get_vocab(), target.get_vocab()]

    @property
    def engine(self) -> str:
        """The engine that decodes, "native" or "torch"."""
        return self.decoder.engine

    def translate(self, lines: Iterable[str], **options) -> list[str]:
        """The translation of every line of a list, generator, open file, …, in order; `options` as for `n_best`."""
        return list(self.stream(lines, **options))

    def stream(self, lines: Iterable[str], **options) -> Iterator[str]:
        """As `translate`, but lazily: a window of lines is read when its first translation is asked for."""
        return (best[0].text for best in self.n_best(lines, 1, **options))

    def align(self, sources: Sequence[str], targets: Sequence[str], **options: Any) -> list[list[Link]]:
        """The links between the words of each line and of its given translation, from 0, sorted.

        Args:
            options: `tag` and `target_language`, as for `translate_lines`.

        Raises:
            ValueError: lines without a translation, or translations without a line; and as `alignment.align`.
        """
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources):,} sources and {len(targets):,} targets: give one target for each source")
        return [links for [links] in align(self.model, self.tokenizer, sources, targets, **options)]

    def n_best(
        self,
        lines: Iterable[str],
        count: int,
        *,
        num_beams: int | None = None,
        alpha: float | None = None,
        coverage_penalty: float | None = None,
        max_batch_tokens: int = 8192,
        window: int = 2048,
        **options,
    ) -> Iterator[list[Translation]]:
        """For every line, in order, its `count` best translations with their scores, best first.

        There are fewer where fewer are possible. One beam is greedy decoding, without scores.

        Args:
            count: at most `num_beams`.
            num_beams: beam width; `None`: the model's own.
            alpha: of the paper's length penalty; `None`: the model's own penalty (see `length_penalty_rule`).
            coverage_penalty: beta of Wu et al. (2016), which favours translations that attend to the whole source;
                `None`: none.
            max_batch_tokens: as for `translate_lines`.
            window: lines that are read, and sorted by length, together.
            options: as for `translate_lines`: `max_length`, `prefixes`, `constraints`, `split_sentences`, `alignments`,
                and what `model.generate` takes.

        Raises:
            ValueError: one string instead of lines; `window` below 1; and as `translate_windows`, while the
                translations are taken.
        """
        if isinstance(lines, str):
            raise ValueError("lines must be an iterable of strings; one string was given: put it into a list")
        if window < 1:
            raise ValueError(f"window={window} must be at least 1 line")
        lines = _stripped(lines)
        given = {"num_beams": num_beams, "alpha": alpha, "coverage_penalty": coverage_penalty}
        return translate_windows(
            self.model,
            self.tokenizer,
            iter(lambda: list(islice(lines, window)), []),
            decoder=self.decoder,
            num_return_sequences=count,
            max_batch_tokens=max_batch_tokens,
            **{name: value for name, value in given.items() if value is not None},
            **options,
        )

    def score(
        self, pairs: Iterable[tuple[str, str]], *, max_batch_tokens: int = 8192, window: int = 2048, **options
    ) -> Iterator[Translation]:
        """For every (source, target), in order, the target with its score, tokens and their log-probabilities.

        The score is the one that `n_best` gives to this target; a blank pair has none, and no tokens.

        Args:
            max_batch_tokens: tokens of both sides at once.
            options: as for `translate_lines`: `alpha`, 0 for sums of log-probabilities, `tag`, `best_log_probs`, …

        Raises:
            ValueError: `window` below 1; and as `translate_lines`, while the scores are taken.
        """
        if window < 1:
            raise ValueError(f"window={window} must be at least 1 pair")
        pairs, own = iter(pairs), options | {"max_batch_tokens": max_batch_tokens, "decoder": self.decoder}
        for start in count(1, window):
            sides = list(zip(*islice(pairs, window), strict=True))
            if not sides:
                return
            scored = translate_lines(self.model, self.tokenizer, sides[0], targets=sides[1], first_line=start, **own)
            yield from (translation for [translation] in scored)
