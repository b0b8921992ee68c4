"""The door of a Bento: `bentofile.yaml` names it. It is the service, with the bundle that lies beside it in `bundle/`.

`bentoml build` imports it from the clone, and it says in a line which bundle goes in; the finished Bento imports it from
its own copy, and it is that bundle which is served where MASKSERVE_BUNDLE names no other.
"""

import os
import sys
from pathlib import Path

from models.bundle import open_bundle
from models.errors import BundleError

ROOT = Path(__file__).resolve().parent.parent
BUNDLE_FOLDER = ROOT / "bundle"


def verify_bundle(bundle: Path) -> None:
    """Tell which bundle goes in; one that is altered ends the build here."""
    if not bundle.exists():
        print("maskserve: no bundle goes in, for there is no folder bundle/ in the clone.", file=sys.stderr)
        return
    try:
        opened = open_bundle(bundle)
        for name in opened.checksums:
            opened.verify_file(name)
    except BundleError as error:
        sys.exit(f"maskserve: {error}")
    print(f"maskserve: the bundle {opened.spec.name}@{opened.hash[:12]} goes in.", file=sys.stderr)


if (ROOT.parent / "bento.yaml").exists():
    if BUNDLE_FOLDER.is_dir():
        os.environ.setdefault("MASKSERVE_BUNDLE", str(BUNDLE_FOLDER))
else:
    verify_bundle(BUNDLE_FOLDER)

from service.app import Maskserve as Maskserve  # noqa: E402  # it looks at the settings when it is imported
