"""Model registry: loads, verifies and hot-reloads the served bundles of one worker.

A thread checks the folders periodically. A new or changed bundle is opened, verified, probed and warmed up, and then replaces
the old one in one assignment; until then, and if it is rejected, the old one is served. Workers do not communicate: each
checks the folders itself, and all reach the same result.
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
from models.errors import MaskserveError, quoted
from models.inference.segmenter import Segmenter
from service.bundle_stat import BundleStat, stat_bundle
from service.errors import MalformedRequestError, ModelNotServedError, NotReadyError

logger = logging.getLogger("maskserve")

# Scans in a row in which a folder must be missing before its bundle is unloaded: `models.bundle.bundle_writer` replaces a bundle
# by two renames, with a moment between them.
MAX_MISSING_SCANS = 2
STOP_TIMEOUT_SECONDS = 2.0  # how long a stop waits for the thread: compiling a graph cannot be interrupted


@dataclass(frozen=True)
class LoadedModel:
    """A bundle that is open and verified, and whose probes passed on this machine."""

    bundle: Bundle
    segmenter: Segmenter
    choice: EngineChoice


class _Snapshot(NamedTuple):
    """The state that requests see: replaced as a whole, never modified, so that it is consistent without a lock."""

    models: dict[str, LoadedModel]
    reason: str = "The bundle is being loaded and verified. Retry in a moment."
    retry_after: int | None = 1


@dataclass
class _FolderState:
    """The thread's state of one folder."""

    folder: Path
    last_stat: BundleStat | None = None  # at the last scan
    handled_stat: BundleStat | None = None  # when it was last loaded or rejected; nothing to do until it changes
    model: LoadedModel | None = None
    reason: str = ""  # why the latest bundle in it is not served
    name_conflict: str | None = None  # the name of its bundle, if a folder before it serves that name already
    missing_scans: int = 0  # in a row

    @property
    def name(self) -> str | None:
        return self.model.bundle.spec.name if self.model else None

    @property
    def is_gone(self) -> bool:
        return self.missing_scans >= MAX_MISSING_SCANS


