"""How many bugs do the tests find? `make mutation-score` puts 32 bugs into the code, one at a time, and runs the tests.

Each bug is a replacement of a text in one file. The tests of its files run until the first failure, in a copy of the
tree; the working tree is not touched. Prints what is caught, what survives, and the fraction that is caught.

    python -m tests.mutation_score [NUMBER ...] [--root DIR] [--table FILE]

NUMBER: only these bugs, counted from 1. `--root`: another tree, for example an older commit. `--table`: a JSON file of its
bugs, a list of objects with the fields of `Mutation`. Exits with 2 if a bug cannot be put into the code, because a file is
missing or does not hold the text exactly once, or if the tests fail without any bug.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis", "dist")
MAX_SECONDS = 900  # per bug; tests that hang have found it
MARKERS = "not slow and not browser and not container"  # as in `make test`


class Mutation(NamedTuple):
    """A bug: `old` becomes `new` in `file`. `tests` are the files that should find it."""

    bug: str
    file: str
    old: str
    new: str
    tests: Sequence[str]

    def problem(self, root: Path) -> str | None:
        """Why the bug cannot be put into the tree at `root`; None if it can."""
        missing = [name for name in (self.file, *self.tests) if not (root / name).is_file()]
        if missing:
            return f"{self.bug}: {', '.join(missing)} does not exist"
        count = (root / self.file).read_text().count(self.old)
        return None if count == 1 else f"{self.bug}: {self.file} holds {self.old!r} {count} times, expected once"


MUTATIONS = [
    Mutation(
        "an image is augmented in the same way in every epoch",
        "training/data/loader.py",
        "generator = np.random.default_rng((self.seed, AUGMENT_STREAM, item.sequence_number))",
        "generator = np.random.default_rng((self.seed, AUGMENT_STREAM, item.image_index))",
        ["tests/training/data/test_loader.py", "tests/training/engine/test_trainer.py"],
    ),
    Mutation(
        "validation in training mode",
        "training/engine/trainer.py",
        "network.eval()",
        "network.train()",
        ["tests/training/engine/test_trainer.py", "tests/training/engine/test_resume.py"],
    ),
    Mutation(
        "gradients are never clipped",
        "training/engine/trainer.py",
        "if config.grad_clip:",
        "if False and config.grad_clip:",
        ["tests/training/engine/test_trainer.py", "tests/training/engine/test_step.py"],
    ),
    Mutation(
        "the first of equal validations is not the best",
        "training/engine/trainer.py",
        "score > state.best_score",
        "score >= state.best_score",
        ["tests/training/engine/test_trainer.py", "tests/training/engine/test_resume.py"],
    ),
    Mutation(
        "biases and norms decay",
        "training/engine/optim.py",
        "parameter.ndim > 1",
        "parameter.ndim > 0",
        ["tests/training/engine/test_optim.py"],
    ),
    Mutation(
        "averaged weights start slowly",
        "training/engine/step.py",
        "min(decay, (1 + step) / (10 + step))",
        "decay",
        ["tests/training/engine/test_step.py", "tests/training/engine/test_trainer.py"],
    ),
    Mutation(
        "Dice counts absent classes",
        "training/engine/losses.py",
        "present.sum().clamp(min=1)",
        "len(present)",
        ["tests/training/engine/test_losses.py"],
    ),
    Mutation(
        "a resumed run starts with a new optimizer",
        "training/engine/checkpoint.py",
        'self.optimizer.load_state_dict(content["optimizer"])',
        'content["optimizer"]',
        ["tests/training/engine/test_resume.py", "tests/training/engine/test_trainer.py"],
    ),
    Mutation(
        "a warped mask is class 0 outside the image",
        "training/augment/cpu.py",
        "cv2.INTER_NEAREST, (IGNORE_INDEX,)",
        "cv2.INTER_NEAREST, (0,)",
        ["tests/training/augment/test_augment.py", "tests/training/augment/test_parity.py"],
    ),
    Mutation(
        "intervals of 90% instead of 95%",
        "training/metrics/resampling.py",
        "np.percentile(column, tails)",
        "np.percentile(column, [5, 95])",
        [
            "tests/training/metrics/test_bootstrap.py",
            "tests/training/test_evaluate.py",
            "tests/training/test_compare.py",
        ],
    ),
    Mutation(
        "the width of boundaries is rounded down",
        "training/metrics/boundary_iou.py",
        "round(DILATION_RATIO",
        "int(DILATION_RATIO",
        ["tests/training/metrics/test_boundary_iou.py"],
    ),
    Mutation(
        "int8 may lose 5 points of mIoU instead of 0.5",
        "training/freezing/quantise.py",
        "MAX_MIOU_DROP = 0.5",
        "MAX_MIOU_DROP = 5.0",
        ["tests/training/freezing/test_quantise.py", "tests/training/freezing/test_export.py"],
    ),
    Mutation(
        "halved masks shift by a quarter of a pixel",
        "models/imaging/nearest.py",
        "nearest[ties[::2]] -= 1",
        "nearest[ties] -= 1",
        ["tests/models/inference/test_segmenter.py"],
    ),
    Mutation(
        "overlapping tiles count equally up to their borders",
        "models/inference/tiling.py",
        "(distance * 8 / length)",
        "(distance * 0 / length)",
        ["tests/models/inference/test_tiling.py"],
    ),
    Mutation(
        "min_confidence leaves out what reaches it",
        "models/outputs/select.py",
        "np.where(confidence >= options.min_confidence",
        "np.where(confidence > options.min_confidence",
        ["tests/models/outputs/test_select.py"],
    ),
    Mutation(
        "changed files of a bundle are accepted",
        "models/bundle.py",
        "file_sha256(path) != checksums[name]",
        "not checksums[name]",
        ["tests/models/test_bundle.py"],
    ),
    Mutation(
        "upload slots are never given back",
        "service/admission.py",
        "self._free_uploads += 1",
        "self._free_uploads += 0",
        ["tests/service/test_admission.py", "tests/service/test_limits.py"],
    ),
    Mutation(
        "the scheme of an API key must be written Bearer",
        "service/auth.py",
        'scheme.lower() == "bearer"',
        'scheme == "Bearer"',
        ["tests/service/test_auth.py"],
    ),
    Mutation(
        "the client ignores Retry-After",
        "maskserve/client/retries.py",
        "error.retry_after * random",
        "0 * error.retry_after * random",
        ["tests/maskserve/client/test_retries.py"],
    ),
    Mutation(
        "a resumed prediction segments finished images again",
        "maskserve/predict/runner.py",
        "if image.path not in state.paths",
        "if image.path",
        ["tests/maskserve/predict/test_resume.py", "tests/maskserve/predict/test_manifest.py"],
    ),
    Mutation(
        "bytes of a file name that are not UTF-8 are written as surrogates",
        "models/errors.py",
        "if 0xDC80 <= code <= 0xDCFF",
        "if 0xDC80 <= code < 0xDC80",
        ["tests/models/test_escape.py", "tests/maskserve/test_names_in_output.py"],
    ),
    Mutation(
        "cells of a table are sent to the terminal as they are",
        "models/console.py",
        "segment.text if segment.control else escape_control_characters(segment.text)",
        "segment.text",
        ["tests/models/test_escape.py"],
    ),
    Mutation(
        "messages double backslashes",
        "models/errors.py",
        "f\"'{escape_line(value)}'\" if isinstance(value, str)",
        "repr(value) if isinstance(value, str)",
        ["tests/models/test_escape.py", "tests/maskserve/test_names_in_output.py"],
    ),
    Mutation(
        "a mask that changed under the same name is not noticed",
        "training/data/scan/sample_stats.py",
        "\\t{stats.digest}\\t{stats.mask_digest}\\n",
        "\\t{stats.digest}\\n",
        ["tests/training/test_end_to_end.py"],
    ),
    Mutation(
        "a resume accepts images that changed under the same names",
        "training/train.py",
        "if changed := run.images.changed_splits(report.content_digests()):",
        "if changed := run.images.changed_splits({}):",
        ["tests/training/engine/test_resume.py"],
    ),
    Mutation(
        "images that changed between two evaluations are paired",
        "training/compare.py",
        "return same_masks and all(",
        "return same_masks or all(",
        ["tests/training/test_compare.py"],
    ),
    Mutation(
        "the mean without the background includes it",
        "training/metrics/confusion.py",
        "foreground = ~background if background.any()",
        "foreground = background | True if background.any()",
        ["tests/training/metrics/test_confusion.py", "tests/training/metrics/test_bootstrap.py"],
    ),
    Mutation(
        "a run that is no better than the largest class passes without a word",
        "training/metrics/learning.py",
        "best_miou <= baseline + MIN_MIOU_GAIN",
        "best_miou <= baseline - MIN_MIOU_GAIN",
        ["tests/training/engine/test_trainer.py", "tests/training/reports/test_report.py"],
    ),
    Mutation(
        "the prefix of any proxy is believed",
        "service/forwarding.py",
        "PATH_PREFIX_PATTERN.fullmatch(value) and is_trusted_proxy(peer, self.trusted_proxies)",
        "PATH_PREFIX_PATTERN.fullmatch(value)",
        ["tests/service/test_forwarding.py"],
    ),
    Mutation(
        "a training uses every core beside other programs",
        "models/thread_count.py",
        "round(len(os.sched_getaffinity(0)) - others)",
        "round(len(os.sched_getaffinity(0)) - 0 * others)",
        ["tests/models/test_thread_count.py"],
    ),
    Mutation(
        "the client takes ports modulo 65536",
        "maskserve/client/connection.py",
        "not 1 <= parsed.port <= MAX_PORT",
        "not 1 <= parsed.port",
        ["tests/maskserve/client/test_errors.py", "tests/maskserve/client/test_client.py"],
    ),
    Mutation(
        "a second training writes into the same run folder",
        "training/run_folder.py",
        "            lock_file(descriptor)\n",
        "",
        ["tests/training/engine/test_resume.py"],
    ),
]


def copy_tree(root: Path, folder: Path) -> Path:
    """Copy a tree into `folder` without its environment and caches. `shared/` beside it is linked."""
    tree = folder / "tree"
    shutil.copytree(root, tree, ignore=IGNORED)
    shared = root.resolve().parent / "shared"
    if shared.is_dir():
        (folder / "shared").symlink_to(shared)
    return tree


def run_tests(tree: Path, tests: Iterable[str], max_seconds: float = MAX_SECONDS) -> tuple[bool, str]:
    """Run test files up to the first failure. Returns: whether all passed, and the first failure or the last line."""
    # PYTHONPATH comes before an editable install of another tree, also in processes that tests start. Without bytecode, a
    # change of the same size within a second is seen.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", MARKERS, "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: pytest and what it started
        process.communicate()
        return False, f"no end after {max_seconds} s"
    if process.returncode not in (0, 1, 2):  # 2: a test file cannot be imported
        raise SystemExit(f"pytest ended with {process.returncode}:\n{output}")
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    lines = output.strip().splitlines() or [""]
    return process.returncode == 0, failures[0] if failures else lines[-1]


def measure_score(root: Path, mutations: Sequence[Mutation]) -> float:
    """Print which mutations the tests catch. Returns the fraction that is caught, 0..1.

    Raises: SystemExit with code 2 if a mutation cannot be applied, or the tests fail without any.
    """
    problems = [problem for mutation in mutations if (problem := mutation.problem(root))]
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        raise SystemExit(2)
    with tempfile.TemporaryDirectory(prefix="mutation-score-") as folder:
        tree = copy_tree(root, Path(folder))
        all_tests = sorted({test for mutation in mutations for test in mutation.tests})
        passed, detail = run_tests(tree, all_tests, max_seconds=len(all_tests) * MAX_SECONDS)
        if not passed:
            print(f"The tests fail without any bug: {detail}", file=sys.stderr)
            raise SystemExit(2)
        caught = 0
        for mutation in mutations:
            file, start = tree / mutation.file, time.monotonic()
            original = file.read_text()
            file.write_text(original.replace(mutation.old, mutation.new))
            passed, detail = run_tests(tree, mutation.tests)
            file.write_text(original)
            caught += not passed
            by = "" if passed else f", by {detail}"
            word = "SURVIVED" if passed else "caught"
            print(f"{word:8} {time.monotonic() - start:5.0f} s  {mutation.file}: {mutation.bug}{by}", flush=True)
    print(f"{caught} of {len(mutations)} bugs caught: {caught / len(mutations):.0%}")
    return caught / len(mutations)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Put bugs into the code and count how many the tests find.")
    parser.add_argument("numbers", nargs="*", type=int, help="only these bugs, counted from 1", metavar="NUMBER")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to test (default: this one)")
    parser.add_argument("--table", type=Path, help="a JSON file of bugs (default: those in this file)")
    options = parser.parse_args()
    mutations = MUTATIONS
    if options.table:
        mutations = [Mutation(**entry) for entry in json.loads(options.table.read_text())]
    measure_score(options.root, [mutations[number - 1] for number in options.numbers] or mutations)


if __name__ == "__main__":
    main()
