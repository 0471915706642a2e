"""The command line of the training scripts: one command for all of it, and one a stage."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from ..errors import ReferenceEngineError
from .pause import Pause


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m accelerator.reference.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.add_argument("--work", type=Path, required=True, help="where corpus, checkpoints and results live")
        sub.add_argument("--pause-file", type=Path, help="sleep while this file exists")
        sub.add_argument("--seed", type=int, default=0)
        return sub

    everything = command("all", "corpus, codec, tokens, language model, decoder, voice.safetensors, in this order")
    everything.add_argument("--hours", type=float, default=30.0, help="of speech to learn from")
    everything.add_argument("--device", default="cpu")
    everything.add_argument("--threads", type=int, default=2)
    everything.add_argument("--compile", action="store_true", dest="compiled", help="needs a C++ compiler")

    data = command("data", "make the corpus: flite's voices speak generated sentences")
    data.add_argument("--hours", type=float, default=10.0)
    data.add_argument("--processes", type=int, default=2)
    data.add_argument("--expect", type=Path, help="a manifest that must come out again, clip for clip")

    early = "accept a checkpoint before its schedule's end"
    for name, about in (
        ("codec", "train the codec"),
        ("decoder", "train the codec's decoder on; codes stay as they are"),
        ("language-model", "train the language model on the tokens"),
    ):
        sub = command(name, f"{about}; a second run goes on where the first one stopped")
        sub.add_argument("--steps", type=int, help="the whole schedule's length (fixed by the first run)")
        sub.add_argument(
            "--reschedule", action="store_true", help="let --steps change the length of a run that has begun"
        )
        sub.add_argument("--batch", type=int, help="fixed by the first run")
        sub.add_argument("--minutes", type=float, help="stop with a checkpoint after so long")
        sub.add_argument("--checkpoint-minutes", type=float, default=5.0)
        sub.add_argument("--device", default="cpu")
        sub.add_argument("--threads", type=int, default=2)
        if name == "decoder":
            sub.add_argument("--unfinished", action="store_true", help=early)
        if name == "codec":
            sub.add_argument(
                "--checkpoint",
                dest="voice",
                type=Path,
                help="begin with this packed voice's, and learn the books it lacks",
            )
        if name == "language-model":
            sub.add_argument(
                "--compile", action="store_true", dest="compiled", help="with torch.compile: needs a C++ compiler"
            )
            sub.add_argument(
                "--checkpoint", dest="voice", type=Path, help="begin with this packed voice's, which may be smaller"
            )

    command("adopt", "begin with a packed voice's codec").add_argument(
        "--checkpoint", dest="voice", type=Path, required=True
    )
    tokens = command("tokens", "encode the corpus with the trained codec")
    tokens.add_argument("--unfinished", action="store_true", help=early)
    command("plot", "draw the loss curves as SVG")
    pack = command("pack", "write voice.safetensors, at most 16 MB")
    pack.add_argument("--output", type=Path)
    pack.add_argument("--unfinished", action="store_true", help=early)
    evaluate = command("evaluate", "word error rate, mel-cepstral distortion and speaker similarity, held out")
    evaluate.add_argument("--sentences", type=int, default=120)
    evaluate.add_argument("--system", choices=("flite", "codec", "voice"), default="flite")
    evaluate.add_argument("--by-reference", action="store_true", help="imitate held-out clips instead of using names")
    evaluate.add_argument(
        "--checkpoint", dest="voice", type=Path, help="a packed voice; without it, DIR/voice.safetensors"
    )

    options = vars(parser.parse_args(arguments))
    logger = logging.getLogger(__package__)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        logger.info("%s", _run(options.pop("command"), options))
    except ReferenceEngineError as error:
        logger.error("%s", error)
        return 1
    finally:
        logger.removeHandler(handler)
    return 0


def _run(command: str, options: dict[str, Any]) -> object:
    """Only the asked stage is imported: each needs other packages."""
    options["pause"] = Pause(options.pop("pause_file"))
    work = options.pop("work")
    match command:
        case "all":
            return _all(work, **options)
        case "data":
            from .corpus import make

            return make(work, **options)
        case "codec":
            from .codec import train_codec

            return train_codec(work, **options)
        case "adopt":
            from .codec import adopt

            return adopt(work, options["voice"])
        case "decoder":
            from .codec import train_decoder

            return train_decoder(work, **options)
        case "tokens":
            from .tokens import tokenize

            return tokenize(work, pause=options["pause"], unfinished=options["unfinished"])
        case "language-model":
            from .language_model import train_language_model

            return train_language_model(work, **options)
        case "plot":
            from .plot import plot

            return plot(work)
        case "pack":
            from .pack import pack

            return pack(work, output=options["output"], unfinished=options["unfinished"])
        case _:
            from .evaluate import evaluate

            return evaluate(work, **options)


def _all(
    work: Path, *, hours: float, device: str, threads: int, compiled: bool, seed: int, pause: Pause
) -> dict[str, object]:
    """Every stage that is not done yet. One that was stopped ends it: the next would say that it needs the whole."""
    from .codec import train_codec, train_decoder
    from .corpus import make
    from .evaluate import evaluate
    from .language_model import train_language_model
    from .pack import pack
    from .plot import plot
    from .tokens import tokenize

    how: dict[str, Any] = {"device": device, "threads": threads, "seed": seed, "pause": pause}
    make(work, hours=hours, processes=threads, seed=seed, pause=pause)
    train_codec(work, **how)
    tokenize(work, pause=pause)
    train_language_model(work, compiled=compiled, **how)
    train_decoder(work, **how)
    voice = pack(work)
    return {"voice": str(voice), "losses": str(plot(work)), **evaluate(work, system="voice", seed=seed, pause=pause)}


if __name__ == "__main__":
    sys.exit(main())
