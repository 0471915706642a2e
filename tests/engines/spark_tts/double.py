"""What an adapter uses of spark-tts-lib 0.2.1, around a tiny Qwen2 and a codec of a few layers."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from tests.engines.spark_tts import toy

__all__ = ["RATE", "SparkTTS"]

RATE, HOP, WIDTH, MELS = 16_000, 320, 12, 8
GENDERS, LEVELS = ("female", "male"), ("very_low", "low", "moderate", "high", "very_high")


class Layer(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(super().forward(x))


class Projection(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class Positions(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Wav2Vec2(nn.Module):
    """Frames of 400 samples, 320 apart; then layers, of which the engine averages three."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(do_stable_layer_norm=True)
        self.convolutions, self.feature_projection = nn.Conv1d(1, 16, 400, 320), Projection(16, WIDTH)
        self.encoder = nn.Module()
        self.encoder.pos_conv_embed = Positions(WIDTH, WIDTH, 3, padding=1)
        self.encoder.layers = nn.ModuleList(Layer(WIDTH, WIDTH) for _ in range(18))

    def feature_extractor(self, values: Tensor) -> Tensor:
        return torch.relu(self.convolutions(values[:, None]))

    def forward(self, values: Tensor) -> Any:
        x, _ = self.feature_projection(self.feature_extractor(values).transpose(1, 2))
        states = [x + self.encoder.pos_conv_embed(x)]  # type: ignore[operator]
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            states.append(layer(states[-1]))
        return SimpleNamespace(hidden_states=states)


class Quantizer(nn.Module):
    codebook_size = toy.SEMANTIC_IDS

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Embedding(self.codebook_size, WIDTH)

    def tokenize(self, z: Tensor) -> Tensor:
        return (z.transpose(1, 2) @ self.codebook.weight.T).argmax(-1)

    def detokenize(self, codes: Tensor) -> Tensor:
        return self.codebook(codes).transpose(1, 2)


