"""BentoML as in its documentation, PIL image in and out: `bentoml serve benchmarks.servers.bentoml_tutorial:Segment`."""

import bentoml
from PIL.Image import Image

from benchmarks.servers.network import TutorialSegmenter


@bentoml.service(resources={"cpu": "2"}, traffic={"timeout": 120})
class Segment:
    def __init__(self) -> None:
        self.segmenter = TutorialSegmenter()

    @bentoml.api
    def segment(self, image: Image) -> Image:
        return self.segmenter(image)
