"""The unmodified OpenAI and Anthropic SDKs, through the gateway and through a sidecar; the first request of every test
finds the model asleep.

What answers look like in detail is the engine's (tests/parts/localcluster_engine/test_sdks.py): here they must arrive.
"""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Iterator

import anthropic
import openai
import pytest

from greenthread.gpu import State
from tests.end_to_end.cluster import TWO, Cluster

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

MODEL = "talker"
#: Its Hugging Face id: SDKs name either.
HF_ID = "Qwen/Qwen3-1B-Thinking"
ARGUMENTS = ["--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASK = [{"role": "user", "content": "Hello there"}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": CITY}}]


@pytest.fixture(scope="module")
def talker(running: Cluster) -> Iterator[Cluster]:
    running.apply(MODEL, TWO, modelName=HF_ID, gpuMemoryUtilization="0.20", extraArgs=ARGUMENTS)
    yield running
    running.delete(MODEL)


@pytest.fixture(params=["model's address", "one address for all", "sidecar"])
def base(talker: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL without /v1; the model behind it sleeps, and serves afterwards."""
    talker.rest(MODEL)
    talker.begin()
    yield {
        "model's address": f"{talker.gateway}/{MODEL}",
        "one address for all": talker.gateway,
        "sidecar": talker.sidecar(MODEL),
    }[request.param]
    talker.until(lambda: talker.states(MODEL) == [State.SERVING], "the request woke the model")
    assert talker.history(MODEL) == [State.SLEEPING, State.WAKING, State.SERVING]
    talker.check()


@pytest.fixture
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="not-needed", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(base: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=base, api_key="not-needed", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK)
    assert "You said: Hello there" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > 10
    assert [model.id for model in client.models.list() if model.id in (MODEL, HF_ID)]


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=HF_ID, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "You said: Hello there" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert any(getattr(chunk.choices[0].delta, "reasoning", None) for chunk in chunks)
    assert len(chunks) > 10, "it did not come token by token"
    assert last.usage.completion_tokens > 10


def test_tools(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK_WEATHER, tools=TOOLS)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments).keys() == {"city"}
    with client.chat.completions.stream(model=MODEL, messages=ASK_WEATHER, tools=TOOLS) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments
    told = [
        *ASK_WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
    ]
    end = client.chat.completions.create(model=MODEL, messages=told, tools=TOOLS)
    assert "18 degrees" in end.choices[0].message.content


def test_json_schema(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}
    answer = client.chat.completions.create(model=MODEL, messages=ASK, response_format=wanted)
    assert isinstance(json.loads(answer.choices[0].message.content)["city"], str)


def test_image_part(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert "I was shown 1 image." in answer.choices[0].message.content


def test_completions(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model=MODEL, prompt="Once", max_tokens=4, stream=True))
    whole = client.completions.create(model=MODEL, prompt="Once", max_tokens=4)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text != ""


def test_responses(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="Hello there") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    answer = client.responses.create(model=MODEL, input="Hello there")
    assert answer.status == "completed"
    assert answer.output_text == text
    assert "You said: Hello there" in text


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=["a red fox", "a tax report"])
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.data[0].embedding != answer.data[1].embedding


def test_transcription(client: openai.OpenAI) -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(bytes(64_000))
    heard = client.audio.transcriptions.create(model=MODEL, file=("hello.wav", sound.getvalue()))
    assert heard.text.startswith(f"These are {len(sound.getvalue())} bytes of sound")


def test_speech(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model=MODEL, input="Hello there", voice="alloy", response_format="wav"
    ) as spoken:
        sound = spoken.read()
    with wave.open(io.BytesIO(sound)) as reader:
        assert reader.getnframes() > 1000


def test_messages(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model=MODEL, max_tokens=500, messages=ASK, system="Be kind")
    assert "You said: Hello there" in message.content[-1].text
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 10


def test_messages_stream(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model=MODEL, max_tokens=500, messages=ASK) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 5, "it did not come token by token"
    assert "You said: Hello there" in "".join(pieces)
    assert final.stop_reason == "end_turn"


def test_messages_tools(claude: anthropic.Anthropic) -> None:
    tools = [{"name": "get_weather", "description": "The weather", "input_schema": CITY}]
    message = claude.messages.create(model=MODEL, max_tokens=500, messages=ASK_WEATHER, tools=tools)
    call = message.content[-1]
    assert (message.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "get_weather")
    assert call.input.keys() == {"city"}


def test_count_tokens(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model=MODEL, messages=ASK)
    message = claude.messages.create(model=MODEL, max_tokens=500, messages=ASK)
    assert counted.input_tokens == message.usage.input_tokens > 0


def test_a_model_that_is_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="talkre"):
        client.chat.completions.create(model="talkre", messages=ASK)
    # at an address of its own the engine says so, and needs to be awake for it; at the common one the gateway does
    assert client.chat.completions.create(model=MODEL, messages=ASK).choices