class Speaker(nn.Module):
    """A code for each of some stretches of the mel bands."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = SimpleNamespace(codebook_size=toy.GLOBAL_IDS)
        self.perceiver_sampler = SimpleNamespace(latents=torch.zeros(toy.GLOBALS, 2))
        self.scores = nn.Linear(MELS, toy.GLOBALS * toy.GLOBAL_IDS)
        self.voices = nn.Embedding(toy.GLOBAL_IDS, WIDTH)
        self.project = nn.Linear(toy.GLOBALS * WIDTH, WIDTH)

    def tokenize(self, mels: Tensor) -> Tensor:
        scores = self.scores(mels.mean(1)).reshape(1, 1, toy.GLOBALS, toy.GLOBAL_IDS)
        return scores.argmax(-1).to(torch.int32)

    def detokenize(self, codes: Tensor) -> Tensor:
        return self.project(self.voices(codes[:, 0]).flatten(1))


class Prenet(nn.Conv1d):
    def forward(self, x: Tensor, voice: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * torch.sigmoid(voice)[..., None]


class Mel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"n_fft": 1024, "win_length": 640, "hop_length": HOP, "window": torch.hann_window(640)}
        ways = {"pad": 0, "normalized": False, "power": 1, "center": True, "pad_mode": "reflect"}
        self.spectrogram = SimpleNamespace(**sizes, **ways)
        self.mel_scale = SimpleNamespace(fb=torch.rand(513, MELS))

    def forward(self, audio: Tensor) -> Tensor:
        own = self.spectrogram
        spectrum = torch.stft(audio, own.n_fft, own.hop_length, own.win_length, own.window, return_complex=True)
        return (spectrum.abs().transpose(1, 2) @ self.mel_scale.fb).transpose(1, 2)


class BiCodec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.speaker_encoder = (
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
            Quantizer(),
            Speaker(),
        )
        self.prenet = Prenet(WIDTH, WIDTH, 5, padding=2)
        up = nn.ConvTranspose1d(WIDTH, 4, 640, stride=HOP, padding=160)
        self.decoder = nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, 7, padding=3), up, nn.Conv1d(4, 1, 7, padding=3), nn.Tanh()
        )
        self.mel_transformer = Mel()

    def tokenize(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        semantics = self.quantizer.tokenize(self.encoder(batch["feat"].transpose(1, 2)))
        return semantics, self.speaker_encoder.tokenize(self.mel_transformer(batch["ref_wav"]).transpose(1, 2))

    def detokenize(self, semantics: Tensor, codes: Tensor) -> Tensor:
        voice = self.speaker_encoder.detokenize(codes)
        return self.decoder(self.prenet(self.quantizer.detokenize(semantics), voice) + voice[..., None])


class BiCodecTokenizer:
    def __init__(self) -> None:
        torch.manual_seed(3)
        self.config = {"sample_rate": RATE, "latent_hop_length": HOP, "volume_normalize": True}
        self.model, self.feature_extractor = BiCodec().eval(), Wav2Vec2().eval()

    def processor(self, audio: Any, sampling_rate: int, return_tensors: str, padding: bool) -> Any:
        scaled = np.asarray((audio - np.mean(audio)) / np.std(audio), np.float32)[None]
        return SimpleNamespace(input_values=torch.from_numpy(scaled) if return_tensors == "pt" else scaled)

    def get_ref_clip(self, audio: np.ndarray) -> np.ndarray:
        length = 6 * RATE
        return np.tile(audio, length // len(audio) + 1)[:length]

    def process_audio(self, path: Any) -> tuple[np.ndarray, Tensor]:
        audio, rate = soundfile.read(path)
        assert rate == RATE
        audio = audio if audio.ndim == 1 else audio[:, 0]
        audio = audio * (0.5 / np.abs(audio).max())
        return audio, torch.from_numpy(self.get_ref_clip(audio))[None].float()

    def extract_wav2vec2_features(self, audio: np.ndarray) -> Tensor:
        values = self.processor(audio, sampling_rate=RATE, return_tensors="pt", padding=True).input_values
        states = self.feature_extractor(values).hidden_states
        return (states[11] + states[14] + states[16]) / 3

    def tokenize(self, path: Any) -> tuple[Tensor, Tensor]:
        audio, clip = self.process_audio(path)
        semantics, codes = self.model.tokenize({"feat": self.extract_wav2vec2_features(audio), "ref_wav": clip})
        return codes, semantics

    def detokenize(self, codes: Tensor, semantics: Tensor) -> np.ndarray:
        return self.model.detokenize(semantics, codes[:, None]).detach().squeeze().numpy()


class SparkTTS:
    __module__, __qualname__ = "spark_tts_lib.SparkTTS", "SparkTTS"

    def __init__(self, tokens: Any, model: Any) -> None:
        self.device, self.sample_rate = torch.device("cpu"), RATE
        self.tokenizer, self.model, self.audio_tokenizer = tokens, model, BiCodecTokenizer()

    def process_prompt(self, text: str, prompt_speech_path: Any, prompt_text: str | None = None) -> tuple[str, Tensor]:
        codes, semantics = self.audio_tokenizer.tokenize(prompt_speech_path)
        named = "".join(f"<|bicodec_global_{code}|>" for code in codes.squeeze())
        prompt = (
            f"<|task_tts|><|start_content|>{prompt_text or ''}{text}<|end_content|>"
            f"<|start_global_token|>{named}<|end_global_token|>"
        )
        if prompt_text is not None:
            prompt += "<|start_semantic_token|>" + "".join(f"<|bicodec_semantic_{c}|>" for c in semantics.squeeze())
        return prompt, codes

    def process_prompt_control(self, gender: str, pitch: str, speed: str, text: str) -> str:
        assert gender in GENDERS
        assert pitch in LEVELS
        assert speed in LEVELS
        style = (
            f"<|gender_{GENDERS.index(gender)}|><|pitch_label_{LEVELS.index(pitch)}|>"
            f"<|speed_label_{LEVELS.index(speed)}|>"
        )
        content = f"<|start_content|>{text}<|end_content|>"
        return f"<|task_controllable_tts|>{content}<|start_style_label|>{style}<|end_style_label|>"

    @torch.no_grad()
    def inference(
        self,
        text: str,
        prompt_speech_path: Any = None,
        prompt_text: str | None = None,
        gender: str | None = None,
        pitch: str | None = None,
        speed: str | None = None,
        temperature: float = 0.8,
        top_k: float = 50,
        top_p: float = 0.95,
    ) -> np.ndarray:
        if gender is not None:
            prompt = self.process_prompt_control(gender, pitch, speed, text)  # type: ignore[arg-type]
        else:
            prompt, codes = self.process_prompt(text, prompt_speech_path, prompt_text)
        inputs = self.tokenizer([prompt], return_tensors="pt").to(self.device)
        sampling = {"do_sample": True, "top_k": top_k, "top_p": top_p, "temperature": temperature}
        answer = self.model.generate(**inputs, max_new_tokens=3000, **sampling)
        reply = self.tokenizer.decode(answer[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        if gender is not None:
            codes = torch.tensor([[[int(c) for c in re.findall(r"bicodec_global_(\d+)", reply)]]])
        semantics = torch.tensor([[int(c) for c in re.findall(r"bicodec_semantic_(\d+)", reply)]]).long()
        return self.audio_tokenizer.detokenize(codes.squeeze(0), semantics)
