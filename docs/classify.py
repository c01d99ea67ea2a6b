"""Classifies photos with a file of `downmix export`, by onnxruntime, Pillow and numpy: classify.py NET.onnx PHOTO …"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def prepare(path: str, facts: dict) -> np.ndarray:
    """Scaled, middle cut out, normalized: [1, 3, H, W], as the network was evaluated."""
    _, height, width = facts["input_size"]
    image = Image.open(path).convert("RGB")
    if facts["crop_mode"] == "squash":
        size = (int(width / facts["crop_pct"]), int(height / facts["crop_pct"]))
    else:
        w, h = image.size
        shorter = int(height / facts["crop_pct"])
        size = (shorter, int(shorter * h / w)) if w < h else (int(shorter * w / h), shorter)
    image = image.resize(size, Image.Resampling[facts["interpolation"].upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    normalized = (pixels - np.array(facts["mean"])) / np.array(facts["std"])
    return normalized.transpose(2, 0, 1)[None].astype(facts["dtype"])


def read_facts(session: onnxruntime.InferenceSession) -> dict:
    """What the file says of its network: words, and lists and numbers as JSON."""
    stored = session.get_modelmeta().custom_metadata_map
    words = ("model", "dtype", "interpolation", "crop_mode", "downmix", "commit")
    return {name: value if name in words else json.loads(value) for name, value in stored.items()}


def classify(network: str, photos: list[str]) -> None:
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    facts = read_facts(session)
    for photo in photos:
        (logits,) = session.run(None, {"images": prepare(photo, facts)})[0]
        scores = np.exp(logits - logits.max())
        best = int(logits.argmax())
        name = facts["classes"][best] if facts["classes"] else str(best)
        print(f"{photo}: {name} ({scores[best] / scores.sum():.3f})")


if __name__ == "__main__":
    classify(sys.argv[1], sys.argv[2:])
