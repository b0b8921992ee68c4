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

from models.bundle import CHECKSUM_FILE, MODEL_FILE, SPEC_FILE, Bundle, open_bundle
from models.engines.selection import EngineChoice
from models.errors import MaskserveError
from models.inference.segmenter import Segmenter
from service.bundle_stat import BundleStat, stat_bundle
from service.errors import MalformedRequestError, ModelNotServedError, NotReadyError

logger = logging.getLogger("maskserve")

# Looks at which a folder must be missing before its bundle is let go: a new one comes by two renames, with a moment
# between them (`models/bundle.py:writing`).
MAX_MISSING_SCANS = 2
STOP_TIMEOUT_SECONDS = 2.0  # how long a stop waits for the thread: a graph that is being compiled cannot be interrupted


@dataclass(frozen=True)
class LoadedModel:
    """A bundle that is open, verified, and has answered its probes on this machine."""

    bundle: Bundle
    segmenter: Segmenter
    choice: EngineChoice


class _Snapshot(NamedTuple):
    """What callers see: never changed, only replaced, so that no lock is needed and no half state is seen."""

    models: dict[str, LoadedModel]
    reason: str = "The bundle is being opened and its probes answered; try again in a moment."
    retry_after: int | None = 1


@dataclass
class _FolderState:
    """What the thread knows of one folder."""

    folder: Path
    last_stat: BundleStat | None = None  # at the last look
    handled_stat: BundleStat | None = (
        None  # when it was last served or refused: until that changes there is nothing to do
    )
    model: LoadedModel | None = None
    reason: str = ""  # why what was there last is not served
    name_conflict: str | None = None  # the name that it may not have, because one before it has it
    missing_scans: int = 0  # looks

    @property
    def name(self) -> str | None:
        return self.model.bundle.spec.name if self.model else None

    @property
    def is_gone(self) -> bool:
        return self.missing_scans >= MAX_MISSING_SCANS


