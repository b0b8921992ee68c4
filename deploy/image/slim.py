"""Removes files that serving does not need from a virtual environment, in the build step that fills it.

python slim.py /app/venv

Prints each pattern without a match: the package may have changed. On other processors some files do not exist.
"""

import shutil
import sys
from pathlib import Path

# Globs under site-packages. The network runs on OpenVINO's CPU plugin, from ONNX or its own IR.
UNUSED_PATTERNS = (
    "openvino/libs/libopenvino_intel_gpu_plugin.so",
    "openvino/libs/cache.json",  # of the GPU plugin
    "openvino/libs/libopenvino_intel_npu_plugin*.so",
    "openvino/libs/libopenvino_auto_plugin.so",
    "openvino/libs/libopenvino_auto_batch_plugin.so",
    "openvino/libs/libopenvino_hetero_plugin.so",
    "openvino/libs/libopenvino_tensorflow_frontend.so*",
    "openvino/libs/libopenvino_tensorflow_lite_frontend.so*",
    "openvino/libs/libopenvino_pytorch_frontend.so*",
    "openvino/libs/libopenvino_paddle_frontend.so*",
    "openvino/libs/libopenvino_jax_frontend.so*",
    "openvino/libs/libopenvino_gguf_frontend.so*",
    "openvino/include",
    "openvino/cmake",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.a",
    "**/include/**/*.h",
    "numpy/**/tests",
)


def remove_unused(venv: Path) -> None:
    """Delete the files and print their total size."""
    (site,) = venv.glob("lib/python3*/site-packages")
    total = 0
    for pattern in UNUSED_PATTERNS:
        paths = list(site.glob(pattern))
        if not paths:
            print(f"slim.py: no file matches {pattern}")
        for path in paths:
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            total += sum(file.stat().st_size for file in files)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"slim.py: {total / 1e6:.0f} MB removed")


if __name__ == "__main__":
    remove_unused(Path(sys.argv[1]))
