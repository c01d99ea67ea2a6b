"""Swaps squeeze layers and pools in any network, and reports what it did."""

from .convert import convert, convert_like
from .report import Left, Replaced, Report, Totals

__all__ = ["Left", "Replaced", "Report", "Totals", "convert", "convert_like"]
