"""The inference API's paths: what clients may ask of a model. Everything else of an engine stays inside its pod."""

from __future__ import annotations

MODEL_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/audio/speech",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/score",
        "/v1/rerank",
        "/v2/rerank",
        "/score",
        "/rerank",
        "/tokenize",
        "/detokenize",
        "/classify",
        "/pooling",
        "/invocations",
    }
)
"""Asked by POST; each wakes the model when it sleeps."""

STREAMED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
"""Of these the ones that answer a JSON body with `"stream": true` by server-sent events."""
