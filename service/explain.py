"""POST /v1/explain for the page's panel "Look inside": why an image got its labels. It exists only with MASKSERVE_EXPLAIN=on.

The views are those of `models/explain/`, which need no weights, for any channels. There are no feature maps: an engine returns
labels and scores, and its compiled graph has no other output; `maskserve explain` shows them from the bundle's weights.
A request holds the same slots as one to /v1/segment: it costs 4 inferences (`certainty`) or about 50 (`occlusion`), within the
same deadline.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.errors import ConfigError, InferenceCancelledError
from models.explain import BLACK_BOX_VIEWS, Facts, Subject
from models.explain.subject import fit_image
from models.imaging.decode import RGB
from models.inference.geometry import Image
from models.inference.segmenter import Prediction, Segmenter, never_stop
from models.outputs.pipeline import EncodedMask, SegmentationPipeline
from models.sample import Sample

PANEL_VIEWS = ("certainty", "occlusion")
POINT = re.compile(r"(\d{1,6}),(\d{1,6})")


class ExplainParams(BaseModel):
    """The parameters of /v1/explain, in the query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    view: str = Field(
        "certainty",
        json_schema_extra={"enum": list(PANEL_VIEWS)},
        description="certainty: confidence, entropy, margin and spread; occlusion: what the class of a pixel depends on",
    )
    model: str | None = Field(None, max_length=200, description="name of the model, required if several are served")
    at: str | None = Field(
        None,
        json_schema_extra={"pattern": f"^{POINT.pattern}$"},
        description="pixel X,Y of the upright image for `occlusion`; default: its center",
    )

    @field_validator("view")
    @classmethod
    def _validate_view(cls, name: str) -> str:
        if name not in PANEL_VIEWS:
            raise ValueError(f"choose from {', '.join(PANEL_VIEWS)}")
        return name

    @field_validator("at")
    @classmethod
    def _validate_point(cls, text: str | None) -> str | None:
        if text is not None and not POINT.fullmatch(text):
            raise ValueError("expected X,Y in pixels, such as 120,80")
        return text

    def point(self) -> tuple[int, int] | None:
        """The pixel (x, y); None for the center."""
        match = POINT.fullmatch(self.at or "")
        return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class ExplainedImage(Prediction):
    """An image and the facts of a view."""

    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True)
class ExplainPipeline(SegmentationPipeline):
    """Decodes as for a mask, computes a view in place of a mask, and encodes numbers and images as JSON."""

    view: str = "certainty"
    point: tuple[int, int] | None = None  # (x, y) in the upright image

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spec.input.axes != "HW":
            raise ConfigError(f"These views are for networks of images; this one takes {self.spec.input.describe()}.")

    def infer(self, image: Image | Sample, should_stop: Callable[[], bool] = never_stop) -> ExplainedImage:
        """Compute the view. Raises: ConfigError for a point outside the image, InferenceCancelledError."""
        sample = image if isinstance(image, Sample) else Sample(image)

        def run(images: Any, logits: bool = False, statistics: Any = None) -> Any:
            if should_stop():
                raise InferenceCancelledError("The view was cancelled before it was complete.")
            if statistics is None:  # imported networks' functions take no more
                return self.segmenter.run(images, logits=logits)
            return self.segmenter.run(images, logits=logits, statistics=statistics)

        segmenter = Segmenter(run, self.segmenter.rule)
        fitted, point, _ = fit_image(sample.values, segmenter, self.point)
        subject = Subject("", fitted, segmenter, self.spec.classes, point, statistics=sample.statistics)
        return ExplainedImage(
            sample.values, np.zeros((1, 1), np.uint8), facts=BLACK_BOX_VIEWS[self.view].compute(subject)
        )

    def encode(self, prediction: Prediction) -> EncodedMask:
        """JSON: `view`, `numbers`, and `images`, PNGs in base64 at the network's scale."""
        assert isinstance(prediction, ExplainedImage)
        facts = prediction.facts
        images = {name: encode_png(image) for name, image in facts.images.items()}
        content = {"view": self.view, "numbers": facts.numbers, "images": images}
        return EncodedMask(json.dumps(content).encode(), prediction.labels)


def encode_png(image: RGB) -> str:
    """An RGB image as a PNG in base64."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    assert done  # of uint8 with three channels
    return base64.b64encode(data.tobytes()).decode()
