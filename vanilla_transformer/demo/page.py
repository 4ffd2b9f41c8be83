# SPDX-License-Identifier: Apache-2.0
"""The page, as Gradio builds and serves it."""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from threading import Lock
from typing import Any

import gradio as gr
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from vanilla_transformer.demo.shown_model import Answer, ShownModel, one_line
from vanilla_transformer.visualization.attention_maps import plot_attention_maps
from vanilla_transformer.visualization.layer_attention import AttentionWeights, select_layers

TITLE = "Attention Is All You Need: try it"
INTRODUCTION = """\
Type a sentence and see its translations, best first, and what the model attended to while it wrote the best one.
A *score* is the log-probability over the length penalty: nearer to 0 is better.
"""
MAX_CONCURRENT, MAX_QUEUED = 4, 64  # visitors
CACHE_SECONDS = 3600  # for which Gradio keeps the files of pictures
MAX_UNKNOWN_WORDS = 5  # in an answer
STYLE = """
.gradio-container {max-width: 1240px !important; margin: auto}
.model {border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); padding: 16px}
.answer h3 {margin: 0; font-size: 1.2em; font-weight: 600}
.answer .path, .answer .time {margin: 0; opacity: .75; font-size: .9em; overflow-wrap: anywhere}
.answer .best {margin: 12px 0; font-size: 1.5em; line-height: 1.3}
.answer .best, .answer .text {overflow-wrap: anywhere; white-space: pre-wrap; word-spacing: .12em}
.answer table {width: 100%; border-collapse: collapse; margin: 0 0 10px}
.answer th {text-align: left; font-weight: 600}
.answer th, .answer td {padding: 5px 10px 5px 0; vertical-align: top}
.answer td {border-top: 1px solid var(--border-color-primary)}
.answer td.text {width: 99%}
.answer .score {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: 0}
.answer .note, .notice {border-left: 4px solid #d9822b; padding: 4px 10px; margin: 8px 0; overflow-wrap: anywhere}
"""

_drawing = Lock()  # matplotlib is not thread-safe


