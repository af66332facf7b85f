"""The model card: README.md of a pruned folder, with Hugging Face front matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download

from faster_pruner.objectives.objective import Objective
from faster_pruner.report.summary import COST_WORDS, format_metric
from faster_pruner.results import PruneReport
from faster_pruner.vocabulary.measured import VocabularyReport

CARD_FILE = "README.md"
# How long a hub that does not answer is waited for.
_SECONDS_TO_WAIT = 3.0


def read_licence(model: str) -> str | None:
    """The licence in the base model's own card, None when it says none, has no readable card, or the hub is away.

    To be asked before any work: nothing that is finished may depend on it.
    """
    place = Path(model)
    if place.exists() and not (place / CARD_FILE).is_file():
        return None
    try:
        file = place / CARD_FILE
        if not place.exists():
            file = Path(hf_hub_download(model, CARD_FILE, etag_timeout=_SECONDS_TO_WAIT))
        licence: Any = ModelCard.load(file).data.get("license")
    except Exception:  # the card is a stranger's and the way to it is a network: anything can be wrong with either
        return None
    return str(licence) if licence else None


def model_card(
    report: PruneReport,
    *,
    objective: Objective,
    licence: str | None,
    folder: str,
    vocabulary: VocabularyReport | None = None,
) -> str:
    """The card's text.

    Args:
        report: of the run.
        objective: that the model is for.
        licence: inherited from the base model; None when it states none.
        folder: name of the folder, for the examples.
        vocabulary: what was measured of its tokens, where those were pruned, too.
    """
    tokens = "" if vocabulary is None else f" and {vocabulary.tokens / vocabulary.tokens_before:.0%} of its tokens"
    parts = [
        "---\n" + _front_matter(report, objective, licence, folder) + "\n---",
        f"# {Path(report.model).name}, pruned to {report.macs_kept:.0%} of its encoder's MACs{tokens}",
        "Made physically smaller by faster-pruner: attention heads and "
        f"feed-forward neurons were removed and what is left was repaired by least squares. {_training(report)}",
        "## Open it",
        _how_to_open(report, objective, folder),
        *([] if vocabulary is None else ["## Vocabulary", _tokens(vocabulary)]),
        "## Before and after",
        _quality(report),
        "## Measured speed",
        _speed(report),
        "## How it was made",
        _provenance(report, licence),
    ]
    return "\n\n".join(parts) + "\n"


def _training(report: PruneReport) -> str:
    """What was trained, if anything."""
    found = report.distillation
    if found is None or not found.kept:
        return "No retraining."
    return (
        f"Then it was trained towards the dense model on {found.rows} rows without labels ({found.best_step} steps); "
        f"the divergence of its predictions on {found.held_out} held-out rows went from {found.before:.4g} to "
        f"{found.after:.4g}."
    )


def _tokens(report: VocabularyReport) -> str:
    """Which tokens are left, and what that means for other texts."""
    unseen = report.held_out
    lines = [
        f"{report.tokens} of {report.tokens_before} tokens are left: those that {report.texts} texts use, and what any "
        f"other text needs to be encoded. That alone saves {report.bytes_saved / 1e6:.1f} of "
        f"{report.bytes_before / 1e6:.1f} MB. Those texts get the same tokens as before; other words may come in "
        "smaller pieces, or as unknown.",
    ]
    if unseen is not None and unseen.words:
        share = unseen.affected_words / unseen.words
        lines.append(
            f"Of {unseen.texts} texts that were held out, {share:.1%} of the words are encoded in another way."
        )
    return " ".join(lines)


def minimal_card(report: PruneReport) -> str:
    """What can be said of every run, for when the whole card cannot be made."""
    return (
        "---\nlibrary_name: transformers\ntags:\n- faster-pruner\n- pruned\n---\n\n"
        f"# A model pruned to {report.macs_kept:.0%} of its encoder's MACs\n\n"
        "Made by faster-pruner. Open it with `faster_pruner.load`; everything that was measured is in `result.json`.\n"
    )


def _front_matter(report: PruneReport, objective: Objective, licence: str | None, folder: str) -> str:
    """YAML."""
    results = [
        EvalResult(
            task_type=objective.pipeline_tag,
            dataset_type=report.task,
            dataset_name=report.task,
            dataset_split=split,
            metric_type=evaluation.primary,
            metric_value=round(evaluation.value, 4),
        )
        for split, evaluation in report.after.items()
    ]
    data = ModelCardData(
        base_model=report.model,
        library_name=objective.library,
        pipeline_tag=objective.pipeline_tag or None,
        license=licence,
        tags=["faster-pruner", "pruned", *([objective.library] if objective.library != "transformers" else [])],
        model_name=folder,
        eval_results=results or None,
    )
    return data.to_yaml()


def _how_to_open(report: PruneReport, objective: Objective, folder: str) -> str:
    """Code for every way that works."""
    name = objective.opener or objective.auto_class or "AutoModel"
    imported = f"from {objective.library.replace('-', '_')} import {name}"
    # classes of other libraries are called, and pass on what transformers is to know
    call = f"{name}({folder!r}" if objective.opener else f"{name}.from_pretrained({folder!r}"
    if report.opens_plain:
        return (
            f"Every layer has the same size, so plain {objective.library} opens it:\n\n```python\n"
            f"{imported}\n\nmodel = {call})\n```\n\n`faster_pruner.load({folder!r})` works, too."
        )
    loaded = f"model = faster_pruner.load({folder!r})\n\n# or, after the import, transformers' own\n"
    return (
        "Layers have different sizes. With faster-pruner installed:\n\n```python\n"
        f"import faster_pruner\n\n{'' if objective.opener else loaded}"
        f"{imported}\n\nmodel = {call})\n```\n\n"
        "Without it, through the small file `modeling_faster_pruner.py` in this folder:\n\n```python\n"
        f"{imported}\n\nmodel = {call}, trust_remote_code=True)\n```\n\n"
        "The result is the stock transformers class with smaller Linears. Opening it without either is refused with an "
        "error; it never opens with layers initialised anew."
    )


def _quality(report: PruneReport) -> str:
    """Metrics with 95 % intervals of the primary one."""
    lines = ["| split | metric | dense | pruned | change |", "|---|---|---|---|---|"]
    for split, before in report.before.items():
        for name, value in before.metrics.items():
            after = report.after[split].metrics[name]
            cells = [format_metric(name, value), format_metric(name, after), f"{after - value:+.4g}"]
            own = report.confidence.get(split)
            if own is not None and own.metric == name:
                ranges = (own.before, own.after, own.change)
                cells = [f"{cell} ({low:.2f} to {high:.2f})" for cell, (low, high) in zip(cells, ranges, strict=True)]
            lines.append(f"| {split}, {before.rows} rows | {name} | " + " | ".join(cells) + " |")
    lines += [
        f"| | encoder MACs ({report.mean_length:.1f} tokens) | {report.dense.macs / 1e6:.1f} M | "
        f"{report.pruned.macs / 1e6:.1f} M | {report.macs_kept:.1%} kept |",
        f"| | parameters | {report.dense.parameters / 1e6:.2f} M | {report.pruned.parameters / 1e6:.2f} M | "
        f"{report.pruned.parameters / report.dense.parameters:.1%} kept |",
    ]
    return "\n".join([*lines, "", "In brackets: 95 % bootstrap intervals; the change's is paired over the same rows."])


def _speed(report: PruneReport) -> str:
    """Latency per shape."""
    lines = ["| batch x tokens | dense, ms | pruned, ms | speed-up |", "|---|---|---|---|"]
    for shape in report.latency:
        lines.append(
            f"| {shape.batch} x {shape.sequence} | {shape.dense_ms:.2f} | {shape.pruned_ms:.2f} "
            f"| {shape.speed_up:.2f}x |"
        )
    hardware = ", ".join(f"{key} {value}" for key, value in report.environment.items())
    return "\n".join([*lines, "", f"PyTorch eager, dense and pruned in turn. {hardware}."])


def _provenance(report: PruneReport, licence: str | None) -> str:
    """What went in."""
    calibration, budget = report.options["calibration"], report.options["budget"]
    arithmetic = f", passes in {report.precision}" if report.precision else ""
    return "\n".join(
        [
            f"* Base model: `{report.model}`; licence: {licence or 'see the base model'} (inherited)",
            f"* Budget: {_budget(report)}; allocation {budget['allocation']}",
            f"* Method: preset `{report.preset}`, seed {calibration['seed']}{arithmetic}",
            f"* Calibration: task {report.task}, {_rows(report)}, at most "
            f"{calibration['max_length']} tokens each; SHA-256 of their tokens and labels `{report.calibration_hash}`",
            f"* Verified: {report.verified}",
            "* Everything else, layer by layer: `result.json`",
        ]
    )


def _rows(report: PruneReport) -> str:
    """The rows that it was calibrated on."""
    asked = report.options["calibration"]["rows"]
    more = "" if asked == report.calibration_rows else f" (of {asked} asked for)"
    return f"{report.calibration_rows} training rows{more}"


def _budget(report: PruneReport) -> str:
    """What was asked for, and what is left."""
    found = [
        f"{each.asked / each.dense:.0%} of the {COST_WORDS.get(each.cost, each.cost)} asked, "
        f"{each.spent / each.dense:.2%} met{each.where and f' at {each.where}'}"
        for each in report.limits
    ]
    return "; ".join(found)
