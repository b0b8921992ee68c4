"""Import of ONNX graphs: reading, running the original, rewriting to a bundle's inputs and outputs."""
