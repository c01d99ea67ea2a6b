"""Where a network looks: class activation maps, by the grad-cam library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import need
from ..cost._run import first_floating
from ..layers._modes import copy_network
from ..ops._define import check_choice
from ._watch import evaluating, find_layer, named_layers, uncompiled, unwrapped

# By our name: the library's.
METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "gradcam_elementwise": "GradCAMElementWise",
    "hirescam": "HiResCAM",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "shapleycam": "ShapleyCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "kpcacam": "KPCA_CAM",
    "fem": "FEM",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
    "randomcam": "RandomCAM",
}


@dataclass
class Attention:
    """What a network saw in a batch.

    Attributes:
        maps (Tensor[B, H, W]): 0 to 1, of the images' size, each scaled to its own largest value.
        scores (Tensor[B, K]): softmax of the network's outputs.
        targets (Tensor[B]): the class that each map speaks for.
        layer: the layer whose activations were weighed.
    """

    maps: Tensor
    scores: Tensor
    targets: Tensor
    layer: str


@torch.inference_mode(False)  # most methods need gradients, whatever the caller is at
def attend(
    model: nn.Module, images: Tensor, *, method: str = "gradcam", layer: str | None = None, target: int | None = None
) -> Attention:
    """Class activation maps of a batch of images.

    Args:
        model: a classifier with 4-dimensional activations. A copy of it is run, so that no trace stays.
        images (Tensor[B, 3, H, W]): as the network wants them.
        method: one of ``METHODS``.
        layer: name of the layer whose output is weighed; by default :func:`last_map`.
        target: the class asked for; by default the one that the network finds most likely in each image.

    Raises:
        ValueError: if the method, layer or class is unknown, the layer gives no map, ``images`` are no batch, or the
            network is no classifier of images.
        ImportError: without the grad-cam library.

    Source:
        Selvaraju et al., *Grad-CAM*, ICCV 2017, and the other methods' own, by the library grad-cam.
    """
    check_choice("method", method, tuple(METHODS))
    need("explain", "pytorch_grad_cam")
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network: Any = copy_network(unwrapped(model)).eval()
    if images.dim() != 4 or not len(images):
        raise ValueError(f"images must be a batch of one or more, of shape [B, 3, H, W], got {list(images.shape)}")
    images = images.detach().clone().to(first_floating(network).device)
    layer = layer or last_map(network, images)
    given: list[Any] = []
    watch = find_layer(network, layer).register_forward_hook(lambda module, args, output: given.append(output))
    with watch, evaluating(network):
        outputs = network(images)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        raise ValueError(f"maps need a classifier's outputs of shape [B, classes], got {_shape(outputs)}")
    if not given or not isinstance(given[-1], Tensor) or given[-1].dim() != 4:
        got = _shape(given[-1]) if given else "nothing, as it does not run"
        raise ValueError(f"layer {layer!r} must give a map of shape [B, C, H, W], got {got}; choose another")
    if target is not None and not 0 <= target < outputs.shape[1]:
        raise ValueError(f"target must be a class from 0 to {outputs.shape[1] - 1}, got {target}")
    targets = outputs.argmax(1) if target is None else torch.full((len(images),), target)
    # A copy of what the layer gave: the network may go on in place.
    options: Any = {"reshape_transform": torch.clone}
    create = getattr(pytorch_grad_cam, METHODS[method])
    with uncompiled(), create(network, [find_layer(network, layer)], **options) as cam:
        maps = cam(images, [ClassifierOutputTarget(label) for label in targets.tolist()])
    return Attention(torch.from_numpy(maps).float(), outputs.softmax(1).cpu(), targets.cpu(), layer)


def _shape(output: Any) -> str:
    return str(list(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def last_map(model: nn.Module, images: Tensor) -> str:
    """Name of the layer that gives the last map of more than one pixel, which is what the head then averages.

    A ResNet's ``layer4``, a VGG's or a DenseNet's ``features``, a MobileNet's ``bn2``. Of layers that give the same map
    the outermost counts.

    Args:
        model: a network for images; it is left as it was.
        images (Tensor[B, 3, H, W]): of which the first is run.

    Raises:
        ValueError: if no layer gives such a map.
    """
    found: list[str] = []

    def hook(name: str) -> Any:
        def seen(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                found.append(name)

        return seen

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in named_layers(model).items()
        if name and not isinstance(module, nn.Identity)
    ]
    try:
        with evaluating(model):
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("no layer gives a map of more than one pixel; give larger images, or a layer")
    return found[-1]
