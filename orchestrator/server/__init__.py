"""The HTTP and WebSocket API, over the ports: it never sees the engine, a store or a driver. One file per concern:

app          ports in, ASGI app out               serve       uvicorn on a port or a unix socket
door         Host, Origin, size, token            auth        bearer token → who is calling
parts        what routes work with                problems    errors → RFC 9457
executions   submit, list, record, remove         steering    messages and wishes
events       JSON page, long poll                 sse         server-sent events
channel      the WebSocket                        viewers     what both share
commands     exec                                 files       workspace files, artifacts
blobs        uploads                              stats       outcomes
health       healthz, readyz, metrics             metrics     what this process counts
admin_token  the first token                      openapi     writes openapi.json
"""
