"""Speech to text (multipart forms) and text to speech."""

from __future__ import annotations

import io
import math
import re
import struct
import wave
from collections.abc import AsyncGenerator
from typing import Any

from localcluster.engine import checks, serving, tokens
from localcluster.engine.answers import Answer
from localcluster.engine.checks import Body
from localcluster.engine.engine import Engine
from localcluster.engine.errors import ApiError, InvalidBody
from localcluster.engine.http import Request, Response, json_response

_RATE = 16_000
_MAX_PARTS = 64
_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")


async def transcriptions(engine: Engine, request: Request) -> Response:
    """The words of a recording."""
    return await _listen(engine, request, "transcribe")


async def translations(engine: Engine, request: Request) -> Response:
    """The words of a recording, in English."""
    return await _listen(engine, request, "translate")


async def speech(engine: Engine, request: Request) -> Response:
    """A text as sound: a tone of 60 ms for each of its tokens, as WAV or raw 16-bit samples."""
    body = checks.json_body(request)
    text = checks.text(body, "input")
    checks.required(body, "voice")
    serving.model_name(engine, body)
    wanted = str(body.get("response_format") or "wav")
    if wanted not in ("wav", "pcm"):
        raise ApiError(f"The simulated engine speaks wav and pcm, not {wanted}", param="response_format")
    count = tokens.count(text)
    if not count or count > engine.arguments.max_model_len:
        raise ApiError(f"input has {count} tokens; it may have 1 to {engine.arguments.max_model_len}", param="input")
    async with serving.working(engine, request, count) as work:
        async for _ in engine.steps(work, [[]]):
            pass
    tone = [round(9000 * math.sin(math.tau * 440 * place / _RATE)) for place in range(_RATE * 60 // 1000)]
    samples = struct.pack(f"<{len(tone)}h", *tone) * min(count, 2000)
    if wanted == "pcm":
        return Response(body=samples, content_type="audio/pcm")
    sound = io.BytesIO()
    with wave.open(sound, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(_RATE)
        writer.writeframes(samples)
    return Response(body=sound.getvalue(), content_type="audio/wav")


async def _listen(engine: Engine, request: Request, task: str) -> Response:
    form = form_fields(request)
    file = form.get("file")
    if file is None:
        raise InvalidBody("missing", "body.file", "Field required", None)
    body: Body = {name: value.decode(errors="replace") for name, value in form.items() if name != "file"}
    name = serving.model_name(engine, body)
    wanted = str(body.get("response_format") or "json")
    if wanted not in _FORMATS:
        raise InvalidBody("literal_error", "body.response_format", f"Input should be one of {_FORMATS}", wanted)
    seconds = _seconds(file)
    said = f"These are {len(file)} bytes of sound, heard by a simulated model."
    pieces = tokens.split(said)
    serving.ordered_fault(request)
    answers = [Answer([], pieces)]
    if body.get("stream", "").lower() in ("true", "1"):
        return serving.openai_stream(_chunks(engine, request, name, task, answers))
    async with serving.working(engine, request, math.ceil(seconds * 50)) as work:
        (one,) = await serving.collect(engine, work, answers)
    if wanted == "text":
        return Response(body=one.content.encode(), content_type="text/plain; charset=utf-8")
    if wanted in ("srt", "vtt"):
        return Response(body=_subtitles(one.content, seconds, wanted), content_type="text/plain; charset=utf-8")
    spent = {"type": "duration", "seconds": math.ceil(seconds)}
    if wanted == "json":
        return json_response({"text": one.content, "usage": spent})
    segment = {
        "id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": one.content, "tokens": tokens.encode(one.content),
        "temperature": 0.0, "avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0,
    }  # fmt: skip
    language = body.get("language") or "en"
    whole = {"text": one.content, "language": language, "duration": str(seconds), "task": task, "segments": [segment]}
    return json_response({**whole, "words": None, "usage": spent})


async def _chunks(
    engine: Engine, request: Request, name: str, task: str, answers: list[Answer]
) -> AsyncGenerator[bytes, None]:
    head = {
        "id": serving.new_id("trsc-" if task == "transcribe" else "trsl-"),
        "object": "transcription.chunk" if task == "transcribe" else "translation.chunk",
        "created": serving.now(),
        "model": name,
    }
    left = len(answers[0].content)
    async with serving.working(engine, request, 0) as work:
        async for event in serving.events(engine, work, answers):
            left -= 1
            choice: dict[str, Any] = {"delta": {"content": event.text}, "finish_reason": None if left else "stop"}
            yield serving.data({**head, "choices": [choice]})


def form_fields(request: Request) -> dict[str, bytes]:
    """The fields of a multipart form; of a name that stands twice the last."""
    kind = request.headers.get("content-type", "")
    boundary = re.search(r'boundary="?([^";,]+)"?', kind)
    if not kind.lower().startswith("multipart/form-data") or not boundary:
        raise InvalidBody("missing", "body.file", "Field required", None)
    parts = (b"\r\n" + request.body).split(b"\r\n--" + boundary[1].encode())
    if len(parts) > _MAX_PARTS or not parts[-1].startswith(b"--"):
        raise ApiError("There was an error parsing the body")
    fields = {}
    for part in parts[1:-1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        if not separator or not name:
            raise ApiError("There was an error parsing the body")
        fields[name[1].decode(errors="replace")] = content
    return fields


def _seconds(file: bytes) -> float:
    """How long the recording is; of other formats than WAV at 16 KB a second."""
    try:
        with wave.open(io.BytesIO(file)) as sound:
            return float(sound.getnframes() / (sound.getframerate() or 1))
    except (wave.Error, EOFError):
        return len(file) / 16_000


def _subtitles(text: str, seconds: float, wanted: str) -> bytes:
    mark = "." if wanted == "vtt" else ","
    whole, millis = int(seconds), int(seconds % 1 * 1000)
    end = f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{mark}{millis:03d}"
    cue = f"00:00:00{mark}000 --> {end}\n{text}\n"
    return (f"WEBVTT\n\n{cue}" if wanted == "vtt" else f"1\n{cue}").encode()
