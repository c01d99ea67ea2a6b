"""Writes the tables of the documentation from the CSV files in benchmarks/results: `python -m benchmarks.readme`."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(file: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RESULTS / file).read_text().splitlines()))


def training_mode(row: dict[str, str]) -> str:
    return row.get("training_mode", "float32, NCHW")  # the only one that earlier versions timed


def pair(file: str) -> str:
    """The comparison of two networks, a network a column."""
    rows = read(file)
    baseline, candidate = rows
    lines = [
        ("trainable parameters", "params", "{:,.0f}", 1),
        ("… in convolutions", "conv_params", "{:,.0f}", 1),
        ("GMACs", "macs", "{:.4f}", 1e-9),
        ("activations, MB an image", "activation_bytes", "{:.2f}", 1e-6),
        ("latency at batch 1, ms, minimum", "latency_batch1_min_ms", "{:.2f}", 1),
        ("latency at batch 1, ms, median", "latency_batch1_median_ms", "{:.2f}", 1),
        ("latency at batch 8, ms, minimum", "latency_batch8_min_ms", "{:.2f}", 1),
        ("latency at batch 8, ms, median", "latency_batch8_median_ms", "{:.2f}", 1),
        (f"training images/s, {training_mode(baseline)}", "training_images_per_s", "{:.0f}", 1),
    ]
    table = [f"| | {baseline['model']} | {candidate['model']} | ratio |", "|---|---|---|---|"]
    for label, column, form, unit in lines:
        ours, theirs = float(candidate[column]), float(baseline[column])
        table.append(f"| {label} | {form.format(theirs * unit)} | {form.format(ours * unit)} | {ours / theirs:.2f} |")
    deviations = [f" ± {100 * float(row['top1_std']):.2f}" if row["top1_std"] else "" for row in rows]
    top1 = [f"{100 * float(row['top1_mean']):.2f}{deviation}" for row, deviation in zip(rows, deviations, strict=True)]
    seeds = "1 seed" if baseline["seeds"] == "1" else f"{baseline['seeds']} seeds"
    table.append(f"| top-1 %, {seeds} | {top1[0]} | {top1[1]} | |")
    versions = f"torch {baseline['torch_version']}, downmix {baseline['downmix_version']}"
    return "\n".join([*table, "", f"{baseline['device']}, {baseline['threads']} threads, {versions}."])


PAPERS_OPS = ("pick_or_mix", "soft_pool")
LAYERS_RIVALS = ("part by part", "squeeze", "copy of x")
# The shapes shown: every row of the CSV would be too many.
SHOWN = (
    "8x256x56x56 r=4",
    "8x512x28x28 r=4",
    "8x1024x14x14 r=4",
    "8x2048x7x7 r=4",
    "8x64x112x112 k=2 s=2 p=0",
    "8x64x112x112 k=3 s=2 p=1",
    "8x256x20x20 k=5 s=1 p=2",
)


def described(rows: list[dict[str, str]]) -> dict[str, str]:
    """Where and with what the rows were measured, as the first says it; of commits all."""
    return rows[0] | {"commit": ", ".join(dict.fromkeys(row["commit"] for row in rows))}


def timed_cases(
    file: str, ops: tuple[str, ...], dtype: str = "float32"
) -> tuple[dict[tuple[str, ...], dict[str, float]], dict[str, str]]:
    """Minimum milliseconds by case and contender of these operators, and where they were measured."""
    rows = [row for row in read(file) if row["op"].startswith(ops) and row["dtype"] == dtype]
    cases: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        case = (row["op"], row["shape"], row["layout"], row["pass"])
        cases.setdefault(case, {})[row["contender"]] = float(row["min_ms"])
    return cases, described(rows)


def ops() -> str:
    """Minimum milliseconds of each contender, a case a row."""
    cases, about = timed_cases("ops_cpu.csv", PAPERS_OPS)
    table = [
        "| operator | shape | layout | pass | downmix | eager | torch.compile | what it replaces | copy of x |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, times in cases.items():
        if case[1] not in SHOWN:
            continue
        replaced = " ".join(
            f"{name} {times[name]:.2f}" for name in ("squeeze", "max_pool", "avg_pool") if name in times
        )
        ms = [f"{times[name]:.2f}" for name in ("downmix", "eager", "torch.compile")]
        table.append(f"| {' | '.join([*case, f'**{ms[0]}**', *ms[1:], replaced, format(times['copy of x'], '.2f')])} |")
    versions = f"torch {about['torch_version']}, numba {about['numba_version']}, commit {about['commit']}"
    return "\n".join([*table, "", f"{about['device']}, {about['threads']} threads, float32, {versions}."])


def beside(file: str, ops: tuple[str, ...], others: tuple[str, ...], dtype: str = "float32") -> str:
    """The same of other operators, each beside some contenders."""
    cases, about = timed_cases(file, ops, dtype)
    columns = "operator", "shape", "layout", "pass", "downmix", *others
    table = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for case, times in cases.items():
        table.append(f"| {' | '.join([*case, *(written(times[name]) for name in ('downmix', *others))])} |")
    where = f"{about['device']}, threads: {about['threads']}, {dtype}, torch {about['torch_version']}"
    return "\n".join([*table, "", f"Minimum in milliseconds; {where}, commit {about['commit']}."])


def written(ms: float) -> str:
    return f"{ms:.{1 if ms >= 10 else 2}f}"


def ops_on_a_gpu(file: str) -> str:
    """How near each kernel comes to the speed of a copy, and how far ahead it is of what it competes with."""
    rows = read(file)
    cases: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        case = (row["op"], row["shape"], row["layout"], row["dtype"], row["pass"])
        cases.setdefault(case, {})[row["contender"]] = row
    table = [
        "| operator | shape | layout | dtype | pass | ms | GB/s | of a copy's | eager | torch.compile |",
        f"|{'---|' * 10}",
    ]
    for case, times in cases.items():
        if not {"downmix", "eager", "torch.compile"} <= times.keys():
            continue
        ours, speed = float(times["downmix"]["min_ms"]), float(times["downmix"]["gb_per_s"])
        eager, compiled = (f"×{float(times[name]['min_ms']) / ours:.2f}" for name in ("eager", "torch.compile"))
        share = f"{speed / float(times['copy of x']['gb_per_s']):.0%}"
        table.append(f"| {' | '.join([*case, f'{ours:.3f}', f'{speed:.0f}', share, eager, compiled])} |")
    about = described(rows)
    versions = f"torch {about['torch_version']}, triton {about['triton_version']}, commit {about['commit']}"
    return "\n".join([*table, "", f"{about['device']}, {versions}; × is how many times as long the other takes."])


def on_gpus(stem: str, table: Callable[[str], str]) -> str:
    """The table of each GPU that was measured."""
    files = sorted(path.name for path in RESULTS.glob(f"{stem}_*.csv") if path.stem != f"{stem}_cpu")
    return "\n\n".join(table(file) for file in files) or "Not measured yet."


def networks(file: str) -> str:
    """Milliseconds and speed-up of whole networks, one a column, a configuration a row."""
    rows = read(file)
    costs = {row["network"]: row for row in rows}
    about = described(rows)
    params = [f"{int(cost['params']) / 1e6:.2f}" for cost in costs.values()]
    macs = [f"{int(cost['macs']) / 1e9:.2f} ×{float(cost['macs_ratio']):.2f}" for cost in costs.values()]
    table = [f"| | {' | '.join(costs)} |", f"|{'---|' * (len(costs) + 1)}"]
    table += [f"| parameters, M | {' | '.join(params)} |", f"| GMACs | {' | '.join(macs)} |"]
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        folded = ", BatchNorm folded" if row["fold_bn"] == "yes" else ""
        label = f"{row['mode']}, {row['engine']}, {row['layout']}{folded}, batch {row['batch_size']}"
        speedup = f" ×{float(row['min_ratio']):.2f}" if row["min_ratio"] else ""
        cells.setdefault(label, {})[row["network"]] = (
            f"{written(float(row['min_ms']))}{speedup}" if row["min_ms"] else "failed"
        )
    table += [f"| {label} | {' | '.join(times[name] for name in costs)} |" for label, times in cells.items()]
    where = f"{about['device']}, {about['threads']} threads, {about['dtype']}, {about['image_size']}"
    versions = f"torch {about['torch_version']}, timm {about['timm_version']}, commit {about['commit']}"
    return "\n".join([*table, "", f"{where}, {versions}; × is relative to {about['baseline']}."])


def exported() -> str:
    """Milliseconds of exported networks, a runtime and batch a row, a file a column."""
    rows = read("exported_cpu.csv")
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{float(row['min_ms']):.1f} ×{float(row['min_ratio']):.2f} ({float(row['median_ms']):.1f})"
        cells.setdefault((row["runtime"], row["batch_size"]), {})[Path(row["file"]).stem] = cell
    names = list(dict.fromkeys(Path(row["file"]).stem for row in rows))
    table = [f"| runtime | batch | {' | '.join(names)} |", f"|{'---|' * (len(names) + 2)}"]
    table += [f"| {' | '.join(case)} | {' | '.join(ms.get(n, '') for n in names)} |" for case, ms in cells.items()]
    about = described(rows)
    where = f"{about['device']}, {about['threads']} threads, {about['dtype']}, commit {about['commit']}"
    return "\n".join(
        [*table, "", f"Minimum (median) of {about['rounds']} rounds; {where}; × is relative to the first."]
    )


def compared(file: str) -> str:
    """A comparison of many networks, a row each; the first is what the others replace."""
    rows = read(file)
    baseline = rows[0]
    table = [
        f"| network | parameters | MMACs | batch 8, ms | training images/s, {training_mode(baseline)} | top-1 % | "
        "against the first |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms, speed = (f"{float(row[column]):.1f}" for column in ("latency_batch8_min_ms", "training_images_per_s"))
        top1 = f"{100 * float(row['top1_mean']):.2f} ± {100 * float(row['top1_std']):.2f}"
        cost = f"{int(row['params']):,} | {int(row['macs']) / 1e6:.2f}"
        table.append(f"| `{row['model']}` | {cost} | {ms} | {speed} | {top1} | {_verdict(row, baseline)} |")
    about = f"{baseline['data']}, {baseline['image_size']}×{baseline['image_size']}, {baseline['seeds']} seeds"
    where = f"{baseline['device']}, {baseline['threads']} threads, torch {baseline['torch_version']}"
    return "\n".join([*table, "", f"{about}; {where}. ± is the standard deviation over the seeds."])


def _verdict(row: dict[str, str], baseline: dict[str, str]) -> str:
    if row is baseline:
        return ""
    difference = 100 * (float(row["top1_mean"]) - float(baseline["top1_mean"]))
    spread = 100 * math.hypot(float(row["top1_std"]), float(baseline["top1_std"]))
    return f"{difference:+.2f}, {'more than' if abs(difference) > spread else 'inside'} ±{spread:.2f}"


def segmented(*networks: str) -> str:
    """Test scores, each network's as its training wrote them into `test.json`."""
    scores = [json.loads((RESULTS / f"camvid_{network}_cpu.json").read_text()) for network in networks]
    table = [f"| % | {' | '.join(networks)} |", f"|{'---|' * (len(networks) + 1)}"]
    names = [name for name in scores[0] if name != "loss"]
    table += [f"| {name} | {' | '.join(f'{100 * score[name]:.1f}' for score in scores)} |" for name in names]
    return "\n".join(table)


