"""Reads the published PiX checkpoints into the networks of this package."""

from __future__ import annotations

import argparse
import errno
import os
import pickle
import re
import zipfile
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ._extras import need

_NAMED = 3  # tensors of each kind that a sentence names, where hundreds may not fit
_STEM = {"conv_stem": "conv1", "bn_stem": "bn1", "classifier": "fc"}
_BLOCK = {
    "conv_sqz": "conv1",
    "conv_ce": "conv2",
    "bn_ce": "bn2",
    "conv_exp": "conv3",
    "bn_exp": "bn3",
    "conv_proj": "downsample.0",
    "bn_proj": "downsample.1",
}
_PUBLISHED_NAME = re.compile(rf"(?:({'|'.join(_STEM)})|(layer[1-4])\.blocks\.(\d+)\.({'|'.join(_BLOCK)}))\.(\w+)$")


def load_published(model: nn.Module, path: str | PathLike[str], *, ema: bool | None = None) -> None:
    """Loads a checkpoint of the published PiX code into ``model``, in place.

    Reads training files, whose weights lie under ``model`` and ``model_ema`` (``ema`` in those of `downmix train`), and
    plain state dicts, with or without the prefix ``module.``; names may be the published ones or those of ``model``.
    Nothing in the file is run: tensors and plain values are read, and the ``argparse.Namespace`` of a training file,
    which is plain values too. Where anything does not fit, ``model`` stays as it was.

    ``timm.create_model("pix_resnet50", checkpoint_path=…)`` reads the same files.

    Args:
        model (nn.Module): such as ``timm.create_model("pix_resnet50")``, also within DataParallel.
        path (str or Path): a file of ``torch.save``, or ``*.safetensors``.
        ema (bool): True for the moving average of the weights, which the source evaluates, False for the weights
            themselves; None takes the average where the file has one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if reading the file could run code, it is no checkpoint, the average asked for is not in it, or
            its tensors don't fit ``model``; the sentence names some that are missing, unexpected and misshapen.
        ImportError: for ``*.safetensors`` without the package of that name.

    Source:
        The names of the repository published with Kumar et al., *Pick-or-Mix*, CVPR 2024. Its classifier is a 1×1
        convolution, read into our linear layer.
    """
    wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    load_state(model.module if wrapped else model, read_weights(path, ema=ema), path)


def read_weights(path: str | PathLike[str], *, ema: bool | None = None) -> dict[str, Tensor]:
    """The tensors of a file by timm's names; arguments and errors as of :func:`load_published`."""
    return choose_weights(read_file(path), ema, path)


def load_state(model: nn.Module, given: dict[str, Tensor], path: str | PathLike[str]) -> None:
    """Loads tensors that come from ``path``; where any does not fit, ValueError names some and ``model`` stays."""
    wanted = model.state_dict()
    faults = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {list(given[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted.keys() & given.keys()
            if given[name].shape != wanted[name].shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{kind}: {_some(sorted(names))}" for kind, names in faults.items() if names)
        raise ValueError(f"{path} does not fit {type(model).__name__}, load it into the network it is of; {found}")
    model.load_state_dict(given)


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def rename_published(state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors under timm's names; those stay that are not the published code's."""
    matches = {name: _PUBLISHED_NAME.match(name) for name in state}
    if not any(found and found[2] for found in matches.values()):
        return state  # MobileNets have a conv_stem and a classifier too, but no such blocks
    renamed = {}
    for name, value in state.items():
        if found := matches[name]:
            outside, layer, block, inside, leaf = found.groups()
            name = f"{_STEM[outside]}.{leaf}" if outside else f"{layer}.{block}.{_BLOCK[inside]}.{leaf}"
            if outside == "classifier" and leaf == "weight":
                value = value.flatten(1)
        renamed[name] = value
    return renamed


def accept_published_names(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """A hook for ``register_load_state_dict_pre_hook``: the network then loads state dicts with published names too."""
    own = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
    renamed = rename_published({name.removeprefix(prefix): value for name, value in own.items()})
    state.update({prefix + name: value for name, value in renamed.items()})


def read_file(path: str | PathLike[str]) -> Any:
    """All that a file of ``torch.save`` or safetensors holds: tensors and plain values, nothing that could run."""
    if str(path).endswith(".safetensors"):
        return _read_safetensors(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch does not look at the checksums
            if damaged:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        # A Namespace only takes attributes, so building one runs no code that the file brings along.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values{_foreign(path)}, and reading it could run code; if you "
            "trust it, read it yourself, take the state dict out and save that"
        ) from error
    except (FileNotFoundError, IsADirectoryError, MemoryError):
        raise
    except Exception as error:  # any: torch takes bytes that are no checkpoint for instructions, and follows them
        reason = str(error) or type(error).__name__  # an empty file has an EOFError without words
        raise ValueError(f"{path} can't be read as a checkpoint; it may be cut off or damaged ({reason})") from error


def _read_safetensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    need("models", "safetensors")  # which comes with timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if os.path.isdir(path):  # of which safetensors says "No such device", without a name
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read as safetensors; it may be cut off ({error})") from error


def _foreign(path: str | PathLike[str]) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # any, as above: a file of an older format, or no checkpoint at all
        return ""
    return f" ({', '.join(sorted(set(names) - {'argparse.Namespace'}))})"


def choose_weights(checkpoint: Any, ema: bool | None, path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors, by timm's names, of what :func:`read_file` gave; arguments as of :func:`load_published`."""
    found = checkpoint
    if isinstance(checkpoint, dict) and "model" in checkpoint:
        average = checkpoint.get("model_ema") or checkpoint.get("ema")
        if ema and average is None:
            raise ValueError(f"{path} has no moving average (model_ema); ask for its weights themselves")
        found = checkpoint["model"] if average is None or ema is False else average
    elif ema:
        raise ValueError(f"{path} is a plain state dict and says nothing of averages; leave ema out")
    elif isinstance(checkpoint, dict):
        found = checkpoint.get("state_dict", checkpoint)  # where timm and torchvision's scripts put it
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise ValueError(f"{path} holds no state dict; expected tensors by name, alone or under model or model_ema")
    return rename_published({name.removeprefix("module."): tensor for name, tensor in found.items()})
