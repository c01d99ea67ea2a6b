"""What a report is made from: run folders, and the files of compare and bench."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...train import Recipe, read_recipe
from .._results import Row, network_name, read_rows, read_table


@dataclass
class Training:
    """A run folder of `downmix train`.

    Attributes:
        folder: its path.
        recipe: of the training.
        epochs: what each gave, by name; None where there is no value.
        network: its name, with what was replaced in it.
        label: the same, and the data where the report has several.
    """

    folder: Path
    recipe: Recipe
    epochs: list[dict[str, float | None]]
    network: str
    label: str

    @property
    def deciding(self) -> str:
        """The metric by which the best epoch was chosen."""
        return "top1" if "top1" in self.epochs[0] else "miou"

    @property
    def best(self) -> int:
        """The epoch, counted from 1, whose weights are the best."""
        values = [epoch.get(self.deciding) for epoch in self.epochs]
        return max(range(len(values)), key=lambda i: -1.0 if (value := values[i]) is None else value) + 1

    @property
    def weights(self) -> Path:
        """Of the best epoch."""
        path = self.folder / "best.pt"
        return path if path.exists() else path.with_suffix(".safetensors")


@dataclass
class Inputs:
    """All that was given.

    Attributes:
        trainings: those inside comparisons too.
        tables: CSV files with what wrote them and their rows.
        for_results: what :func:`~.._results.read_results` can read of it, each accuracy once.
        notes: on what had to be left out.
    """

    trainings: list[Training] = field(default_factory=list)
    tables: dict[Path, tuple[str, list[Row]]] = field(default_factory=dict)
    for_results: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self, kind: str) -> dict[Path, list[Row]]:
        return {path: rows for path, (found, rows) in self.tables.items() if found == kind}

    @property
    def examples(self) -> list[Training]:
        """The first training of each network, data and image size."""
        found: dict[tuple[str, str, int], Training] = {}
        for training in self.trainings:
            found.setdefault((training.label, training.recipe.data, training.recipe.image_size), training)
        return list(found.values())

    @property
    def networks(self) -> list[str]:
        """Their names, in an order that gives each its colour: baselines first."""
        compared = [row["model"] for rows in self.rows("compare").values() for row in rows]
        return list(dict.fromkeys([*compared, *(training.network for training in self.trainings)]))


def read_inputs(paths: list[Path]) -> Inputs:
    """Reads any number of outputs.

    Args:
        paths: as :func:`~.._results.read_results` takes them, also of segmentations, unfinished comparisons, and
            `downmix bench --exported`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if one is none of these.
    """
    found = Inputs()
    for path in dict.fromkeys(paths):
        if not path.is_dir():
            _add_table(found, path)
        elif (path / "epochs.csv").is_file():
            _add_training(found, _read_training(path))
        else:
            _add_comparison(found, path)
    if len({training.recipe.data for training in found.trainings}) > 1:
        for training in found.trainings:
            training.label += f" on {training.recipe.data}"
    return found


def _add_table(found: Inputs, path: Path) -> list[Row]:
    found.tables[path] = kind, rows = read_table(path)
    if kind != "bench --exported":  # whose rows are files, not networks
        found.for_results.append(path)
    return rows


def _add_comparison(found: Inputs, path: Path) -> None:
    folders = sorted(folder.parent for folder in path.glob("*/recipe.yaml"))
    finished = (path / "compare.csv").is_file()
    models: list[str] = []
    if finished:
        models = [row["model"] for row in _add_table(found, path / "compare.csv")]
    elif not folders:
        raise ValueError(f"{path} has no epochs.csv, compare.csv or trainings; give a folder of train or compare")
    else:
        found.notes.append(
            f"{path} has no compare.csv, as its comparison did not end; its trainings stand for themselves."
        )
    read = []
    for folder in folders:
        if (folder / "epochs.csv").is_file():
            read.append(_read_training(folder))
        else:
            found.notes.append(f"{folder} has not finished an epoch, and is left out.")
    order = {name: place for place, name in enumerate(models)}
    for training in sorted(read, key=lambda each: (order.get(each.recipe.model, len(order)), each.recipe.seed)):
        _add_training(found, training, counted=finished)


def _add_training(found: Inputs, training: Training, counted: bool = False) -> None:
    if any(training.folder.samefile(other.folder) for other in found.trainings):
        return
    found.trainings.append(training)
    if training.deciding == "top1" and not counted:
        found.for_results.append(training.folder)


def _read_training(folder: Path) -> Training:
    recipe = Recipe(**read_recipe(str(folder / "recipe.yaml")))
    rows = read_rows(folder / "epochs.csv")
    try:
        epochs = [{name: _value(text) for name, text in row.items()} for row in rows]
    except ValueError as error:
        raise ValueError(f"{folder / 'epochs.csv'} is no table of `downmix train` ({error})") from error
    name = network_name(asdict(recipe))
    return Training(folder, recipe, epochs, name, name)


def _value(text: str) -> float | None:
    value = float(text) if text else float("nan")
    return None if value != value else value
