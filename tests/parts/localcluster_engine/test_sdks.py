"""The unmodified OpenAI and Anthropic SDKs talk to the simulated engine."""

from __future__ import annotations

import io
import json
import wave

import anthropic
import openai
import pytest

from tests.parts.localcluster_engine.conftest import RunningEngine

pytestmark = pytest.mark.processes
MODEL = "Qwen/Qwen3.5-35B-A3B"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]
ASK = [{"role": "user", "content": "Hello there"}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 18}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(shared: RunningEngine) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def claude(shared: RunningEngine) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=shared.url, api_key="unused", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    assert [(model.id, model.max_model_len) for model in client.models.list()] == [(MODEL, 4096), ("qwen", 4096)]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK)
    message = answer.choices[0].message
    assert message.content.startswith(f"This is {MODEL}, simulated. You said: Hello there")
    assert message.reasoning
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.chat.completions.create(model=MODEL, messages=ASK)
    assert again.choices[0].message.content == message.content


def test_max_tokens_is_honoured(client: openai.OpenAI) -> None:
    no_thoughts = {"chat_template_kwargs": {"enable_thinking": False}}
    short = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=3, extra_body=no_thoughts)
    assert short.choices[0].finish_reason == "length"
    assert short.choices[0].message.content == "This is Qwen"
    assert short.usage.completion_tokens == 3
    long = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=700, extra_body={"ignore_eos": True})
    assert long.usage.completion_tokens == 700
    cut_in_thought = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2)
    assert cut_in_thought.choices[0].message.content is None


def test_stop_strings(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK, stop=["simul"])
    assert answer.choices[0].message.content == f"This is {MODEL}, "
    assert answer.choices[0].stop_reason == "simul"


def test_chat_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ASK)
    stream = client.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    thought = "".join(getattr(chunk.choices[0].delta, "reasoning", None) or "" for chunk in chunks)
    assert thought == whole.choices[0].message.reasoning
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="qwen", messages=ASK, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    chunks = list(client.chat.completions.create(model="qwen", messages=ASK, n=3, stream=True))
    for choice in answer.choices:
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert mine[-1].finish_reason == "stop"


def test_tools_auto(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK_WEATHER, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments).keys() == {"city", "unit"}
    told = [
        *ASK_WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
    ]
    end = client.chat.completions.create(model=MODEL, messages=told, tools=TOOLS)
    assert "The tool says: 18 degrees" in end.choices[0].message.content
    other = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS)
    assert other.choices[0].message.tool_calls is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_tools_forced(client: openai.OpenAI, choice: object) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, tool_choice=choice)
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_tools_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=ASK_WEATHER, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["unit"] == "celsius"
    assert final.choices[0].finish_reason == "tool_calls"


def test_json_schema(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer = client.chat.completions.create(model=MODEL, messages=ASK, response_format=wanted)
    person = json.loads(answer.choices[0].message.content)
    assert person.keys() == {"name", "age"}
    assert person["age"] >= 18


def test_image_part(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert "I was shown 1 image." in answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 256


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2, logprobs=True, top_logprobs=1)
    assert len(answer.choices[0].logprobs.content) == 2


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["Once", "Twice"], max_tokens=4, echo=True)
    assert [choice.text[:4] for choice in answer.choices] == ["Once", "Twic"]
    chunks = list(client.completions.create(model=MODEL, prompt="Once", max_tokens=4, stream=True))
    single = client.completions.create(model=MODEL, prompt="Once", max_tokens=4)
    assert "".join(chunk.choices[0].text for chunk in chunks) == single.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hello there")
    assert answer.status == "completed"
    assert "You said: Hello there" in answer.output_text
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    short = client.responses.create(model=MODEL, input="Hello there", max_output_tokens=2)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_responses_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="Hello there") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == final.output_text


