"""How the bundled voice is made: one command a stage, each of which can be stopped at any moment and goes on later.

    python -m accelerator.reference.training data | codec | tokens | language-model | pack | evaluate  --work DIR

Nothing here is imported when the engine runs. `docs/voice.md` tells the whole story.
"""
