"""What an adapter uses of MockingBird's `synthesizer.inference`; of Chinese it knows four words."""

import json
import re

import numpy as np
import torch
from models.synthesizer.hparams import hparams
from models.synthesizer.tacotron import Tacotron

SYMBOLS = "_~abcdefghijklmnopqrstuvwxyz1234567890!'(),-.:;? "
WORDS = dict(zip("你好世界", ("ni3", "hao3", "shi4", "jie4"), strict=True))


class Style:
    TONE3 = 8


def lazy_pinyin(text, style, neutral_tone_with_five):
    assert style == Style.TONE3
    assert neutral_tone_with_five
    return [WORDS.get(piece, piece) for piece in re.findall("[你好世界]|[^你好世界]+", text)]


def text_to_sequence(text, cleaners):
    assert list(cleaners) == ["lowered"]
    return [*(SYMBOLS.index(char) for char in text.lower() if char in SYMBOLS[2:]), 1]


class Synthesizer:
    hparams = hparams

    def __init__(self, path, verbose=True):
        self.model_fpath, self.verbose, self._model, self.device = path, verbose, None, torch.device("cpu")

    def is_loaded(self):
        return self._model is not None

    def load(self):
        for file in list(self.model_fpath.parent.rglob("*.json"))[:1]:
            vars(hparams).update(json.loads(file.read_text()))
        self._model = Tacotron(len(SYMBOLS)).to(self.device)
        self._model.load_state_dict(torch.load(self.model_fpath)["model_state"])
        self._model.eval()
        print("a synthesizer of", self.model_fpath.name)

    def synthesize_spectrograms(
        self, texts, embeddings, return_alignments=False, style_idx=0, min_stop_token=5, steps=2000
    ):
        if not self.is_loaded():
            self.load()
        texts = [" ".join(lazy_pinyin(each, style=Style.TONE3, neutral_tone_with_five=True)) for each in texts]
        sequences = [text_to_sequence(each, hparams.tts_cleaner_names) for each in texts]
        longest = max(map(len, sequences))
        _, mels, alignments = self._model.generate(
            torch.tensor([each + [0] * (longest - len(each)) for each in sequences]),
            torch.tensor(np.stack(embeddings)).float(),
            style_idx=style_idx,
            min_stop_token=min_stop_token,
            steps=steps,
        )
        found = []
        for mel in mels.detach().numpy():
            while np.max(mel[:, -1]) < hparams.tts_stop_threshold:
                mel = mel[:, :-1]
            found.append(mel)
        return (found, alignments) if return_alignments else found
