"""Writes the tables of README.md from the CSV files in benchmarks/results: `python benchmarks/readme.py`."""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def digits() -> str:
    """The comparison that `make demo` ends with, a network a column."""
    rows = list(csv.DictReader((RESULTS / "compare_digits_cpu.csv").read_text().splitlines()))
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
        ("training images/s", "training_images_per_s", "{:.0f}", 1),
    ]
    table = [f"| | {baseline['model']} | {candidate['model']} | ratio |", "|---|---|---|---|"]
    for label, column, form, unit in lines:
        ours, theirs = float(candidate[column]), float(baseline[column])
        table.append(f"| {label} | {form.format(theirs * unit)} | {form.format(ours * unit)} | {ours / theirs:.2f} |")
    top1 = [f"{100 * float(row['top1_mean']):.2f} ± {100 * float(row['top1_std']):.2f}" for row in rows]
    table.append(f"| top-1 %, {baseline['seeds']} seeds | {top1[0]} | {top1[1]} | |")
    versions = f"torch {baseline['torch_version']}, downmix {baseline['downmix_version']}"
    return "\n".join([*table, "", f"{baseline['device']}, {baseline['threads']} threads, {versions}."])


TABLES = {"digits": digits}


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text()
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, table=table: m[1] + table() + "\n" + m[2], text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md needs exactly one <!-- table: {name} --> … <!-- end -->, found {count}")
    path.write_text(text)


if __name__ == "__main__":
    main()
