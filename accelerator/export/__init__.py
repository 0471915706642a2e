"""How a component gets into the cache: built, traced or written as a graph, then proven against the engine's answers.

`component` is the way of one export, `proof` what is compared; `graph/` turns arrays into ONNX models.
Nothing in here runs a model but ONNX Runtime within a proof.
"""
