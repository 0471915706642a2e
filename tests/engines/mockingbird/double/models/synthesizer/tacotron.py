"""MockingBird's Tacotron by the names of its layers, small: the attention is kept in a layer, as there."""

import torch
import torch.nn.functional as F
from models.synthesizer.hparams import hparams
from torch import nn

SPEAKER, STYLE, HEADS = 12, 16, 2


class PreNet(nn.Module):
    def __init__(self, width, wide, narrow):
        super().__init__()
        self.fc1, self.fc2, self.p = nn.Linear(width, wide), nn.Linear(wide, narrow), hparams.tts_dropout

    def forward(self, x):
        for layer in (self.fc1, self.fc2):
            x = F.dropout(F.relu(layer(x)), self.p, training=True)
        return x


class BatchNormConv(nn.Module):
    def __init__(self, before, after, size, relu=True):
        super().__init__()
        self.conv = nn.Conv1d(before, after, size, padding=size // 2, bias=False)
        self.bnorm, self.relu = nn.BatchNorm1d(after), relu

    def forward(self, x):
        x = self.conv(x)
        return self.bnorm(F.relu(x) if self.relu else x)


class Highway(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.W1, self.W2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        gate = torch.sigmoid(self.W2(x))
        return gate * F.relu(self.W1(x)) + (1.0 - gate) * x


class CBHG(nn.Module):
    def __init__(self, before, width, after):
        super().__init__()
        self.conv1d_bank = nn.ModuleList(BatchNormConv(before, width, size) for size in (1, 2, 3))
        self.maxpool = nn.MaxPool1d(2, stride=1, padding=1)
        self.conv_project1 = BatchNormConv(3 * width, width, 3)
        self.conv_project2 = BatchNormConv(width, after, 3, relu=False)
        self.highway_mismatch = after != width
        if self.highway_mismatch:
            self.pre_highway = nn.Linear(after, width, bias=False)
        self.highways = nn.ModuleList([Highway(width)])
        self.rnn = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x):
        bank = torch.cat([conv(x)[:, :, : x.size(-1)] for conv in self.conv1d_bank], dim=1)
        y = self.conv_project2(self.conv_project1(self.maxpool(bank)[:, :, : x.size(-1)]))
        y = (y + x).transpose(1, 2)
        if self.highway_mismatch:
            y = self.pre_highway(y)
        for highway in self.highways:
            y = highway(y)
        return self.rnn(y)[0]


class Encoder(nn.Module):
    def __init__(self, symbols):
        super().__init__()
        self.embedding, self.pre_net, self.cbhg = nn.Embedding(symbols, 10), PreNet(10, 14, 14), CBHG(14, 14, 14)

    def forward(self, symbols):
        return self.cbhg(self.pre_net(self.embedding(symbols)).transpose(1, 2))


class Heads(nn.Module):
    def __init__(self, query, key):
        super().__init__()
        self.W_query, self.W_key, self.W_value = (nn.Linear(n, STYLE, bias=False) for n in (query, key, key))

    def forward(self, query, key):
        split = [torch.stack(each.chunk(HEADS, dim=2)) for each in (self.W_query(query), self.W_key(key))]
        value = torch.stack(self.W_value(key).chunk(HEADS, dim=2))
        scores = (split[0] @ split[1].transpose(2, 3) / key.shape[2] ** 0.5).softmax(dim=3)
        return torch.cat((scores @ value).unbind(0), dim=2)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Parameter(torch.randn(10, STYLE // HEADS))
        self.attention = Heads(STYLE // 2 + (SPEAKER if hparams.use_ser_for_gst else 0), STYLE // HEADS)

    def forward(self, x):
        return self.attention(x[:, None], torch.tanh(self.embed)[None].expand(len(x), -1, -1))


class Style(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.stl = nn.Sequential(nn.Flatten(), nn.Linear(SPEAKER, 8), nn.BatchNorm1d(8)), Tokens()

    def forward(self, x, speaker):
        x = self.encoder(x)
        return self.stl(torch.cat([x, speaker], dim=-1) if hparams.use_ser_for_gst else x)


class LSA(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 7, padding=3)
        self.L, self.W, self.v = nn.Linear(4, width, bias=False), nn.Linear(width, width), nn.Linear(width, 1, False)
        self.cumulative = None

    def forward(self, keys, query, number, symbols):
        if number == 0:
            self.cumulative = torch.zeros(keys.shape[:2])
        place = self.L(self.conv(self.cumulative[:, None]).transpose(1, 2))
        energy = self.v(torch.tanh(self.W(query)[:, None] + keys + place))[..., 0] * (symbols != 0)
        scores = energy.softmax(dim=1)
        self.cumulative = self.cumulative + scores
        return scores[:, None]


class Decoder(nn.Module):
    max_r = 4

    def __init__(self, memory):
        super().__init__()
        self.register_buffer("r", torch.tensor(2, dtype=torch.int))
        self.n_mels = hparams.num_mels
        self.prenet, self.attn_net = PreNet(self.n_mels, 16, 16), LSA(8)
        self.attn_rnn, self.rnn_input = nn.GRUCell(memory + 16, 8), nn.Linear(memory + 8, 24)
        self.res_rnn1, self.res_rnn2 = nn.LSTMCell(24, 24), nn.LSTMCell(24, 24)
        self.mel_proj = nn.Linear(24, self.n_mels * self.max_r, bias=False)
        self.stop_proj = nn.Linear(memory + 24, 1)

    def forward(self, memory, keys, frame, hidden, cells, context, number, symbols):
        x = torch.cat([context, self.prenet(frame)], dim=-1)
        attention = self.attn_rnn(x, hidden[0])
        scores = self.attn_net(keys, attention, number, symbols)
        context = (scores @ memory)[:, 0]
        x = self.rnn_input(torch.cat([context, attention], dim=1))
        h1, c1 = self.res_rnn1(x, (hidden[1], cells[0]))
        x = x + h1
        h2, c2 = self.res_rnn2(x, (hidden[2], cells[1]))
        x = x + h2
        mel = self.mel_proj(x).view(len(x), self.n_mels, self.max_r)[:, :, : self.r]
        stop = torch.sigmoid(self.stop_proj(torch.cat([x, context], dim=1)))
        return mel, scores, (attention, h1, h2), (c1, c2), context, stop


class Tacotron(nn.Module):
    def __init__(self, symbols):
        super().__init__()
        self.speaker_embedding_size, memory = SPEAKER, 14 + SPEAKER + (STYLE if hparams.use_gst else 0)
        self.encoder, self.encoder_proj = Encoder(symbols), nn.Linear(memory, 8, bias=False)
        if hparams.use_gst:
            self.gst = Style()
        self.decoder = Decoder(memory)
        self.postnet, self.post_proj = CBHG(hparams.num_mels, 18, hparams.num_mels), nn.Linear(18, hparams.num_mels)

    def generate(self, x, speaker_embedding, steps=2000, style_idx=0, min_stop_token=5):
        self.eval()
        rows, length = x.shape
        parts = [self.encoder(x), speaker_embedding[:, None].expand(-1, length, -1)]
        if hparams.use_gst:
            if 0 <= style_idx < 10:
                token = torch.tanh(self.gst.stl.embed)[style_idx][None, None]
                style = self.gst.stl.attention(torch.zeros(1, 1, self.gst.stl.attention.W_query.in_features), token)
            else:
                style = self.gst(torch.zeros(rows, 1, SPEAKER), speaker_embedding)
            parts.append(style.expand(rows, length, -1))
        memory = torch.cat(parts, dim=-1)
        keys, context = self.encoder_proj(memory), torch.zeros(rows, memory.shape[2])
        hidden, cells = tuple(torch.zeros(rows, n) for n in (8, 24, 24)), (torch.zeros(rows, 24),) * 2
        mels, scores = [], []
        for t in range(0, steps, int(self.decoder.r)):
            frame = mels[-1][:, :, -1] if t else torch.zeros(rows, self.decoder.n_mels)
            mel, score, hidden, cells, context, stop = self.decoder(memory, keys, frame, hidden, cells, context, t, x)
            mels.append(mel)
            scores.append(score)
            if (stop * 10 > min_stop_token).all() and t > 10:
                break
        mel = torch.cat(mels, dim=2)
        return mel, self.post_proj(self.postnet(mel)).transpose(1, 2), torch.cat(scores, 1)
