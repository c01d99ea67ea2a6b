"""Replaces squeeze layers and pools in any network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..cost._run import check_module, images
from ..layers._modes import copy_network
from .choose import Chooser, Where
from .replace import POOL_CLASSES, Builder, build, find_builder, put_in_place
from .report import Left, Replaced, Report, count_totals, describe
from .trace import Trace, trace

Network = TypeVar("Network", bound=nn.Module)
_OWN_FUNCTION = "own function"


@torch.inference_mode(False)  # in which a trace shows operators whole, and what is made can't be trained
def convert(
    model: Network,
    *,
    squeeze: str | Builder | None = "pix",
    pool: str | Builder | None = None,
    example_input: Tensor | tuple[Any, ...] | None = None,
    where: Where = None,
    min_reduction: int = 2,
    inplace: bool = False,
) -> tuple[Network, Report]:
    """Replaces the squeeze layers of a network, its pools, or both, and reports what it did.

    A squeeze is a 1×1 convolution that lowers the number of channels by an integer ratio, with the norm and activation
    behind it. What is behind it is found by running the network once in evaluation mode, not by names. The new layer
    takes over the convolution's weight and bias under their names; norm and activation become ``nn.Identity``. Mode,
    hooks, dtype, device and ``requires_grad`` stay as they were; hooks also see the example input, and the copies on
    the meta device with which costs are counted. What a network computes is another function afterwards, so it has to
    be trained or fine-tuned.

    Args:
        model: any module.
        squeeze: a word of :func:`downmix.create_squeeze`, a function from the convolution to the new layer, or None to
            leave squeezes alone. The convolution's weights move into ``"pix"`` alone; ``"conv"`` leaves all as it is.
        pool: a word of :func:`downmix.create_pool`, with the window of the max or average pool it replaces;
            ``"soft_2x2"`` for windows of 2 side by side in place of any of stride 2, a function from the pool to the
            new layer, or None. A word that can't take a layer's arguments leaves it, as does a function that raises
            ValueError.
        example_input: a batch, or the tuple of all arguments; None takes a black image of 3×224×224.
        where: patterns for names, such as ``"layer3.*"``, or a function of name and module. Global and adaptive
            pools, heads, gates, projections and convolutions on 1×1 maps or to one channel stay, unless a pattern is
            their full name.
        min_reduction: the smallest ratio of a squeeze. With 1, those that keep the number of channels count too.
        inplace: change ``model`` itself rather than a copy.

    Returns:
        The converted network and a :class:`downmix.convert.Report`. ``report.config`` rebuilds the network, see
        :func:`convert_like`.

    Raises:
        ValueError: if an option is unknown, neither ``squeeze`` nor ``pool`` is given, the network can't be copied, or
            it can't run on ``example_input``, before or after, or does not run a new layer.
        TypeError: if ``model`` is no module, is scripted, compiled or in DistributedDataParallel, or has a layer that
            is scripted.

    Example:
        >>> from torch import nn
        >>> block = nn.Sequential(nn.Conv2d(64, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 64, 3))
        >>> network, report = convert(block, example_input=torch.randn(1, 64, 8, 8))
        >>> network[0]
        PiX(64, 16, reduction=4, bias=True)
        >>> report.summary
        'Sequential: 1 of 1 layers replaced'
    """
    _check(model, squeeze, pool, min_reduction)
    asked = {"squeeze": squeeze, "pool": pool}
    builders = {kind: find_builder(kind, value) for kind, value in asked.items() if value is not None}
    network = model if inplace else copy_network(model, ", or pass inplace=True")
    args = _arguments(network, example_input)
    chooser = Chooser(network, _run(network, args, "give another one"), where)
    if "squeeze" in builders:
        chooser.choose_squeezes(min_reduction)
    if "pool" in builders:
        chooser.choose_pools()
    news: dict[str, nn.Module] = {}
    left = chooser.left
    for choice in chooser.choices:
        try:
            news[choice.name] = build(builders[_kind(choice.module)], choice.module, choice.channels, network)
        except ValueError as error:
            left.append(Left(choice.name, describe(choice.module), str(error)))
    choices = [choice for choice in chooser.choices if choice.name in news]
    notes: list[str] = []
    before = count_totals(network, args, notes)
    for choice in choices:
        put_in_place(network, choice.name, news[choice.name], list(choice.drop))
    _run_converted(network, args, [name for choice in choices for name in (choice.name, *choice.drop)])
    after = count_totals(network, args, notes)
    replaced = [Replaced(choice.name, choice.was, describe(news[choice.name]), choice.note) for choice in choices]
    config = {
        "squeeze": _word(squeeze),
        "pool": _word(pool),
        "layers": {choice.name: list(choice.drop) for choice in choices},
        "channels": {choice.name: choice.channels for choice in choices},
    }
    return network, Report(type(model).__name__, replaced, left, before, after, config, notes)


def convert_like(
    model: Network,
    config: Mapping[str, Any],
    *,
    squeeze: Builder | None = None,
    pool: Builder | None = None,
    inplace: bool = False,
) -> Network:
    """Repeats a conversion on a fresh network of the same architecture, without running it.

    Args:
        model: the network before its conversion, with any weights.
        config: ``report.config`` of :func:`convert`, perhaps read from JSON.
        squeeze, pool: the functions that :func:`convert` was given, where these were no words.
        inplace: change ``model`` itself rather than a copy.

    Returns:
        The converted network; a state dict of the first one fits it key for key.

    Raises:
        TypeError: if ``model`` is no module, or is scripted or compiled, or ``config`` no mapping.
        ValueError: if ``config`` lacks an entry, or a layer of it is not in the network, or was replaced already.

    Example:
        >>> from torch import nn
        >>> config = {"squeeze": "pix", "pool": None, "layers": {"0": ["1"]}}
        >>> convert_like(nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16)), config)
        Sequential(
          (0): PiX(64, 16, reduction=4, bias=False)
          (1): Identity()
        )
    """
    check_network(model, "convert")
    _check_config(config)
    network = model if inplace else copy_network(model, ", or pass inplace=True")
    own = {"squeeze": squeeze, "pool": pool}
    news: dict[str, nn.Module] = {}
    for name, drop in config["layers"].items():
        try:
            old, *_ = (network.get_submodule(layer) for layer in (name, *drop))
        except AttributeError as error:
            raise ValueError(f"the configuration does not fit {type(model).__name__}: {error}") from error
        if not isinstance(old, (nn.Conv2d, *POOL_CLASSES)):
            raise ValueError(f"{name} is a {type(old).__name__}, neither convolution nor pool: was it replaced before?")
        kind = _kind(old)
        if own[kind] is None and config[kind] == _OWN_FUNCTION:
            raise ValueError(f"{name} was replaced by a function of your own; pass it as {kind}=")
        channels = config.get("channels", {}).get(name)
        news[name] = build(find_builder(kind, own[kind] or config[kind]), old, channels, network)
    for name, drop in config["layers"].items():
        put_in_place(network, name, news[name], drop)
    return network


def check_network(model: object, verb: str) -> None:
    """Raises a TypeError unless the layers of ``model`` can be reached; ``verb`` says what for."""
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise TypeError(f"model is scripted or compiled already; {verb} it first, compile it afterwards")


def _check(model: nn.Module, squeeze: Any, pool: Any, min_reduction: int) -> None:
    check_network(model, "convert")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks, by which layers are seen to run
            raise TypeError(
                f"layer {name!r} of model is scripted or traced already; convert it first, script it afterwards"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):  # it hands new parameters to no other process
            raise TypeError("model is wrapped in DistributedDataParallel already; convert it first, wrap it afterwards")
    if squeeze is None and pool is None:
        raise ValueError("there is nothing to do: give squeeze, pool or both")
    if not isinstance(min_reduction, int) or min_reduction < 1:
        raise ValueError(f"min_reduction must be a positive integer, got {min_reduction!r}")


def _check_config(config: object) -> None:
    wanted = "config must be the config of a report of convert, such as report.config"
    if not isinstance(config, Mapping):
        raise TypeError(f"{wanted}, got {type(config).__name__}")
    if missing := [name for name in ("squeeze", "pool", "layers") if name not in config]:
        raise ValueError(f"{wanted}, but {', '.join(missing)} is missing")


def _arguments(network: nn.Module, example_input: Tensor | tuple[Any, ...] | None) -> tuple[Any, ...]:
    if example_input is None:
        return (images(network, 1, (3, 224, 224), torch.zeros),)
    return example_input if isinstance(example_input, tuple) else (example_input,)


def _run(network: nn.Module, args: tuple[Any, ...], advice: str) -> Trace:
    try:
        return trace(network, args)
    except Exception as error:  # a network may raise anything
        given = ", ".join(str(list(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in args)
        name = type(network).__name__
        raise ValueError(f"{name} can't run on an example input of {given}: {advice} ({error})") from error


def _run_converted(network: nn.Module, args: tuple[Any, ...], names: list[str]) -> None:
    layers = {name: network.get_submodule(name) for name in names}
    ran: set[nn.Module] = set()
    # An old layer shares the hooks of the new one, so that the hook has to ask who runs.
    handles = [layer.register_forward_pre_hook(lambda module, args: ran.add(module)) for layer in layers.values()]
    try:
        _run(network, args, "its forward needs a layer that was replaced; leave that one out by where")
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        if layer not in ran:
            raise ValueError(
                f"the forward of {type(network).__name__} goes on with what {name} was before, which it holds outside "
                "of its modules, such as in a list; use nn.ModuleList, or leave the layer out by where"
            )


def _kind(old: nn.Module) -> str:
    return "squeeze" if isinstance(old, nn.Conv2d) else "pool"


def _word(value: str | Builder | None) -> str | None:
    return value if value is None or isinstance(value, str) else _OWN_FUNCTION
