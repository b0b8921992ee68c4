"""The format `wfdb`: an annotation file in MIT format, as WFDB programs read it (`rdann -r RECORD -a ANNOTATOR`).

An event is three annotations, as in the Lobachevsky and QT databases: `(` at its onset, a symbol in its middle, and `)` at its
last time step, so that a data set of signals reads the same event. The symbol is `p`, `N` and `t` for classes of these
waves, and a note with the class's name for others. `chan` is the index of the lead among those that were segmented; 0 where the
network takes all leads together.

Format: PhysioNet, WFDB Programmer's Guide, annot(5): https://physionet.org/physiotools/wag/annot-5.htm
"""

import struct
from collections.abc import Iterable

from models.inference.leads import RecordPrediction
from models.outputs.options import OutputOptions
from models.spec import BundleSpec

MEDIA_TYPE = "application/x-wfdb-annotation"  # none is registered
SUFFIX = ".seg"  # the annotator's name
NEEDS_CONFIDENCE = False

ONSET, OFFSET, NOTE = 39, 40, 22  # codes of annotations (ecgcodes.h)
WAVES = {"p": 24, "n": 1, "qrs": 1, "t": 27}
SKIP, CHAN, AUX = 59, 62, 63  # codes of what belongs to the annotation before
MAX_INTERVAL, MAX_AUX_BYTES = (1 << 10) - 1, 255

Annotation = tuple[int, int, int, str]  # time step, channel, code, note


def encode(prediction: RecordPrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above."""
    annotations: list[Annotation] = []
    for channel, track in enumerate(prediction.tracks):
        for event in track.events:
            name = spec.classes[event.label].name
            code = WAVES.get(name.lower(), NOTE)
            annotations += [
                (event.start, channel, ONSET, ""),
                ((event.start + event.end - 1) // 2, channel, code, name if code == NOTE else ""),
                (event.end - 1, channel, OFFSET, ""),
            ]
    annotations.sort(key=lambda each: each[0])  # stable: `(` comes before its symbol
    return write_annotations(annotations)


def write_annotations(annotations: Iterable[Annotation]) -> bytes:
    """The bytes of an annotation file; the annotations ascend in time."""
    out, now, current = bytearray(), 0, 0
    for time, channel, code, note in annotations:
        interval, now = time - now, time
        if interval > MAX_INTERVAL:  # a long word in PDP-11 order: the high half first
            out += struct.pack("<HHH", SKIP << 10, interval >> 16, interval & 0xFFFF)
            interval = 0
        out += struct.pack("<H", code << 10 | interval)
        if channel != current:  # it holds for all that follow
            out += struct.pack("<H", CHAN << 10 | channel)
            current = channel
        if note:
            text = note.encode()[:MAX_AUX_BYTES]
            out += struct.pack("<H", AUX << 10 | len(text)) + text + bytes(len(text) % 2)
    return bytes(out + struct.pack("<H", 0))
