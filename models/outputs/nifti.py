"""The format `nifti`: the labels as a `.nii.gz`, uint8, voxel for voxel on the grid of the file that was sent.

A NIfTI gets back its own axes, its qform and its sform, as they are stored. Other files that say how they lie in the patient (NRRD,
DICOM, npz with an affine) get a NIfTI with the same order of voxels and the same affine. A stack that says nothing gets i along its
width, j along its height and k along its slices, with its spacing, as ITK reads it.
"""

import numpy as np

from models.inference.volumes import VolumePrediction
from models.outputs.options import OutputOptions
from models.readers import nifti
from models.spec import BundleSpec

MEDIA_TYPE = "application/x-nifti"  # none is registered
SUFFIX = ".nii.gz"
NEEDS_CONFIDENCE = False


def encode(prediction: VolumePrediction, spec: BundleSpec, options: OutputOptions) -> bytes:
    """Encode as above."""
    grid = prediction.grid
    return nifti.write(prediction.file_labels, np.array(grid.affine), grid.nifti)
