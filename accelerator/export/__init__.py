"""How a component gets into the cache: built, traced or written as a graph, then proven against the engine's answers.

`component` takes one export from key to cache, `proof` defines what is compared, `graph/` writes ONNX models from
arrays. Nothing in here runs a model, except ONNX Runtime within a proof.
"""
