"""Ready-made parts from which adapters are assembled: a language model's graphs, a traced module.

A part brings its components (what is exported), its proof and its loaders; engines add weights and rules. `graphs` and
`modules` define what is stored and import nothing that runs or judges it: an edit there causes new exports, an edit
elsewhere only new proofs. Nothing in here may know which engine it is for.
"""
