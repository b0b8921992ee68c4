"""The format `wfdb`: an annotation file in MIT format, as WFDB programs read it (`rdann -r RECORD -a ANNOTATOR`).

An event is three annotations, as in the Lobachevsky and QT databases: `(` at its onset, a symbol in its middle, and `)` at its
last time step, so that a data set of signals reads the same event. The symbol is `p`, `N` and `t` for classes of these
waves, and a note with the class's name for others. `chan` is the index of the lead among those that were segmented; 0 where the
network takes all leads together.

Format: PhysioNet, WFDB Programmer's Guide, annot(5): https://physionet.org/physiotools/wag/annot-5.htm
"""

from models.inference.leads import RecordPrediction
from models.outputs.options import OutputOptions
from models.readers.annotations import NOTE, Annotation, write_annotations
from models.spec import BundleSpec

MEDIA_TYPE = "application/x-wfdb-annotation"  # none is registered
SUFFIX = ".seg"  # the annotator's name
NEEDS_CONFIDENCE = False

WAVES = {"p": "p", "n": "N", "qrs": "N", "t": "t"}


def encode(prediction: RecordPrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above."""
    annotations: list[Annotation] = []
    for channel, track in enumerate(prediction.tracks):
        for event in track.events:
            name = spec.classes[event.label].name
            symbol = WAVES.get(name.lower(), NOTE)
            middle = (event.start + event.end - 1) // 2
            annotations += [
                Annotation(event.start, "(", "", channel),
                Annotation(middle, symbol, name if symbol == NOTE else "", channel),
                Annotation(event.end - 1, ")", "", channel),
            ]
    annotations.sort(key=lambda each: each.step)  # stable: `(` comes before its symbol
    return write_annotations(annotations)
