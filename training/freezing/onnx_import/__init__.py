"""ONNX graphs that were made elsewhere: what they say of themselves, how they run, how they come into a bundle."""
