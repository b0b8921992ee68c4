"""The format `csv`: a row per event, `onset,offset,class,confidence,lead,onset_seconds,offset_seconds`.

`onset` is the event's first time step and `offset` the one after its last, so that a data set of signals reads the file as
labels. `lead` is empty where the network takes all leads together.
"""

import csv
import io

from models.inference.leads import RecordPrediction
from models.outputs.events import event_rows
from models.outputs.options import OutputOptions
from models.spec import BundleSpec

MEDIA_TYPE = "text/csv"
SUFFIX = ".csv"
NEEDS_CONFIDENCE = False  # of each time step: an event has its mean

COLUMNS = ("onset", "offset", "class", "confidence", "lead", "onset_seconds", "offset_seconds")


def encode(prediction: RecordPrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above, in UTF-8 with a header."""
    assert prediction.sample.rate is not None  # readers and `segment_record` make sure of it
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(event_rows(prediction, spec, prediction.sample.rate))
    return text.getvalue().encode()
