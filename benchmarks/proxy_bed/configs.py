"""Configurations of nginx and HAProxy: one worker each, no access log, kept connections."""

from __future__ import annotations

_NGINX = """
daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log stderr error;
events {{ worker_connections 16000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; tcp_nodelay on; server_tokens off;
  client_body_temp_path {folder}/{name}-b; proxy_temp_path {folder}/{name}-p; fastcgi_temp_path {folder}/{name}-f;
  uwsgi_temp_path {folder}/{name}-u; scgi_temp_path {folder}/{name}-s;
{rest}
}}
"""


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
    return _NGINX.format(folder=folder, name="peer", rest=rest)


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