class Panel:
    """One model's part of the page: its answer, a choice of views of its attention, and the picture."""

    def __init__(self, model: ShownModel):
        self.model = model
        with gr.Column(min_width=320, elem_classes="model") as self.column, gr.Row():
            with gr.Column(min_width=320):
                # Gradio inserts `value` into its template unescaped, and evaluates templates as JavaScript. Hence no
                # template of our own, and every text is escaped here.
                self.answer = gr.HTML(_answer(model, ""), elem_classes="answer", apply_default_css=False)
            with gr.Column(min_width=320, visible=bool(model.views)):
                with gr.Row():
                    self.view = _choice(list(model.views), "Attention", scale=3)
                    self.heads = _choice(list(model.heads), "Heads", scale=2)
                self.picture = gr.Image(
                    show_label=False, interactive=False, format="png", type="pil", buttons=["fullscreen", "download"],
                    alt_text=f"Attention of {model.kind}: a row for each token that attends",
                )  # fmt: skip
        self.attention = gr.State()
        gr.on(
            [self.view.change, self.heads.change],
            self.redraw,
            [self.view, self.heads, self.attention],
            self.picture,
            show_progress="hidden",
            api_visibility="private",
        )

    def translate(self, sentence: str, view: str | None, heads: str | None) -> Iterator[dict[Any, Any]]:
        """Yield the translations as soon as they are found, then the picture."""
        model, body = self.model, ""
        yield {self.answer: _answer(model, _paragraph("time", "translating …")), self.picture: None}
        try:
            answer = model.answer(sentence)
            body = _translations(answer, model)
            yield {self.answer: _answer(model, body)}
            if not model.views:
                raise ValueError(model.no_attention_reason)
            attention = model.attention(sentence)
            yield {self.picture: self.redraw(view, heads, attention), self.attention: attention}
        except (ValueError, RuntimeError) as error:
            note = _paragraph("note", f"No picture: {error}." if body else error)
            yield {self.answer: _answer(model, body + note), self.attention: None}

    def redraw(self, view: str | None, heads: str | None, attention: AttentionWeights | None) -> Image.Image | None:
        """The picture of the attention in the last sentence; none before the first."""
        if attention is None or view is None or heads is None:
            return None
        kind, layer = self.model.views[view]
        with _drawing:
            layers = select_layers(attention, [kind], layer, **self.model.heads[heads])
            canvas = FigureCanvasAgg(plot_attention_maps(layers))
            canvas.draw()
            return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def build_page(models: Sequence[ShownModel]) -> gr.Blocks:
    """A page that answers with all of the models, side by side."""
    names = {model.name: model for model in models}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as page:
        gr.Markdown(f"# {TITLE}\n{INTRODUCTION}")
        with gr.Row(equal_height=True):
            sentence = gr.Textbox(
                label="Sentence", placeholder="Type, then press Enter", lines=1, max_lines=6, scale=5, min_width=300,
                autofocus=True, elem_id="sentence",
            )  # fmt: skip
            button = gr.Button("Translate", variant="primary", scale=1, min_width=140, elem_id="translate")
        picked = gr.CheckboxGroup(list(names), value=list(names), label="Models", visible=len(models) > 1)
        notice = gr.HTML(visible=False)
        with gr.Row():
            panels = {name: Panel(model) for name, model in names.items()}
        picked.change(
            lambda chosen: {panel.column: gr.update(visible=name in chosen) for name, panel in panels.items()},
            picked, [panel.column for panel in panels.values()], show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        gr.on(
            [button.click, sentence.submit],
            _answering(panels, notice),
            [sentence, picked, *(choice for panel in panels.values() for choice in (panel.view, panel.heads))],
            [notice, *(part for panel in panels.values() for part in (panel.answer, panel.picture, panel.attention))],
            show_progress="hidden", concurrency_limit=MAX_CONCURRENT, api_name="translate",
        )  # fmt: skip
    return page.queue(max_size=MAX_QUEUED)


def launch(page: gr.Blocks, **where: Any) -> tuple[Any, str, str]:
    """Serve the page without any connection to other machines; `where`: further options of `gr.Blocks.launch`."""
    return page.launch(
        share=False, ssr_mode=False, pwa=False, mcp_server=False, run_history=False, enable_monitoring=False,
        footer_links=[], max_file_size="1kb", css=STYLE, quiet=True, **where,
    )  # fmt: skip


def _choice(names: list[str], label: str, scale: int) -> gr.Dropdown:
    """A choice of one name, initially the first; hidden if there is only one."""
    return gr.Dropdown(
        names, value=next(iter(names), None), label=label, scale=scale, min_width=200, filterable=False,
        visible=len(names) > 1,
    )  # fmt: skip


def _answering(panels: dict[str, Panel], notice: gr.HTML) -> Callable[..., Iterator[dict[Any, Any]]]:
    def translate(sentence: str, chosen: list[str], *choices: str | None) -> Iterator[dict[Any, Any]]:
        views_and_heads = dict(zip(panels, zip(choices[::2], choices[1::2], strict=True), strict=True))
        try:
            one_line(sentence)
            if not chosen:
                raise ValueError("No model is chosen: tick at least one.")
        except ValueError as error:
            cleared = {panel.answer: _answer(panel.model, "") for panel in panels.values()}
            cleared |= {part: None for panel in panels.values() for part in (panel.picture, panel.attention)}
            yield {notice: gr.update(value=_paragraph("notice", error), visible=True)} | cleared
            return
        yield {notice: gr.update(visible=False)}
        for name in chosen:
            yield from panels[name].translate(sentence, *views_and_heads[name])

    return translate


def _answer(model: ShownModel, body: str) -> str:
    return f'<div aria-live="polite"><h3>{escape(model.kind)}</h3>{_paragraph("path", model.path)}{body}</div>'


def _translations(answer: Answer, model: ShownModel) -> str:
    """The best one large, then all with their scores, the time, and the unknown words."""
    best, rows = answer.translations[0], []
    for rank, found in enumerate(answer.translations, start=1):
        score = "" if found.score is None else f"{found.score:.3f}".replace("-", "\u2212")
        rows.append(f'<tr><td>{rank}</td><td class="text">{escape(found.text)}</td><td class="score">{score}</td></tr>')
    head = '<tr><th>#</th><th>translation</th><th class="score">score</th></tr>'
    table = f"<table>{head}{''.join(rows)}</table>" if model.beams > 1 else ""
    how = f"beam search, {model.beams} beams" if model.beams > 1 else "greedy"
    seconds = answer.seconds
    duration = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    time = _paragraph("time", f"{duration}: {how}, {model.translator.engine} engine")
    return _paragraph("best", best.text or "(nothing)") + table + time + _unknown_words(answer)


def _unknown_words(answer: Answer) -> str:
    if not answer.unknown:
        return ""
    shown, more = answer.unknown[:MAX_UNKNOWN_WORDS], len(answer.unknown) - MAX_UNKNOWN_WORDS
    words = ", ".join(f"“{word}”" for word in shown) + (f" and {more} more" if more > 0 else "")
    advice = f" It knows the letters, separated by spaces: {answer.spelled}" if answer.spelled else ""
    return _paragraph("note", f"Not in this model's vocabulary: {words}.{advice}")


def _paragraph(kind: str, text: object) -> str:
    return f'<p class="{kind}">{escape(str(text))}</p>'
