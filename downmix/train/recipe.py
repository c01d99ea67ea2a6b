"""What a training is: one dataclass, every field documented and checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import timm.data
import timm.optim
import torch

from ..ops._define import check_choice
from ._fields import check_types, make_plain
from .segmentation_recipe import SegmentationRecipe

TASKS = ("classification", "segmentation")
# timm's others: plateau follows a metric, not the step, and none leaves the warm-up out.
SCHEDULES = ("constant", "cosine", "multistep", "poly", "rsqrt", "step", "tanh", "wsd")
_AT_LEAST_ONE = ("epochs", "batch_size", "accumulate", "keep_last", "log_every", "fbs_epochs")
_NOT_NEGATIVE = (
    *("num_classes", "lr_base_batch", "weight_decay", "warmup_epochs", "min_lr", "clip_grad", "mixup", "cutmix"),
    *("crop_padding", "early_stop", "workers", "checkpoint_every_steps", "checkpoint_every_minutes", "keep_every"),
    *("decay_epochs", "skip_nan", "fbs_l1"),
)
_LEAST = {"image_size": 8} | dict.fromkeys(_AT_LEAST_ONE, 1) | dict.fromkeys(_NOT_NEGATIVE, 0)
_SHARES = (
    *("crop_scale", "crop_pct", "hflip", "smoothing", "drop", "drop_path", "reprob", "ema_decay", "momentum"),
    *("layer_decay", "fbs_density"),
)

_LARGEST_SEED = 2**32  # times a million, which makes the seeds of the epochs, it still fits torch's 64 bits
_ON_CUDA = ("bnb", "fused")  # bitsandbytes' and Apex' optimisers
_NESTEROV = ("sgd", "nesterov", "sgdw", "nesterovw", "sgdc", "csgdc", "csgdw", "nlars", "nlarc")


@dataclass
class Recipe:
    """How a network is trained. The defaults suit the digits.

    Args:
        task: what is learned: classification, or segmentation.
        data: digits, fashion_mnist, cifar10, cifar100, a folder of class folders, or a name that timm knows, such as
            wds/… for WebDataset shards, hfds/… for Hugging Face and torch/… for torchvision.
        data_dir: where the data lie or are downloaded to (default: data).
        train_split: the training split in timm's words, for names with a slash.
        val_split: the held-out split, in timm's words for names with a slash; in folders, the one beside train, such as
            test (default: val, validation or test, whichever is there).
        num_classes: how many classes there are, where the data don't say; 0 asks the data.
        image_size: height and width in pixels that images are brought to.
        model: a network of timm or downmix, perhaps with arguments, NAME:key=value,key=value.
        pretrained: start from the weights that timm has for the name.
        init: start from the weights of this checkpoint; a classifier of another size starts fresh.
        squeeze: what takes the place of the squeezes: a word that downmix convert takes, such as pix, or none.
        pool: what takes the place of the pools: a word that downmix convert takes, such as soft, or none.
        convert: a convert.json that downmix convert wrote, repeated on the network; what is in it becomes the field.
        drop: share of values that dropout before the classifier sets to zero.
        drop_path: share of residual branches that are left out, by depth.
        epochs: passes over the training images.
        batch_size: images a step, a process.
        accumulate: batches whose gradients are summed before a step (update_freq); the global batch is batch_size ×
            accumulate × processes.
        opt: optimiser, by timm's name (sgd is Nesterov's).
        lr: learning rate that the warm-up leads to and the schedule starts from.
        lr_base_batch: the global batch that lr is meant for: lr and min_lr are multiplied by global batch /
            lr_base_batch. With 0 they stay as they are.
        momentum: of optimisers that have one.
        weight_decay: weight decay; none on biases and norms.
        layer_decay: factor of the learning rate from each layer to the one below; 0 for the same everywhere.
        sched: schedule of the learning rate, by timm's name.
        decay_rate: factor of the schedules step and multistep, and exponent of poly.
        decay_epochs: epochs between the decays of step (0: 90), and of the last decay of wsd and rsqrt, below 1 as a
            share of all (0: 0.2).
        decay_milestones: epochs after which multistep decays.
        warmup_epochs: epochs of linear warm-up from lr / 100, in place of the schedule's first ones; wsd and rsqrt
            start behind it, and that of tanh leads to where tanh is by then, so it ends before the last tenth.
        min_lr: learning rate at the end of the schedule.
        clip_grad: the norm that gradients are clipped to; 0 for no clipping.
        smoothing: label smoothing.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none.
        bce_loss: binary cross entropy, each class for itself, in place of cross entropy.
        aa: automatic augmentation in timm's words, such as rand-m7-mstd0.5-inc1; empty for none.
        reprob: probability that a rectangle of an image is erased.
        crop_scale: smallest share of the image's area that a random crop keeps; 1 for no random crop.
        crop_padding: pixels of black border before a random crop of the image's own size, in place of crop_scale.
        hflip: probability of a horizontal flip.
        interpolation: bilinear, bicubic, nearest, or random for one of the first two at each crop by crop_scale, and
            bilinear elsewhere.
        crop_pct: share of the resized image's side that evaluation sees, in its middle.
        ema_decay: decay of the moving average of the weights, which is then what is evaluated; 0 for none.
        amp: mixed precision: none, bf16, or fp16 with a loss scaler.
        channels_last: keep images and weights in channels_last.
        compile: compile the network with torch.compile.
        grad_checkpointing: compute activations again in the backward pass rather than keep them.
        sync_bn: BatchNorm over all processes' batches.
        fbs_density: share of channels that FBS layers keep in the end, lowered evenly from 1; 0 leaves it alone.
        fbs_epochs: epochs over which that share is lowered; the next one is the first to have it.
        fbs_l1: weight in the loss of what FBS layers predict, lambda.
        early_stop: end after this many epochs without a better deciding metric; 0 for never.
        seed: of initialisation, shuffling and augmentation.
        workers: processes that load images, for each training process; 0 loads in the main process.
        device: cpu, cuda, cuda:N, or auto for cuda where there is one.
        checkpoint_every_steps: also write a checkpoint every so many steps; 0 for none within an epoch.
        checkpoint_every_minutes: also write a checkpoint after so many minutes; 0 for none within an epoch.
        keep_last: newest checkpoints to keep.
        keep_every: keep the checkpoint of each epoch that this number divides for good; 0 keeps none of them.
        on_bad_image: stop at an image that can't be read, or skip: take the next in training, leave out in evaluation.
        skip_nan: steps with a loss that is not finite that are left out before training stops.
        log_every: steps between two points of the training loss and learning rate in TensorBoard.
        wandb: also log to Weights & Biases.
        segmentation: what only segmentation needs.
    """

    task: str = "classification"
    data: str = "digits"
    data_dir: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    num_classes: int = 0
    image_size: int = 16
    model: str = "pix_resnet29_small"
    pretrained: bool = False
    init: str | None = None
    squeeze: str = "none"
    pool: str = "none"
    convert: str | dict | None = None
    drop: float = 0.0
    drop_path: float = 0.0
    epochs: int = 12
    batch_size: int = 64
    accumulate: int = 1
    opt: str = "adamw"
    lr: float = 2e-3
    lr_base_batch: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float = 0.0
    sched: str = "cosine"
    decay_rate: float = 0.1
    decay_epochs: float = 0.0
    decay_milestones: list[int] = field(default_factory=lambda: [30, 60, 90])
    warmup_epochs: int = 1
    min_lr: float = 0.0
    clip_grad: float = 0.0
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    bce_loss: bool = False
    aa: str = ""
    reprob: float = 0.0
    crop_scale: float = 0.7
    crop_padding: int = 0
    hflip: float = 0.0
    interpolation: Literal["bilinear", "bicubic", "nearest", "random"] = "bilinear"
    crop_pct: float = 1.0
    ema_decay: float = 0.0
    amp: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = False
    compile: bool = False
    grad_checkpointing: bool = False
    sync_bn: bool = False
    fbs_density: float = 0.0
    fbs_epochs: int = 1
    fbs_l1: float = 0.0
    early_stop: int = 0
    seed: int = 0
    workers: int = 0
    device: str = "auto"
    checkpoint_every_steps: int = 0
    checkpoint_every_minutes: float = 0.0
    keep_last: int = 2
    keep_every: int = 0
    on_bad_image: Literal["stop", "skip"] = "stop"
    skip_nan: int = 0
    log_every: int = 50
    wandb: bool = False
    segmentation: SegmentationRecipe = field(default_factory=SegmentationRecipe)

    def __post_init__(self) -> None:
        if isinstance(self.segmentation, dict):  # from a checkpoint or a YAML file
            self.segmentation = SegmentationRecipe.of(self.segmentation)
        check_types(self)
        make_plain(self)
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name, known in _CHOICES.items():
            check_choice(name, getattr(self, name), known)
        for name in ("data", "init"):  # as of a shell's variable that isn't set; Path takes it for this folder
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty; name what is meant, or leave it out")
        for name, value in vars(self).items():
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        for name in ("lr", "crop_pct"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not all(before < after for before, after in pairwise([0, *self.decay_milestones])):
            raise ValueError(f"decay_milestones must be epochs in rising order, got {self.decay_milestones}")
        if self.sched == "rsqrt" and not self.warmup_epochs:
            raise ValueError(
                "sched rsqrt falls as slowly as the warm-up was long; warmup_epochs must be at least 1, got 0"
            )
        if abs(self.seed) > _LARGEST_SEED:
            raise ValueError(f"seed must be between -{_LARGEST_SEED} and {_LARGEST_SEED}, got {self.seed}")
        if self.convert and (self.squeeze, self.pool) != ("none", "none"):
            raise ValueError("convert repeats a conversion with the words of its own; leave squeeze and pool out")
        if self.convert:
            self.convert = _conversion(self.convert)
        if self.bce_loss and self.smoothing == 1:
            raise ValueError("smoothing must be below 1 with bce_loss, got 1.0: every class would be told the same")
        self._check_opt()
        if self.aa:
            self._check_aa()

    def check_training(self) -> None:
        """ValueError where this is no recipe to train by, though a network can be evaluated by it."""
        if self.batch_size < 2:
            raise ValueError(
                f"BatchNorm needs more than one image for its statistics; batch_size must be at least 2 in training, "
                f"got {self.batch_size}"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a batch; batch_size must be even, got {self.batch_size}"
            )
        if self.sched == "tanh" and 10 * self.warmup_epochs > 9 * self.epochs:
            raise ValueError(
                "sched tanh warms up to where it is by then, in the last tenth of the epochs below 2 % of lr; "
                f"warmup_epochs must be at most 0.9 × epochs = {0.9 * self.epochs:.1f}, got {self.warmup_epochs}"
            )
        device = self.torch_device()
        if device.type != "cuda" and self.opt.lower().rpartition("_")[2].startswith(_ON_CUDA):
            raise ValueError(
                f"opt {self.opt} computes on CUDA devices alone, and device is {device}; choose another opt"
            )

    def _check_opt(self) -> None:
        name = self.opt.lower().removeprefix("lookahead_")
        try:
            known = timm.optim.get_optimizer_info(name)
        except ValueError as error:
            raise ValueError(f"opt must be an optimiser of timm, got {self.opt!r} ({error})") from error
        if known.second_order:
            raise ValueError(f"opt {self.opt} needs second derivatives, which training has not; choose another one")
        if name in _NESTEROV and self.momentum == 0:
            raise ValueError(f"opt {self.opt} is Nesterov's, which needs momentum above 0; for none take opt momentum")

    def _check_aa(self) -> None:
        try:
            timm.data.create_transform(self.image_size, is_training=True, auto_augment=self.aa)
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"aa must be in timm's words, such as rand-m7-mstd0.5-inc1, augmix-m3, original or 3a, got {self.aa!r}"
                + (f" ({error})" if str(error) else "")
            ) from error

    def torch_device(self) -> torch.device:
        """The device asked for; ValueError where it is unknown or not there."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):  # torch knows more, on which nothing here was tried
            raise ValueError(f"device must be cpu, cuda, cuda:N or auto, got {name!r}")
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {name!r} was asked for, but torch sees no CUDA device; use cpu or auto")
        if device.index is not None and device.index >= (count := torch.cuda.device_count()):
            raise ValueError(
                f"device {name!r} was asked for, but torch sees {count} CUDA devices, cuda:0 to cuda:{count - 1}"
            )
        return device


# By the name of the field; types alone are not checked outside of the command.
_CHOICES = {"task": TASKS, "sched": SCHEDULES} | {
    name: get_args(kind) for name, kind in get_type_hints(Recipe).items() if get_origin(kind) is Literal
}


def _conversion(given: str | dict[str, Any]) -> dict[str, Any]:
    """What is in a convert.json, so that who has the recipe needs no such file."""
    name, config = "convert", given
    if isinstance(given, str):
        name = given
        try:
            config = json.loads(Path(given).read_text())
        except ValueError as error:  # no JSON, or no text at all
            raise ValueError(f"{name} is no convert.json of `downmix convert` ({error})") from error
    if not isinstance(config, dict) or not config.keys() >= {"squeeze", "pool", "layers"}:
        raise ValueError(f"{name} is no convert.json of `downmix convert`: squeeze, pool or layers is missing")
    return config