def pictures() -> None:
    """How many times faster each case is than what it competes with, a dot a case, into docs/ops_cpu.png."""
    cases, _ = timed_cases("ops_cpu.csv", PAPERS_OPS)
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, family) in zip(axes, (("PiX", "pick_or_mix"), ("SoftPool", "soft_pool")), strict=True):
        contenders = ("eager", "torch.compile", "squeeze", "max_pool", "avg_pool", "copy of x")
        shown = {case: times for case, times in cases.items() if case[0].startswith(family)}
        present = [name for name in contenders if any(name in times for times in shown.values())]
        for i, (layout, color) in enumerate((("nchw", "tab:blue"), ("channels_last", "tab:orange"))):
            points = [
                (present.index(name) + (i - 0.5) / 4, times[name] / times["downmix"])
                for case, times in shown.items()
                for name in present
                if case[2] == layout and name in times
            ]
            axis.scatter(*zip(*points, strict=True), s=14, alpha=0.6, color=color, label=layout)
        axis.axhline(1, color="black", linewidth=1)
        axis.set(title=title, yscale="log", xticks=range(len(present)), xticklabels=present)
        axis.grid(axis="y", alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("time of the contender / time of downmix")
    figure.suptitle("Above 1 downmix is faster. A dot is a shape and a pass.")
    figure.savefig(ROOT / "docs" / "ops_cpu.png", dpi=110)


TABLES = {
    "README.md": {
        "digits": partial(pair, "compare_digits_cpu.csv"),
        "ops": ops,
        "networks": partial(networks, "networks_cpu.csv"),
        "exported": exported,
    },
    "docs/train.md": {
        "cifar10": partial(pair, "compare_cifar10_cpu.csv"),
        "cifar10_gpu": partial(pair, "compare_cifar10_h200.csv"),
    },
    "docs/segmentation.md": {"camvid": partial(segmented, "resnet50", "pix_resnet50")},
    "docs/kernels.md": {
        "other_pools": partial(
            beside, "ops_cpu.csv", ("lip", "power", "stochastic", "mixed"), ("eager", "max_pool", "avg_pool")
        ),
        "pix_layers": partial(beside, "ops_cpu.csv", ("pix_layer",), LAYERS_RIVALS),
        "pix_layers_gpu": partial(
            on_gpus, "ops", partial(beside, ops=("pix_layer",), others=LAYERS_RIVALS, dtype="bfloat16")
        ),
        "ops_gpu": partial(on_gpus, "ops", ops_on_a_gpu),
        "networks_gpu": partial(on_gpus, "networks", networks),
    },
    "docs/choosing.md": {
        "pools": partial(compared, "compare_pools_cpu.csv"),
        "squeezes": partial(compared, "compare_squeezes_cpu.csv"),
    },
}


def main() -> None:
    for file, tables in TABLES.items():
        path = ROOT / file
        text = path.read_text()
        for name, table in tables.items():
            pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
            text, count = re.subn(pattern, lambda m, table=table: m[1] + table() + "\n" + m[2], text, flags=re.DOTALL)
            if count != 1:
                raise SystemExit(f"{file} needs exactly one <!-- table: {name} --> … <!-- end -->, found {count}")
        path.write_text(text)
    pictures()


if __name__ == "__main__":
    main()