def test_responses_tools_and_schema(client: openai.OpenAI) -> None:
    tools = [{"type": "function", **WEATHER}]
    answer = client.responses.create(model=MODEL, input="The weather in Paris?", tools=tools)
    call = answer.output[-1]
    assert (call.type, call.name) == ("function_call", "get_weather")
    with client.responses.stream(model=MODEL, input="The weather in Paris?", tools=tools) as stream:
        kinds = [event.type for event in stream]
    assert "response.function_call_arguments.done" in kinds
    told = [
        {"role": "user", "content": "The weather in Paris?"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"},
    ]
    assert "18 degrees" in client.responses.create(model=MODEL, input=told, tools=tools).output_text
    text = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
    assert json.loads(client.responses.create(model=MODEL, input="Who?", text=text).output_text)["age"] >= 18


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=["a red fox", "the red fox", "quarterly tax report"])
    near, nearer, far = (item.embedding for item in answer.data)
    assert sum(value * value for value in near) == pytest.approx(1, abs=1e-5)

    def dot(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert dot(near, nearer) > dot(near, far) + 0.3
    plain = client.embeddings.create(model=MODEL, input="a red fox", encoding_format="float", dimensions=8)
    assert len(plain.data[0].embedding) == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_audio(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model=MODEL, input="Hello there", voice="alloy", response_format="wav"
    ) as spoken:
        sound = spoken.read()
    with wave.open(io.BytesIO(sound)) as reader:
        assert reader.getnframes() > 1000
    heard = client.audio.transcriptions.create(model=MODEL, file=("hello.wav", sound))
    assert heard.text == f"These are {len(sound)} bytes of sound, heard by a simulated model."
    assert client.audio.translations.create(model=MODEL, file=("hello.wav", sound)).text == heard.text
    text = client.audio.transcriptions.create(model=MODEL, file=("hello.wav", sound), response_format="text")
    assert text.strip() == heard.text
    verbose = client.audio.transcriptions.create(model=MODEL, file=("hello.wav", sound), response_format="verbose_json")
    assert verbose.segments[0].text == heard.text


def test_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `other` does not exist"):
        client.chat.completions.create(model="other", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens"):
        client.completions.create(model=MODEL, prompt="word " * 5000)
    with pytest.raises(openai.BadRequestError, match="max_tokens=9999 cannot be greater"):
        client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=9999)
    with pytest.raises(openai.BadRequestError, match="temperature must be non-negative"):
        client.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)


def test_messages(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model=MODEL, max_tokens=500, messages=ASK, system="Be kind")
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert "You said: Hello there" in message.content[1].text
    assert message.stop_reason == "end_turn"
    short = claude.messages.create(model=MODEL, max_tokens=3, messages=ASK)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)
    counted = claude.messages.count_tokens(model=MODEL, messages=ASK, system="Be kind")
    assert counted.input_tokens == message.usage.input_tokens


def test_messages_stream(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model=MODEL, max_tokens=500, messages=ASK)
    with claude.messages.stream(model=MODEL, max_tokens=500, messages=ASK) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == whole.content[1].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == "end_turn"


def test_messages_tools(claude: anthropic.Anthropic) -> None:
    tools = [{"name": WEATHER["name"], "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}]
    message = claude.messages.create(model=MODEL, max_tokens=500, messages=ASK_WEATHER, tools=tools)
    call = message.content[-1]
    assert message.stop_reason == "tool_use"
    assert (call.type, call.name, call.input["unit"]) == ("tool_use", "get_weather", "celsius")
    with claude.messages.stream(model=MODEL, max_tokens=500, messages=ASK_WEATHER, tools=tools) as stream:
        assert stream.get_final_message().content[-1].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"}
    told = [*ASK_WEATHER, {"role": "assistant", "content": [call.model_dump()]}, {"role": "user", "content": [result]}]
    end = claude.messages.create(model=MODEL, max_tokens=500, messages=told, tools=tools)
    assert "18 degrees" in end.content[-1].text


def test_anthropic_errors(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        claude.messages.create(model="other", max_tokens=5, messages=ASK)
    assert refused.value.body["type"] == "error"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model=MODEL, max_tokens=20_000, messages=ASK)
