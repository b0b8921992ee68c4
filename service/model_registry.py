"""The bundles that one worker serves: opened, verified, probed and warmed, then put on the shelf, while it runs.

A thread looks at the folders now and then. A bundle that is new or another one than before takes the old one's place in
one assignment, once it is as good; until then, and where it is not, the old one goes on serving. Workers need not talk
to each other: each looks by itself, and all come to the same end.
"""

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from models.bundle import MODEL, SPEC, SUMS, Bundle, open_bundle
from models.engines.selection import Choice
from models.errors import MaskserveError
from models.inference.segmenter import Segmenter
from service.bundle_stat import Signature, signature
from service.errors import BadRequest, NotReady, UnknownModel

logger = logging.getLogger("maskserve")

# Looks at which a folder must be missing before its bundle is let go: a new one comes by two renames, with a moment
# between them (`models/bundle.py:writing`).
GONE = 2
STOP_SECONDS = 2.0  # how long a stop waits for the thread: a graph that is being compiled cannot be interrupted


@dataclass(frozen=True)
class Served:
    """A bundle that is open, verified, and has answered its probes on this machine."""

    bundle: Bundle
    segmenter: Segmenter
    choice: Choice


class _View(NamedTuple):
    """What callers see: never changed, only replaced, so that no lock is needed and no half state is seen."""

    served: dict[str, Served]
    reason: str = "The bundle is being opened and its probes answered; try again in a moment."
    retry_after: int | None = 1


@dataclass
class _Place:
    """What the thread knows of one folder."""

    folder: Path
    seen: Signature | None = None  # at the last look
    judged: Signature | None = None  # when it was last served or refused: until that changes there is nothing to do
    served: Served | None = None
    reason: str = ""  # why what was there last is not served
    clash: str | None = None  # the name that it may not have, because one before it has it
    missing: int = 0  # looks

    @property
    def name(self) -> str | None:
        return self.served.bundle.spec.name if self.served else None

    @property
    def gone(self) -> bool:
        return self.missing >= GONE


