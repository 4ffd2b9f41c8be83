# SPDX-License-Identifier: Apache-2.0
"""A trained model, opened once to translate whatever comes."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.data.corpus import BYTE_ORDER_MARK
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import default_device, load_model_folder
from vanilla_transformer.inference.native.engine import Engine
from vanilla_transformer.inference.native.transformer import NativeDecoder
from vanilla_transformer.inference.translate import Translation, fast_decoder, translate_stream
from vanilla_transformer.packed_linear import PRECISIONS, Precision, quantize_linears
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration


def _without_marks(lines: Iterable[str]) -> Iterator[str]:
    """Lines of an open file without their line ends, and without a byte order mark at its start."""
    mark = BYTE_ORDER_MARK
    for line in lines:
        yield line.removeprefix(mark).removesuffix("\n") if isinstance(line, str) else line
        mark = ""


class Translator:
    """Lines in, translations out, by the paper's beam search: `Translator.from_pretrained(folder).translate(lines)`.

    `model`, `tokenizer` and `decoder` are what `translate_lines` takes. The decoder is laid out once: later changes of
    the model's weights have no effect.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoder: Any):
        self.model, self.tokenizer, self.decoder = model, tokenizer, decoder

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        precision: Precision = "float32",
        device: torch.device | str | None = None,
        engine: Engine = "auto",
    ) -> "Translator":
        """Open a model folder or Hub id; code in it is not executed.

        Args:
            precision: in which is computed. "bfloat16" has half of the memory. "int8" quantizes the linear maps of
                encoder and decoder, and is for the models of this package on a CPU.
            device: `None`: the accelerator that torch finds, or the CPU; for int8 the CPU.
            engine: "native": loops compiled once for this machine, which decode a Transformer on a CPU in float32 or
                int8 several times faster than "torch", PyTorch's operations; "auto": native where that is possible.

        Raises:
            FileNotFoundError, ValueError: as `load_model_folder` and `load_tokenizer`; an unknown precision; int8 for
                another kind of model, or elsewhere than on a CPU; engine "native" where it cannot decode.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
        is_int8 = precision == "int8"
        if device is None:
            device = "cpu" if is_int8 else default_device()
        model = load_model_folder(path, torch.device(device))
        model.to(dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)  # pyright: ignore[reportCallIssue] -- transformers' wrapper hides the keyword
        if is_int8 and not isinstance(model, BaseForConditionalGeneration):
            raise ValueError(
                f"precision='int8' is for models of this package; {path} has model_type={model.config.model_type!r}: "
                "use bfloat16"
            )
        decoder = fast_decoder(model, precision, engine)
        if is_int8 and not isinstance(decoder, NativeDecoder):
            quantize_linears(model.get_encoder())
        return cls(model, load_tokenizer(path), decoder)

    @property
    def engine(self) -> Engine:
        """What decodes, "native" or "torch"."""
        return "native" if isinstance(self.decoder, NativeDecoder) else "torch"

    def translate(self, lines: Iterable[str], **options) -> list[str]:
        """The translation of every line, in order; an empty line stays empty.

        Args:
            lines: a list, a generator, an open file, …
            options: as for `n_best`.
        """
        return list(self.stream(lines, **options))

    def stream(self, lines: Iterable[str], **options) -> Iterator[str]:
        """As `translate`, but as it goes: a window of lines is read when its first translation is asked for."""
        return (best[0].text for best in self.n_best(lines, 1, **options))

    def n_best(
        self,
        lines: Iterable[str],
        count: int,
        *,
        num_beams: int | None = None,
        alpha: float | None = None,
        max_batch_tokens: int = 8192,
        **options,
    ) -> Iterator[list[Translation]]:
        """For every line, in order, its `count` best translations with their scores, best first.

        There are fewer where no more are possible. One beam is greedy decoding, without scores.

        Args:
            count: at most `num_beams`.
            num_beams: beam width; `None`: the model's own.
            alpha: of the paper's length penalty; `None`: the model's own.
            max_batch_tokens: as for `translate_lines`.
            options: as for `translate_stream`: `window`, `max_length`, and what `model.generate` takes.

        Raises:
            ValueError: one string instead of lines; and as `translate_lines`, while the translations are taken.
        """
        if isinstance(lines, str):
            raise ValueError("lines must be an iterable of strings; one string was given: put it into a list")
        given = {"num_beams": num_beams, "alpha": alpha}
        return translate_stream(
            self.model,
            self.tokenizer,
            _without_marks(lines),
            decoder=self.decoder,
            num_return_sequences=count,
            max_batch_tokens=max_batch_tokens,
            **{name: value for name, value in given.items() if value is not None},
            **options,
        )
