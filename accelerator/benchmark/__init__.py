"""Compares an engine as it ships, PyTorch with a right-sized cache, and ONNX Runtime at each precision, in one run.

    result = run(BenchOptions(size="s1-mini"), report=print)   # JSON-able
    Path("benchmark.md").write_text(to_markdown(result))
    Path("benchmark.svg").write_text(to_svg(result))

    plan        what is measured, and in which order
    runner      phases, rounds, the result          process   one arm's process, as seen from here
    worker      that process                        arms      an engine under one setting, and its measures
    statistics  figures and ratios                  machine   what it ran on
    report      Markdown                            chart     SVG
    record      when, on what and how undisturbed      page  current records as the tables of a page
    serving*    another comparison: batches, streams, voices, long text, callers and memory of one engine
    feed_forward  VITS, and its pool of threads; codec  a codec's decoder, alone
    peers*      Piper and Kokoro beside other runtimes with the same voice
    quality     how well the voice in the box speaks; listening  any other trained voice (hearing, sentences, verdict)
    yardstick   a third: the language model's steps beside llama.cpp's, which llama_cpp drives

Every arm lives in a process of its own, so that no arm's threads, allocator or memory disturb another's, and so that
one that dies is only that. Rounds are interleaved: one measure, all arms, then the next measure. Only one process works
at a time. Importing this loads neither torch nor onnxruntime; the parent process never does.
"""

from .chart import to_svg
from .plan import BenchOptions
from .report import to_markdown
from .runner import run

__all__ = ["BenchOptions", "run", "to_markdown", "to_svg"]
