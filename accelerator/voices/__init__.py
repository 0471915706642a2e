"""Where encoded voices are kept between processes and machines.

    recording ──> pipeline/voices.py: memory ──> VoiceStore (bytes by key) ──> encode
                                                  ├── DiskVoices    entries of the artifact cache
                                                  └── RedisVoices   a server that machines share

A store knows nothing of voices: `packed` makes one value of a voice's arrays, and believes none that it reads before
its digest was checked. `places` opens what options and `ACCELERATOR_VOICES` name, and `bounded` waits for no server
longer than it should.
"""

from .disk import DiskVoices
from .redis import RedisVoices
from .store import VoiceStore

__all__ = ["DiskVoices", "RedisVoices", "VoiceStore"]
