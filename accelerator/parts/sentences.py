"""Sentences to calibrate with, and to prove with: all sounds of English, calm, asking and short."""

__all__ = ["SENTENCES"]

SENTENCES = (  # the last third is for the proof
    "The old boat left the harbour before sunrise.",
    "Would you please measure this judge's green chair?",
    "Yes!",
    "Thick fog, pale as milk, was moving over the southern hills.",
    "Five voices sang about a treasure that nobody found.",
    "She keeps both of her shoes near the kitchen door.",
    "Charge the batteries, and follow the orange signs to the garage.",
    "Three hundred and forty people waited in line; nobody complained.",
    "No, wait.",
    "A quiet young painter bought six jars of yellow ink.",
    "Why should the whole village pay for one broken bridge?",
    "He threw the rope, but it fell short and vanished in the dark water.",
)