class Shelf:
    """Opens what lies in a folder, and follows it."""

    def __init__(
        self,
        folder: Path,
        load: Callable[[Bundle], Segmenter],
        warm: Callable[[Segmenter], None],
        every: float,
        default: str | None = None,
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            folder: a bundle, or a folder whose subfolders are bundles; those with a leading dot are passed over.
            load: opens a bundle's network and has its probes answered; what it raises refuses the bundle.
            warm: called with each new segmenter before it takes over.
            every: seconds between looks at the folder; 0 is one look, at the start.
            default: the name that is served where none is asked for; a bundle that is alone needs none.
        """
        self._folder, self._load, self._warm, self._every, self._default = folder, load, warm, every, default
        self._view = _View({})
        self._places: dict[Path, _Place] = {}  # the thread's own, as is the next
        self._trouble, self._first = "", True
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="shelf", daemon=True)

    def start(self) -> None:
        """Begin to open everything, on a thread that then goes on looking."""
        self._thread.start()

    def stop(self) -> None:
        """No more looks; what is on the shelf stays there."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def get(self, name: str | None = None) -> Served:
        """The bundle of this name, or of NAME@HASH as X-Model has it, or the one that is meant where none is given.

        Raises: NotReady while the first look is under way or where nothing is served, with the reason; UnknownModel;
        BadRequest where one of several must be named.
        """
        served = self._ready().served
        if name is None and self._default is None and len(served) > 1:
            raise BadRequest(f"Several models are served; say which by `model`: {', '.join(served)}.")
        wanted = name if name is not None else self._default or next(iter(served))
        if wanted in served:
            return served[wanted]
        if name is None:
            raise NotReady(f"The default model {wanted!r} is not served, but {', '.join(served)}.", self._patience())
        base, _, digits = name.rpartition("@")
        if base in served and digits:
            if served[base].bundle.hash.startswith(digits):
                return served[base]
            raise UnknownModel(f"The model {base!r} of hash {digits[:12]} is not served any more: it was exchanged.")
        raise UnknownModel(f"There is no model {name[:80]!r}; served: {', '.join(served)}.")

    def all(self) -> list[Served]:
        """All that is served, by name; nothing while `check` raises."""
        return list(self._view.served.values())

    def check(self) -> None:
        """Raises: NotReady where nothing is served, with the reason."""
        self._ready()

    def _ready(self) -> _View:
        view = self._view
        if not view.served:
            raise NotReady(view.reason, view.retry_after)
        return view

    def look(self) -> None:
        """Bring the shelf up to what lies in the folders now: what the thread does now and then."""
        try:
            self._look()
        except Exception as error:  # a thread that dies in silence would leave the service as it is for ever
            logger.exception("%s could not be looked at", self._folder)
            self._trouble = type(error).__name__
        self._first = False
        self._publish()

    def _follow(self) -> None:
        self.look()
        while self._every and not self._stopped.wait(self._every):
            self.look()

    def _look(self) -> None:
        folders = self._folders()
        if folders is None:  # a volume that is away for a moment is no reason to serve nothing
            return
        for folder in folders:
            self._places.setdefault(folder, _Place(folder))
        for place in self._places.values():
            place.missing = 0 if place.folder in folders else place.missing + 1
        for place in self._ordered():
            if self._stopped.is_set():
                return
            if not place.missing and self._is_due(place):
                self._judge(place)
                if not self._first:
                    self._publish()
        for place in [place for place in self._places.values() if place.gone]:
            del self._places[place.folder]  # only now: what has moved to another folder is served without a gap
            if place.served:
                logger.warning("%s is gone; its bundle %r is no longer served", place.folder, place.name)

    def _folders(self) -> list[Path] | None:
        """The folders that may hold a bundle; None where there is nothing to be looked at."""
        root, self._trouble = self._folder, ""
        known = self._places.get(root)
        try:
            if (known and known.served) or any((root / name).is_file() for name in (SUMS, SPEC, MODEL)):
                return [root]  # also while it is away
            return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except OSError as error:
            self._trouble = error.strerror or type(error).__name__
            return None

    def _ordered(self) -> list[_Place]:
        """By folder name, which decides between bundles of one name; those that are gone, last."""
        return sorted(self._places.values(), key=lambda place: (place.gone, place.folder.name))

    def _is_due(self, place: _Place) -> bool:
        """Whether there is something new, and all of it: what still changes is being copied."""
        before, place.seen = place.seen, signature(place.folder)
        if place.clash and self._holder(place.clash, place) is None:
            place.judged = place.clash = None
        if place.seen is None or place.seen == place.judged:
            return False
        return self._first or place.seen == before

    def _holder(self, name: str, place: _Place) -> _Place | None:
        """The place that serves this name and stands before `place`."""
        ordered = self._ordered()
        return next((other for other in ordered[: ordered.index(place)] if other.name == name), None)

    def _judge(self, place: _Place) -> None:
        """Open what lies in a place and serve it, or refuse it with a line in the log."""
        assert place.seen is not None  # it is due
        place.judged, place.reason, place.clash = place.seen, "", None
        try:
            # Links are followed once, so that one that is switched meanwhile does not mix two bundles.
            bundle = open_bundle(place.folder.resolve())
            if place.served and bundle.hash == place.served.bundle.hash:
                for name in bundle.sums:  # a restart would meet what was altered
                    bundle.verified(name)
                return
            holder = self._holder(bundle.spec.name, place)
            if holder:
                self._refuse_name(place, holder)
                return
            # Engines keep buffers for each thread that calls them: this one's, of the probes, end with it.
            with ThreadPoolExecutor(1, thread_name_prefix="open") as apart:
                place.served = apart.submit(self._open, bundle).result()
            level = logging.INFO if self._first else logging.WARNING  # an exchange under way is worth a line
            logger.log(level, "%s is served: %s, %s", place.folder, place.name, place.served.choice.why)
        except MaskserveError as error:
            self._refuse(place, str(error))
        except Exception as error:
            said = f"{place.folder} could not be opened ({type(error).__name__}); the service's log holds the reason."
            self._refuse(place, said, error)

    def _open(self, bundle: Bundle) -> Served:
        segmenter = self._load(bundle)
        self._warm(segmenter)
        assert segmenter.choice is not None  # `load` made it
        return Served(bundle, segmenter, segmenter.choice)

    def _refuse(self, place: _Place, reason: str, unexpected: Exception | None = None) -> None:
        place.reason = reason
        stays = "; the old one stays" if place.served else ""
        logger.error("the bundle in %s cannot be served%s: %s", place.folder, stays, reason, exc_info=unexpected)

    def _refuse_name(self, place: _Place, holder: _Place) -> None:
        place.clash = holder.name
        self._refuse(
            place,
            f"{place.folder} holds a bundle of the name {holder.name!r}, as does {holder.folder}, which is served; "
            "export one of them under another name, or take it away.",
        )

    def _publish(self) -> None:
        """Show callers what the places hold."""
        holders: dict[str, _Place] = {}
        for place in self._ordered():
            if place.name is None:
                continue
            holder = holders.setdefault(place.name, place)
            if holder is not place:  # one that stands before it has come, or come back
                place.served = None
                if not place.gone:
                    self._refuse_name(place, holder)
        served = {name: holders[name].served for name in sorted(holders)}
        refused = [place.reason for place in self._ordered() if place.reason]
        reason, patience = f"There is no bundle in {self._folder}; put one there.", self._patience()
        if self._trouble:
            reason = f"{self._folder} cannot be looked into ({self._trouble})."
        elif refused:
            more = f" (This is the first of {len(refused)} bundles that are refused.)" if len(refused) > 1 else ""
            reason, patience = refused[0] + more, None
        self._view = _View({name: one for name, one in served.items() if one}, reason, patience)

    def _patience(self) -> int | None:
        """Seconds after which something that is put into the folder may be served."""
        return math.ceil(2 * self._every) or None
