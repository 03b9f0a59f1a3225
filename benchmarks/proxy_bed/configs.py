"""Configurations of nginx (as upstream, and as peer) and HAProxy: one worker each, no access log, kept connections."""

from __future__ import annotations

ANSWER = (
    '{"id":"chatcmpl-6f1f2a8d5e9b4c7f","object":"chat.completion","created":1763800000,"model":"bench",'
    '"choices":[{"index":0,"message":{"role":"assistant","content":"GPU memory is scarce, so models that nobody asks '
    "sleep and those that are asked wake; a request that finds its model asleep waits a little longer for its first "
    'token.","refusal":null,"tool_calls":[]},"logprobs":null,"finish_reason":"stop","stop_reason":null}],'
    '"service_tier":null,"usage":{"prompt_tokens":213,"total_tokens":256,"completion_tokens":43,'
    '"prompt_tokens_details":null},"prompt_logprobs":null}'
)

_NGINX = """
daemon off; {master} worker_processes 1; pid {folder}/{name}.pid; error_log stderr error;
events {{ worker_connections 16000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; tcp_nodelay on; server_tokens off;
  client_body_temp_path {folder}/{name}-b; proxy_temp_path {folder}/{name}-p; fastcgi_temp_path {folder}/{name}-f;
  uwsgi_temp_path {folder}/{name}-u; scgi_temp_path {folder}/{name}-s;
{rest}
}}
"""


def nginx_upstream(folder: str, port: int, sse_port: int) -> str:
    """The engine: a chat completion at once, and `/v1/completions` streamed by `sse_upstream`."""
    rest = f"""
  proxy_http_version 1.1; proxy_buffering off; proxy_read_timeout 1h; proxy_set_header Connection "";
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    default_type application/json;
    location = /v1/completions {{ proxy_pass http://127.0.0.1:{sse_port}; }}
    location / {{ return 200 '{ANSWER}'; }}
  }}"""
    return _NGINX.format(folder=folder, name="upstream", master="master_process off;", rest=rest)


def nginx_peer(folder: str, port: int, upstream: int) -> str:
    """The reverse proxy; streams are not buffered, as one has to set it for a model server."""
    rest = f"""
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 2000; keepalive_requests 1000000000; }}
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_read_timeout 1h;
  client_max_body_size 256m;
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    location = /v1/completions {{ proxy_buffering off; proxy_pass http://engine; }}
    location / {{ proxy_pass http://engine; }}
  }}"""
    return _NGINX.format(folder=folder, name="peer", master="", rest=rest)


def haproxy_peer(port: int, upstream: int) -> str:
    """The reverse proxy in one thread."""
    return f"""
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
frontend front
  bind 127.0.0.1:{port} backlog 8192
  default_backend engine
backend engine
  server engine 127.0.0.1:{upstream} pool-max-conn -1
"""
