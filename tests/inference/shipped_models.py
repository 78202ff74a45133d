"""The models that ship, as versions of the model store."""

import dataclasses
import json
from pathlib import Path

import rayapp.apps.radiology
from rayapp.models.store import ModelVersion

SHIPPED = Path(rayapp.apps.radiology.__file__).parent / "weights"


def shipped(name):
    card = json.loads((SHIPPED / f"{name}.json").read_text())
    return ModelVersion(name=name, version=card["version"], weights=SHIPPED / f"{name}.safetensors", card=card)


def changed(version, **card):
    """The version with another card or weights."""
    weights = card.pop("weights", version.weights)
    return dataclasses.replace(version, weights=weights, card={**version.card, **card})
