"""Every engine runs the frozen graph as the live network would."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import architectures
from models.architectures.network import Network
from models.bundle import MODEL, Bundle, open_bundle
from models.engines import ENGINES
from models.engines.openvino import choose_precision, has_bf16
from models.errors import BundleError, EngineError
from models.segmenter import agreement
from tests.bundles import drawing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def live(bundle: Bundle) -> Network:
    """The network in torch, built again around the bundle's weights."""
    made = bundle.spec.architecture
    network = architectures.build(made.name, len(bundle.spec.classes), **made.options).eval()
    network.load_state_dict(load_file(bundle.weights))
    return network


def pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.stack([drawing(height, width, seed=seed) for seed in range(count)])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 128, 192), (3, 131, 97), (1, 37, 213), (5, 65, 63)])
def test_f32_equals_the_live_network(engine: str, shape: tuple[int, int, int], bundle: Bundle, live: Network) -> None:
    images = pictures(*shape)
    labels, logits = ENGINES[engine](bundle, "cpu", "f32", 0)(images)
    with torch.inference_mode():
        live_labels, live_logits = (tensor.numpy() for tensor in live(torch.from_numpy(images)))
    assert (labels.dtype, labels.shape) == (np.uint8, shape)
    assert (logits.dtype, logits.shape) == (np.float32, live_logits.shape)
    assert len(np.unique(live_labels)) > 1
    assert agreement(labels, live_labels) >= 0.999
    np.testing.assert_allclose(logits, live_logits, rtol=1e-3, atol=1e-3 * np.abs(live_logits).max())


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_are_the_callers_own(engine: str, bundle: Bundle) -> None:
    run = ENGINES[engine](bundle, "cpu", "f32", 0)
    first, second = pictures(2, 64, 96)[:, None]
    labels, logits = run(first)
    kept = labels.copy(), logits.copy()
    run(second)
    np.testing.assert_array_equal(labels, kept[0])
    np.testing.assert_array_equal(logits, kept[1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [0, 1, 2])
def test_four_threads_at_once(engine: str, threads: int, bundle: Bundle) -> None:
    run = ENGINES[engine](bundle, "cpu", "f32", threads)
    images = [drawing(64 + 64 * (seed % 2), 64 + 64 * (seed % 3), seed)[None] for seed in range(24)]
    alone = [run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, images))
    for (labels, logits), (expected, scores) in zip(together, alone, strict=True):
        assert agreement(labels, expected) >= 0.999
        np.testing.assert_allclose(logits, scores, rtol=1e-3, atol=1e-3 * np.abs(scores).max())


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_machine_lacks(engine: str, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="'abacus'"):
        ENGINES[engine](bundle, "abacus", "f32", 0)
    with pytest.raises(EngineError, match="'f7'"):
        ENGINES[engine](bundle, "cpu", "f7", 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_is_none(engine: str, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"no graph")
    with pytest.raises(BundleError, match=rf"{MODEL}: .*: \S"):
        ENGINES[engine](replace(bundle, folder=tmp_path), "cpu", "f32", 0)


def test_bf16_where_the_cpu_has_it(bundle: Bundle, live: Network) -> None:
    if not has_bf16():
        with pytest.raises(EngineError, match="no bfloat16"):
            ENGINES["openvino"](bundle, "cpu", "bf16", 0)
        return
    images = pictures(2, 128, 192)
    labels, _ = ENGINES["openvino"](bundle, "cpu", "bf16", 0)(images)
    with torch.inference_mode():
        assert agreement(labels, live(torch.from_numpy(images))[0].numpy()) > 0.97  # random weights: the hard case


@pytest.mark.parametrize(("measured", "good"), [({}, False), ({"bf16": 0.99}, False), ({"bf16": 0.999}, True)])
def test_auto_takes_bf16_where_it_was_measured_as_good(measured: dict[str, float], good: bool, bundle: Bundle) -> None:
    known = replace(bundle, spec=bundle.spec.model_copy(update={"parity": measured}))
    assert choose_precision(known, "auto") == ("bf16" if good and has_bf16() else "f32")