class ModelRegistry:
    """Serves the bundles in a folder, and follows its changes."""

    def __init__(
        self,
        folder: Path,
        load: Callable[[Bundle], Segmenter],
        warm_up: Callable[[Segmenter], None],
        interval_seconds: float,
        default_model: str | None = None,
    ) -> None:
        """Nothing is loaded before `start`.

        Args:
            folder: a bundle, or a folder whose subfolders are bundles; subfolders with a leading dot are skipped.
            load: opens the network of a bundle and verifies its probes; an exception rejects the bundle.
            warm_up: called with each new segmenter before it serves.
            interval_seconds: seconds between scans of the folder; 0 is one scan, at the start.
            default_model: the model of requests that name none; a single bundle needs no default.
        """
        self._folder, self._default_model = folder, default_model
        self._load, self._warm_up = load, warm_up
        self._interval_seconds = interval_seconds
        self._snapshot = _Snapshot({})
        self._states: dict[Path, _FolderState] = {}  # only the thread uses this and the next two
        self._scan_error, self._is_first_scan = "", True
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model-registry", daemon=True)

    def start(self) -> None:
        """Start the thread that loads the bundles and follows the folder."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following the folder; loaded models stay loaded."""
        self._stop_event.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_SECONDS)

    def get(self, name: str | None = None) -> LoadedModel:
        """The model of this name, or of NAME@HASH as in X-Model; None is the default model.

        Raises: NotReadyError, with the reason, during the first scan or if nothing is served; ModelNotServedError;
        MalformedRequestError if one of several models must be named.
        """
        served = self._ready_snapshot().models
        if name is None and self._default_model is None and len(served) > 1:
            raise MalformedRequestError(
                f"Several models are served. Choose one with the parameter `model`: {', '.join(served)}."
            )
        wanted = name if name is not None else self._default_model or next(iter(served))
        if wanted in served:
            return served[wanted]
        if name is None:
            raise NotReadyError(
                f"The default model {quoted(wanted)} is not served. Served models: {', '.join(served)}.",
                self._retry_after(),
            )
        base, _, digits = name.rpartition("@")
        if base in served and digits:
            if served[base].bundle.hash.startswith(digits):
                return served[base]
            raise ModelNotServedError(
                f"The model {quoted(base)} with hash {digits[:12]} is no longer served: it was replaced."
            )
        raise ModelNotServedError(f"There is no model {quoted(name[:80])}. Served models: {', '.join(served)}.")

    def loaded_models(self) -> list[LoadedModel]:
        """All served models, sorted by name; none while `check_ready` raises."""
        return list(self._snapshot.models.values())

    def check_ready(self) -> None:
        """Raises: NotReadyError, with the reason, if nothing is served."""
        self._ready_snapshot()

    def _ready_snapshot(self) -> _Snapshot:
        snapshot = self._snapshot
        if not snapshot.models:
            raise NotReadyError(snapshot.reason, snapshot.retry_after)
        return snapshot

    def refresh(self) -> None:
        """Scan the folders once and update the served models; the thread calls this periodically."""
        try:
            self._scan()
        except Exception as error:  # a dead thread would leave the service as it is forever
            logger.exception("%s could not be scanned", self._folder)
            self._scan_error = type(error).__name__
        self._is_first_scan = False
        self._publish()

    def _watch(self) -> None:
        self.refresh()
        while self._interval_seconds and not self._stop_event.wait(self._interval_seconds):
            self.refresh()

    def _scan(self) -> None:
        folders = self._find_folders()
        if folders is None:  # a volume that is missing for a moment is no reason to unload models
            return
        for folder in folders:
            self._states.setdefault(folder, _FolderState(folder))
        for state in self._states.values():
            state.missing_scans = 0 if state.folder in folders else state.missing_scans + 1
        for state in self._sorted_states():
            if self._stop_event.is_set():
                return
            if not state.missing_scans and self._needs_update(state):
                self._update_folder(state)
                if not self._is_first_scan:
                    self._publish()
        for state in [state for state in self._states.values() if state.is_gone]:
            del self._states[
                state.folder
            ]  # only now: a bundle that was moved to another folder is served without a gap
            if state.model:
                logger.warning("%s was removed; its bundle %s is no longer served", state.folder, quoted(state.name))

    def _find_folders(self) -> list[Path] | None:
        """The folders that may hold a bundle; None if the root cannot be read."""
        root, self._scan_error = self._folder, ""
        known = self._states.get(root)
        try:
            if (known and known.model) or any(
                (root / name).is_file() for name in (CHECKSUM_FILE, SPEC_FILE, MODEL_FILE)
            ):
                return [root]  # also while it is missing
            return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except OSError as error:
            self._scan_error = error.strerror or type(error).__name__
            return None

    def _sorted_states(self) -> list[_FolderState]:
        """Sorted by folder name: of bundles with the same name the first is served. Removed folders are last."""
        return sorted(self._states.values(), key=lambda state: (state.is_gone, state.folder.name))

    def _needs_update(self, state: _FolderState) -> bool:
        """Whether the folder has changed, and the change is complete: a folder that still changes is being copied."""
        before, state.last_stat = state.last_stat, stat_bundle(state.folder)
        if state.name_conflict and self._name_owner(state.name_conflict, state) is None:
            state.handled_stat = state.name_conflict = None
        if state.last_stat is None or state.last_stat == state.handled_stat:
            return False
        return self._is_first_scan or state.last_stat == before

    def _name_owner(self, name: str, state: _FolderState) -> _FolderState | None:
        """The folder before `state` that serves this name."""
        ordered = self._sorted_states()
        return next((other for other in ordered[: ordered.index(state)] if other.name == name), None)

    def _update_folder(self, state: _FolderState) -> None:
        """Load the bundle in a folder and serve it, or reject it and log the reason."""
        assert state.last_stat is not None  # `_needs_update` was true
        state.handled_stat, state.reason, state.name_conflict = state.last_stat, "", None
        try:
            # Links are resolved once: a link that is switched meanwhile must not mix two bundles.
            bundle = open_bundle(state.folder.resolve())
            if state.model and bundle.hash == state.model.bundle.hash:
                for name in bundle.checksums:  # a restart would reject altered files
                    bundle.verify_file(name)
                return
            holder = self._name_owner(bundle.spec.name, state)
            if holder:
                self._reject_duplicate_name(state, holder)
                return
            # Engines keep buffers for each thread that calls them: the buffers of the probes are freed with this thread.
            with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
                state.model = pool.submit(self._load_model, bundle).result()
            level = logging.INFO if self._is_first_scan else logging.WARNING  # a replacement at run time is logged
            logger.log(level, "%s is served: %s, %s", state.folder, state.name, state.model.choice.reason)
        except MaskserveError as error:
            self._reject(state, str(error))
        except Exception as error:
            reason = (
                f"{state.folder} could not be loaded ({type(error).__name__}). The log of the service has the reason."
            )
            self._reject(state, reason, error)

    def _load_model(self, bundle: Bundle) -> LoadedModel:
        segmenter = self._load(bundle)
        self._warm_up(segmenter)
        assert segmenter.choice is not None  # `load` sets it
        return LoadedModel(bundle, segmenter, segmenter.choice)

    def _reject(self, state: _FolderState, reason: str, unexpected: Exception | None = None) -> None:
        state.reason = reason
        kept = "; the old one is kept" if state.model else ""
        logger.error("the bundle in %s cannot be served%s: %s", state.folder, kept, reason, exc_info=unexpected)

    def _reject_duplicate_name(self, state: _FolderState, holder: _FolderState) -> None:
        state.name_conflict = holder.name
        self._reject(
            state,
            f"{state.folder} holds a bundle named {quoted(holder.name)}, as does {holder.folder}, which is served. "
            "Export one of them under another name (`maskserve export --name NAME`), or remove it.",
        )

    def _publish(self) -> None:
        """Make the models of all folders visible to requests."""
        holders: dict[str, _FolderState] = {}
        for state in self._sorted_states():
            if state.name is None:
                continue
            holder = holders.setdefault(state.name, state)
            if holder is not state:  # a folder before it was added, or is back
                state.model = None
                if not state.is_gone:
                    self._reject_duplicate_name(state, holder)
        served = {name: holders[name].model for name in sorted(holders)}
        rejected = [state.reason for state in self._sorted_states() if state.reason]
        reason, retry_after = f"There is no bundle in {self._folder}. Export one into it.", self._retry_after()
        if self._scan_error:
            reason = f"{self._folder} cannot be read ({self._scan_error})."
        elif rejected:
            more = f" (The first of {len(rejected)} rejected bundles.)" if len(rejected) > 1 else ""
            reason, retry_after = rejected[0] + more, None
        self._snapshot = _Snapshot({name: one for name, one in served.items() if one}, reason, retry_after)

    def _retry_after(self) -> int | None:
        """Seconds after which a bundle that is put into the folder may be served."""
        return math.ceil(2 * self._interval_seconds) or None
