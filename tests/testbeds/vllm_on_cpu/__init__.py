"""The real vLLM in a GPU engine's place: a folder to put first on the PATH (`tests.testbeds.vllm.BIN`)."""
