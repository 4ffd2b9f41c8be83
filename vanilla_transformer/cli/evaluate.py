# SPDX-License-Identifier: Apache-2.0
"""Score a model, or given translations, against references: BLEU and chrF with sacreBLEU's signatures.

A model translates by the paper's beam search.

    vanilla-transformer evaluate runs/multi30k/model --source test.en --reference test.de
    vanilla-transformer evaluate runs/multi30k/model runs/multi30k_rnn/model --source test.en --reference test.de
    vanilla-transformer evaluate --hypothesis test.hyp --reference test.de
    vanilla-transformer evaluate --hypothesis test.hyp --reference first.de --reference second.de

Several processes share the work: torchrun --nproc_per_node 2 -m vanilla_transformer.cli evaluate MODEL --source …
"""

import argparse
import sys

from vanilla_transformer.cli.decoding_options import (
    add_decoding_arguments,
    add_model_arguments,
    add_shortlist_argument,
    decoding_options,
    open_models,
)
from vanilla_transformer.cli.translate import one_line
from vanilla_transformer.console.arguments import UsageError
from vanilla_transformer.console.outputs import check_output_file

EXTRA, NEEDS = "training", ("accelerate", "datasets", "sacrebleu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, nargs="*")
    parser.add_argument("--source", help="text file to translate")
    parser.add_argument("--hypothesis", help="finished translations, instead of a model and a source")
    parser.add_argument(
        "--reference", required=True, action="append", metavar="FILE", help="reference translations; may be repeated"
    )
    parser.add_argument("--output", help="write the translations to this file")
    parser.add_argument("--lowercase", action="store_true", help="also score without case")
    _add_translating_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_translating_arguments(parser: argparse.ArgumentParser) -> None:
    add_decoding_arguments(parser)
    add_shortlist_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    given = {name for name in ("model", "source", "hypothesis") if getattr(arguments, name)}
    if given not in ({"model", "source"}, {"hypothesis"}):
        raise UsageError("give either MODEL and --source, or --hypothesis")
    if arguments.hypothesis is not None:
        add_model_arguments(unused := argparse.ArgumentParser(), nargs="*")
        _add_translating_arguments(unused)
        for name, default in vars(unused.parse_args([])).items():
            if getattr(arguments, name) != default:
                raise UsageError(f"--{name.replace('_', '-')} is for a model: leave it out with --hypothesis")
    if arguments.output is not None:
        check_output_file(arguments.output, "--output")

    import json
    from pathlib import Path

    from vanilla_transformer.data.corpus import aligned_lines
    from vanilla_transformer.distributed.processes import process_state
    from vanilla_transformer.evaluation.translation_quality import score_translations

    file = arguments.source if arguments.hypothesis is None else arguments.hypothesis
    rows = list(aligned_lines(file, *arguments.reference))
    if not rows:
        raise ValueError(f"{file} and {', '.join(arguments.reference)} are empty: nothing to score")
    lines, references = [row[0] for row in rows], [row[1:] for row in rows]
    hypotheses = _translate(arguments, lines) if arguments.hypothesis is None else lines
    if not process_state().is_main_process:
        return 0
    if arguments.output is not None:
        Path(arguments.output).write_text("".join(f"{one_line(line)}\n" for line in hypotheses), "utf-8", newline="\n")
    scores = {"cased": score_translations(hypotheses, references)}
    if arguments.lowercase:
        scores["lowercased"] = score_translations(hypotheses, references, lowercase=True)
    if arguments.json:
        print(json.dumps(scores, indent=2))
        return 0
    for case, score in scores.items():
        print(f"{case}: BLEU {score['bleu']:.2f} ({score['bleu_signature']})")
        print(f"{case}: chrF {score['chrf']:.2f} ({score['chrf_signature']})")
    return 0


def _translate(arguments: argparse.Namespace, sources: list[str]) -> list[str]:
    from tqdm import tqdm

    from vanilla_transformer.distributed.processes import process_state
    from vanilla_transformer.inference.translate import translate_on_all_processes

    state = process_state()
    translator = open_models(arguments, state.device)
    with tqdm(unit=" lines", file=sys.stderr, disable=not state.is_main_process) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total  # of this process's share
            bar.update(done - bar.n)

        translations = translate_on_all_processes(
            translator.model,
            translator.tokenizer,
            sources,
            decoder=translator.decoder,
            on_progress=show,
            **decoding_options(arguments),
        )
    return [best[0].text for best in translations]
