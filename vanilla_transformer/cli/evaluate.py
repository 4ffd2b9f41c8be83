# SPDX-License-Identifier: Apache-2.0
"""Score a model, or given translations, against references: BLEU and chrF with sacreBLEU's signatures.

    vanilla-transformer evaluate runs/multi30k/model --source test.en --reference test.de
    vanilla-transformer evaluate --hypothesis test.hyp --reference test.de
"""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from vanilla_transformer.cli.translate import positive

    parser.add_argument("model", nargs="?", help="model folder or Hub id")
    parser.add_argument("--source", help="text file to translate")
    parser.add_argument("--hypothesis", help="finished translations, instead of a model and a source")
    parser.add_argument("--reference", required=True, help="reference translations")
    parser.add_argument("--output", help="write the translations to this file")
    parser.add_argument("--lowercase", action="store_true", help="also score without case")
    parser.add_argument("--beams", type=positive, metavar="N", help="beam width (default: the model's own)")
    parser.add_argument("--batch-tokens", type=positive, default=8192, metavar="N", help="source tokens x beams at once")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    if (arguments.hypothesis is None) == (arguments.model is None or arguments.source is None):
        raise ValueError("give either MODEL and --source, or --hypothesis")

    import json
    from pathlib import Path

    from vanilla_transformer.data.corpus import read_lines
    from vanilla_transformer.evaluation.translation_quality import score_translations

    references = list(read_lines(arguments.reference))
    if arguments.hypothesis is not None:
        hypotheses = list(read_lines(arguments.hypothesis))
    else:
        sources = list(read_lines(arguments.source))
        if len(sources) != len(references):
            raise ValueError(
                f"{arguments.source} has {len(sources)} lines, {arguments.reference} has {len(references)}; "
                "line i of one must be the translation of line i of the other"
            )
        hypotheses = _translate(arguments, sources)
    if arguments.output is not None:
        Path(arguments.output).write_text("".join(line.replace("\n", " ") + "\n" for line in hypotheses), encoding="utf-8")
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

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.evaluation.model_folder import load_model_folder
    from vanilla_transformer.evaluation.translate import translate_lines

    model, tokenizer = load_model_folder(arguments.model), load_tokenizer(arguments.model)
    generate_kwargs = {"num_beams": arguments.beams} if arguments.beams else {}
    with tqdm(total=len(sources), unit=" lines", file=sys.stderr) as bar:
        translations = translate_lines(
            model,
            tokenizer,
            sources,
            max_batch_tokens=arguments.batch_tokens,
            on_progress=lambda done, total: bar.update(done - bar.n),
            **generate_kwargs,
        )
    return [best[0].text for best in translations]
