"""Sentences to calibrate with, and to prove with: all sounds of English, calm, asking and short."""

__all__ = ["SENTENCES"]

SENTENCES = (  # the second half is for the proof
    "The old boat left the harbour before sunrise.",
    "Would you please measure this judge's green chair?",
    "Yes!",
    "Thick fog, pale as milk, was moving over the southern hills.",
    "Five voices sang about a treasure that nobody found.",
    "She keeps both of her shoes near the kitchen door.",
    "No, wait.",
    "Charge the batteries, and follow the orange signs to the garage.",
)
