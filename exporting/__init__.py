"""A trained network as a folder that needs nothing of this project: ONNX, Python and a page."""
