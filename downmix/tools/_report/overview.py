"""Which trainings there are, how they were made, and how they went."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ...train import Recipe
from ...train.checkpoint import CheckpointError, read_checkpoint
from .parts import Cell, Heading, Part, Plot, Plots, Section, Table, Text, literal, marks, number, percent, plot
from .runs import Inputs, Training

_METRICS = {"top1": "top-1 %", "miou": "mIoU %"}
_IN_THE_LABEL = ("model", "squeeze", "pool", "convert")
_MOST_ROWS = 500  # of the curves' table


def configuration(inputs: Inputs) -> Section:
    """The trainings, what their recipes have in common, and with which versions they ran."""
    section = Section(
        "runs",
        "Runs and configuration",
        "A row a training; fields of the recipe that differ between them are columns, all others stand below.",
    )
    if inputs.trainings:
        section.parts += _recipes(inputs)
    section.parts += _versions(inputs)
    return section


def _recipes(inputs: Inputs) -> Iterator[Part]:
    recipes = [_flat(asdict(training.recipe)) for training in inputs.trainings]
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    differing = [name for name in names if len({str(recipe.get(name)) for recipe in recipes}) > 1]
    yield _runs(inputs.trainings, recipes, [name for name in differing if name not in _IN_THE_LABEL])
    defaults = _flat(asdict(Recipe()))
    rows = [
        [Cell(name), Cell(_text(value)), Cell("" if value == defaults.get(name) else _text(defaults.get(name)))]
        for name, value in recipes[0].items()
        if name not in differing
    ]
    yield Table("The recipe, as far as all share it", ["field", "value", "default"], rows, folded=True)
    path = shlex.quote(str(inputs.trainings[0].folder / "recipe.yaml"))
    yield Text("A training is repeated by", f"downmix train --recipe {path} --output FOLDER")


def _runs(trainings: list[Training], recipes: list[dict[str, Any]], differing: list[str]) -> Table:
    measures = [_METRICS[name] for name in dict.fromkeys(training.deciding for training in trainings)]
    what = measures[0] if len(measures) == 1 else "top-1 or mIoU %"
    columns = ["network", *differing, "epochs", f"best {what}", "best epoch", f"last {what}", "last training loss"]
    rows = []
    for training, recipe in zip(trainings, recipes, strict=True):
        last, best = training.epochs[-1], training.epochs[training.best - 1]
        own = [_setting(recipe.get(name)) for name in differing]
        done, planned = len(training.epochs), training.recipe.epochs
        row = [Cell(training.label), *own, number(done, "{:.0f}", "" if done == planned else f"of {planned}")]
        row += [
            percent(best.get(training.deciding)),
            number(training.best, "{:.0f}"),
            percent(last.get(training.deciding)),
        ]
        row += [
            number(last.get("train_loss"), "{:.4f}"),
            number(_minutes(training), "{:.1f}"),
            Cell(str(training.folder)),
        ]
        rows.append(row)
    return Table("Trainings", [*columns, "minutes", "folder"], rows)


def _minutes(training: Training) -> float:
    return sum(epoch.get("seconds") or 0 for epoch in training.epochs) / 60


def _setting(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(_text(value), value if is_number else None)


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value in (None, "") else str(value)


def _versions(inputs: Inputs) -> Iterator[Part]:
    """What trained, and where the figures of other commands come from."""
    trained: dict[Path, dict[str, str]] = {}
    for training in inputs.examples:
        try:
            trained[training.folder] = read_checkpoint(training.folder / "best.pt")["versions"]
        except (CheckpointError, OSError, KeyError):
            continue  # what needs the weights says that they are missing
    for path, (_, rows) in inputs.tables.items():
        row, found = rows[0], {}
        for column, value in row.items():
            if column in ("device", "threads", "commit") or column.endswith("_version"):
                found[column.removesuffix("_version")] = value
        trained[path] = found
    names = list(dict.fromkeys(name for versions in trained.values() for name in versions))
    if trained:
        cells = [[Cell(str(path)), *(Cell(v.get(name) or "–") for name in names)] for path, v in trained.items()]
        yield Table("Versions and devices", ["made by", *names], cells, folded=True)


def curves(inputs: Inputs) -> Section:
    """Loss, metrics and learning rate by epoch."""
    section = Section(
        "curves",
        "Curves",
        "A line a training, seeds of a network in its colour; dotted is the loss of the training images, solid that "
        "of the held-out images. Point at a line for its figures.",
    )
    groups: dict[str, list[Training]] = {}
    for training in inputs.trainings:
        groups.setdefault(f"{training.recipe.data}, {training.recipe.task}", []).append(training)
    for name, trainings in groups.items():
        if len(groups) > 1:
            section.parts.append(Heading(name))
        deciding = trainings[0].deciding
        lines = (("loss", ["val_loss", "train_loss"]), (_METRICS[deciding], [deciding]), ("learning rate", ["lr"]))
        section.parts.append(Plots([_curves(title, names, trainings, inputs.networks) for title, names in lines]))
        section.parts += _epochs(trainings, deciding)
    return section


def _curves(title: str, names: list[str], trainings: list[Training], networks: list[str]) -> Plot:
    traces, shown, factor = [], set(), 100 if "%" in title else 1
    for training in trainings:
        for name in names:
            values = [None if (v := epoch.get(name)) is None else round(factor * v, 6) for epoch in training.epochs]
            look = marks(networks.index(training.network))
            if name == "train_loss":
                look["line"] |= {"dash": "dot", "width": 1.5}
            traces.append(
                go.Scatter(
                    x=list(range(1, len(values) + 1)),
                    y=values,
                    name=literal(training.label),
                    legendgroup=training.label,
                    showlegend=training.label not in shown,
                    mode="lines+markers" if len(values) < 30 else "lines",
                    hovertemplate=f"{literal(training.label)}, seed {training.recipe.seed}<br>"
                    f"epoch %{{x}}: {name.replace('_', ' ')} %{{y:.5~g}}<extra></extra>",
                    **look,
                )
            )
            shown.add(training.label)
    ends = [
        f"{t.label}, seed {t.recipe.seed}, ends at {factor * (t.epochs[-1].get(names[0]) or 0):.4g}" for t in trainings
    ]
    alt = f"Lines of {title} by epoch. {'; '.join(ends[:12])}{'; …' if len(ends) > 12 else ''}."
    figure = plot(f"By epoch: {title}", traces, "epoch", title, alt)
    if max(len(training.epochs) for training in trainings) < 12:
        figure.figure.update_xaxes(dtick=1)
    return figure


def _epochs(trainings: list[Training], deciding: str) -> Iterator[Part]:
    if sum(len(training.epochs) for training in trainings) > _MOST_ROWS:
        yield Text("The epochs are too many for a table here; each folder's epochs.csv has them.")
        return
    rows = [
        [
            *(Cell(training.label), number(training.recipe.seed, "{:.0f}"), number(i, "{:.0f}")),
            *(number(epoch.get("train_loss"), "{:.4f}"), number(epoch.get("val_loss"), "{:.4f}")),
            *(percent(epoch.get(deciding)), number(epoch.get("lr"), "{:.3g}"), number(epoch.get("seconds"), "{:.1f}")),
        ]
        for training in trainings
        for i, epoch in enumerate(training.epochs, 1)
    ]
    columns = ["network", "seed", "epoch", "training loss", "held-out loss", _METRICS[deciding], "learning rate"]
    yield Table("The curves' figures", [*columns, "seconds"], rows, folded=True)
