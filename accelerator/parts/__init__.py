"""Ready-made parts that adapters are put together from: a language model's graphs, a traced module.

A part brings its components (what is exported), its proof and its loaders; engines add weights and rules. `graphs` and
`modules` say what is stored and import nothing that runs or judges it: an edit there exports anew, elsewhere it proves.
Nothing in here may know which engine it is for.
"""
