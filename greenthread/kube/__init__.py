"""The only code that speaks to a Kubernetes API.

`resources` names the kinds, `errors` what can go wrong, `config` where the server is; `blocking.Client` and
`aio.AsyncClient` have the same methods; `reflector.Reflector` keeps a local copy of a collection.
"""
