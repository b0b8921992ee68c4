"""The entry point of a Bento, named in `bentofile.yaml`: the service, with the bundle in the folder `bundle/` beside it.

`bentoml build` imports it from the clone; then it prints which bundle is included. The finished Bento imports it from its own
copy; then it serves that bundle unless MASKSERVE_BUNDLE is set.
"""

import os
import sys
from pathlib import Path

from models.bundle import open_bundle
from models.errors import BundleError

ROOT = Path(__file__).resolve().parent.parent
BUNDLE_FOLDER = ROOT / "bundle"


def verify_bundle(bundle: Path) -> None:
    """Print which bundle is included. An altered bundle ends the build here."""
    if not bundle.exists():
        print("maskserve: no bundle is included, because the clone has no folder bundle/.", file=sys.stderr)
        return
    try:
        opened = open_bundle(bundle)
        opened.verify()
    except BundleError as error:
        sys.exit(f"maskserve: {error}")
    print(f"maskserve: the bundle {opened.spec.name}@{opened.hash[:12]} is included.", file=sys.stderr)


if (ROOT.parent / "bento.yaml").exists():
    if BUNDLE_FOLDER.is_dir():
        os.environ.setdefault("MASKSERVE_BUNDLE", str(BUNDLE_FOLDER))
else:
    verify_bundle(BUNDLE_FOLDER)

from service.bento_service import Maskserve as Maskserve  # noqa: E402  # it reads the settings when it is imported