class ModelRegistry:
    """Opens what lies in a folder, and follows it."""

    def __init__(
        self,
        folder: Path,
        load: Callable[[Bundle], Segmenter],
        warm_up: Callable[[Segmenter], None],
        interval_seconds: float,
        default_model: str | None = None,
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            folder: a bundle, or a folder whose subfolders are bundles; those with a leading dot are passed over.
            load: opens a bundle's network and has its probes answered; what it raises refuses the bundle.
            warm: called with each new segmenter before it takes over.
            every: seconds between looks at the folder; 0 is one look, at the start.
            default: the name that is served where none is asked for; a bundle that is alone needs none.
        """
        self._folder, self._load, self._warm_up, self._interval_seconds, self._default_model = (
            folder,
            load,
            warm_up,
            interval_seconds,
            default_model,
        )
        self._snapshot = _Snapshot({})
        self._states: dict[Path, _FolderState] = {}  # the thread's own, as is the next
        self._scan_error, self._is_first_scan = "", True
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shelf", daemon=True)

    def start(self) -> None:
        """Begin to open everything, on a thread that then goes on looking."""
        self._thread.start()

    def stop(self) -> None:
        """No more looks; what is on the shelf stays there."""
        self._stop_event.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_SECONDS)

    def get(self, name: str | None = None) -> LoadedModel:
        """The bundle of this name, or of NAME@HASH as X-Model has it, or the one that is meant where none is given.

        Raises: NotReady while the first look is under way or where nothing is served, with the reason; UnknownModel;
        BadRequest where one of several must be named.
        """
        served = self._ready_snapshot().models
        if name is None and self._default_model is None and len(served) > 1:
            raise MalformedRequestError(f"Several models are served; say which by `model`: {', '.join(served)}.")
        wanted = name if name is not None else self._default_model or next(iter(served))
        if wanted in served:
            return served[wanted]
        if name is None:
            raise NotReadyError(
                f"The default model {wanted!r} is not served, but {', '.join(served)}.", self._retry_after()
            )
        base, _, digits = name.rpartition("@")
        if base in served and digits:
            if served[base].bundle.hash.startswith(digits):
                return served[base]
            raise ModelNotServedError(
                f"The model {base!r} of hash {digits[:12]} is not served any more: it was exchanged."
            )
        raise ModelNotServedError(f"There is no model {name[:80]!r}; served: {', '.join(served)}.")

    def loaded_models(self) -> list[LoadedModel]:
        """All that is served, by name; nothing while `check` raises."""
        return list(self._snapshot.models.values())

    def check_ready(self) -> None:
        """Raises: NotReady where nothing is served, with the reason."""
        self._ready_snapshot()

    def _ready_snapshot(self) -> _Snapshot:
        view = self._snapshot
        if not view.models:
            raise NotReadyError(view.reason, view.retry_after)
        return view

    def refresh(self) -> None:
        """Bring the shelf up to what lies in the folders now: what the thread does now and then."""
        try:
            self._scan()
        except Exception as error:  # a thread that dies in silence would leave the service as it is for ever
            logger.exception("%s could not be looked at", self._folder)
            self._scan_error = type(error).__name__
        self._is_first_scan = False
        self._publish()

    def _watch(self) -> None:
        self.refresh()
        while self._interval_seconds and not self._stop_event.wait(self._interval_seconds):
            self.refresh()

    def _scan(self) -> None:
        folders = self._find_folders()
        if folders is None:  # a volume that is away for a moment is no reason to serve nothing
            return
        for folder in folders:
            self._states.setdefault(folder, _FolderState(folder))
        for place in self._states.values():
            place.missing_scans = 0 if place.folder in folders else place.missing_scans + 1
        for place in self._sorted_states():
            if self._stop_event.is_set():
                return
            if not place.missing_scans and self._needs_update(place):
                self._update_folder(place)
                if not self._is_first_scan:
                    self._publish()
        for place in [place for place in self._states.values() if place.is_gone]:
            del self._states[place.folder]  # only now: what has moved to another folder is served without a gap
            if place.model:
                logger.warning("%s is gone; its bundle %r is no longer served", place.folder, place.name)

    def _find_folders(self) -> list[Path] | None:
        """The folders that may hold a bundle; None where there is nothing to be looked at."""
        root, self._scan_error = self._folder, ""
        known = self._states.get(root)
        try:
            if (known and known.model) or any(
                (root / name).is_file() for name in (CHECKSUM_FILE, SPEC_FILE, MODEL_FILE)
            ):
                return [root]  # also while it is away
            return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except OSError as error:
            self._scan_error = error.strerror or type(error).__name__
            return None

    def _sorted_states(self) -> list[_FolderState]:
        """By folder name, which decides between bundles of one name; those that are gone, last."""
        return sorted(self._states.values(), key=lambda place: (place.is_gone, place.folder.name))

    def _needs_update(self, place: _FolderState) -> bool:
        """Whether there is something new, and all of it: what still changes is being copied."""
        before, place.last_stat = place.last_stat, stat_bundle(place.folder)
        if place.name_conflict and self._name_owner(place.name_conflict, place) is None:
            place.handled_stat = place.name_conflict = None
        if place.last_stat is None or place.last_stat == place.handled_stat:
            return False
        return self._is_first_scan or place.last_stat == before

    def _name_owner(self, name: str, place: _FolderState) -> _FolderState | None:
        """The place that serves this name and stands before `place`."""
        ordered = self._sorted_states()
        return next((other for other in ordered[: ordered.index(place)] if other.name == name), None)

    def _update_folder(self, place: _FolderState) -> None:
        """Open what lies in a place and serve it, or refuse it with a line in the log."""
        assert place.last_stat is not None  # it is due
        place.handled_stat, place.reason, place.name_conflict = place.last_stat, "", None
        try:
            # Links are followed once, so that one that is switched meanwhile does not mix two bundles.
            bundle = open_bundle(place.folder.resolve())
            if place.model and bundle.hash == place.model.bundle.hash:
                for name in bundle.checksums:  # a restart would meet what was altered
                    bundle.verify_file(name)
                return
            holder = self._name_owner(bundle.spec.name, place)
            if holder:
                self._reject_duplicate_name(place, holder)
                return
            # Engines keep buffers for each thread that calls them: this one's, of the probes, end with it.
            with ThreadPoolExecutor(1, thread_name_prefix="open") as apart:
                place.model = apart.submit(self._load_model, bundle).result()
            level = logging.INFO if self._is_first_scan else logging.WARNING  # an exchange under way is worth a line
            logger.log(level, "%s is served: %s, %s", place.folder, place.name, place.model.choice.reason)
        except MaskserveError as error:
            self._reject(place, str(error))
        except Exception as error:
            said = f"{place.folder} could not be opened ({type(error).__name__}); the service's log holds the reason."
            self._reject(place, said, error)

    def _load_model(self, bundle: Bundle) -> LoadedModel:
        segmenter = self._load(bundle)
        self._warm_up(segmenter)
        assert segmenter.choice is not None  # `load` made it
        return LoadedModel(bundle, segmenter, segmenter.choice)

    def _reject(self, place: _FolderState, reason: str, unexpected: Exception | None = None) -> None:
        place.reason = reason
        stays = "; the old one stays" if place.model else ""
        logger.error("the bundle in %s cannot be served%s: %s", place.folder, stays, reason, exc_info=unexpected)

    def _reject_duplicate_name(self, place: _FolderState, holder: _FolderState) -> None:
        place.name_conflict = holder.name
        self._reject(
            place,
            f"{place.folder} holds a bundle of the name {holder.name!r}, as does {holder.folder}, which is served; "
            "export one of them under another name, or take it away.",
        )

    def _publish(self) -> None:
        """Show callers what the places hold."""
        holders: dict[str, _FolderState] = {}
        for place in self._sorted_states():
            if place.name is None:
                continue
            holder = holders.setdefault(place.name, place)
            if holder is not place:  # one that stands before it has come, or come back
                place.model = None
                if not place.is_gone:
                    self._reject_duplicate_name(place, holder)
        served = {name: holders[name].model for name in sorted(holders)}
        refused = [place.reason for place in self._sorted_states() if place.reason]
        reason, patience = f"There is no bundle in {self._folder}; put one there.", self._retry_after()
        if self._scan_error:
            reason = f"{self._folder} cannot be looked into ({self._scan_error})."
        elif refused:
            more = f" (This is the first of {len(refused)} bundles that are refused.)" if len(refused) > 1 else ""
            reason, patience = refused[0] + more, None
        self._snapshot = _Snapshot({name: one for name, one in served.items() if one}, reason, patience)

    def _retry_after(self) -> int | None:
        """Seconds after which something that is put into the folder may be served."""
        return math.ceil(2 * self._interval_seconds) or None
