# SPDX-License-Identifier: Apache-2.0
"""Translate standard input line by line.

    vanilla-transformer translate runs/multi30k/model < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --n-best 4 < test.en

One line in, one line out, in order; an empty line stays empty. With --n-best N, N lines of
"line number <tab> score <tab> translation" for each line.
"""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id")
    parser.add_argument("--beams", type=positive, metavar="N", help="beam width (default: the model's own)")
    parser.add_argument("--n-best", type=positive, metavar="N", help="print the N best translations with scores")
    parser.add_argument("--batch-tokens", type=positive, default=8192, metavar="N", help="source tokens x beams at once")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    import io

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.evaluation.model_folder import load_model_folder
    from vanilla_transformer.evaluation.translate import translate_stream

    model = load_model_folder(arguments.model)
    tokenizer = load_tokenizer(arguments.model)
    n_best = arguments.n_best or 1
    generate_kwargs = {"num_beams": arguments.beams} if arguments.beams else {}
    beams = arguments.beams or model.generation_config.num_beams or 1
    if n_best > beams:
        raise ValueError(f"--n-best {n_best} needs at least as many beams: add --beams {n_best}")
    # One line is one "\n": U+2028 or a carriage return inside a sentence must not make two lines of it.
    lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="\n")
    output = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="\n", write_through=True)
    translations = translate_stream(
        model,
        tokenizer,
        (line.rstrip("\n") for line in lines),
        max_batch_tokens=arguments.batch_tokens,
        num_return_sequences=n_best,
        **generate_kwargs,
    )
    done = 0
    for done, best in enumerate(translations, start=1):
        if arguments.n_best:
            output.writelines(f"{done}\t{one.score:.4f}\t{_one_line(one.text)}\n" for one in best)
        else:
            output.write(_one_line(best[0].text) + "\n")
        if not arguments.quiet and done % 100 == 0:
            print(f"\r{done} lines", end="", file=sys.stderr, flush=True)
    output.flush()
    if not arguments.quiet:
        print(f"\r{done} lines", file=sys.stderr)
    output.detach()
    return 0


def _one_line(text: str) -> str:
    """A model may produce a line feed; the output keeps one line for each input line."""
    return text.replace("\n", " ")
