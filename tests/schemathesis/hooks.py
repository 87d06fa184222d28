"""Rules between fields, which a schema cannot say: requests made to be valid are brought in line with them."""

import schemathesis

# A valid tiers file; what stands in one has a language of its own.
TIERS = "tiers:\n  - {name: schemathesis, level: 77, groups: [schemathesis], limits: [5 requests / 2m]}\n"
# Token ids that every model has.
TOKENS = 256


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or case.meta.generation.mode != schemathesis.GenerationMode.POSITIVE:
        return
    if isinstance(case.query, dict):
        fix_query(case.query)
    if isinstance(case.body, dict):
        if case.operation.path.startswith("/llm/"):
            # The address names the model.
            case.body.pop("model", None)
        if case.operation.path.endswith("/bulk-revoke"):
            # Something must say which keys.
            case.body["label"] = "run=7"
        if case.operation.path.endswith("/api-keys"):
            # A key needs a name unless it is ephemeral.
            case.body["name"] = case.body.get("name") or "schemathesis"
        if case.operation.path in ("/v1/chat/completions", "/v1/completions"):
            # The model is named here when it is not in the address.
            case.body["model"] = case.body.get("model") or "demo"
        fix_generation(case.body)
        fix_administration(case.body)


def fix_query(query):
    # Only a list that was asked before gives cursors and pages.
    query.pop("cursor", None)
    query.pop("page", None)
    # The end lies behind the start, near enough for the buckets, and zones are those of the IANA.
    for start, end in (("start", "end"), ("start_time", "end_time")):
        if start in query or end in query or (start == "start" and "bucket" in query):
            query[start], query[end] = 1_700_000_000, 1_700_000_600
    if "tz" in query:
        query["tz"] = "Europe/Paris"
    # How many buckets a page has depends on how long they are.
    if "start_time" in query:
        query.pop("limit", None)


def fix_generation(body):
    if body.get("max_completion_tokens") is not None:
        body.pop("max_tokens", None)
    if 0 in (body.get("max_tokens"), body.get("max_completion_tokens")):
        # Nothing is made only where the prompt comes back, and then there is no least number of tokens.
        body["echo"] = True
        body.pop("min_tokens", None)
    if body.get("min_tokens"):
        body["min_tokens"] = 1
    if body.get("top_logprobs") is not None:
        body["logprobs"] = True
    if isinstance(body.get("stop"), list):
        body["stop"] = body["stop"][:4]
    if not body.get("stream"):
        body.pop("stream_options", None)
    if body.get("messages"):
        # As many as fit the context window.
        body["messages"] = body["messages"][:8]
    if isinstance(body.get("prompt"), list):
        body["prompt"] = [fix_prompt(item) for item in body["prompt"]] or "a"
    elif body.get("prompt") == "":
        body["prompt"] = "a"
    if body.get("logit_bias"):
        body["logit_bias"] = {"1": 1.0}


def fix_prompt(item):
    # A prompt holds at least one token.
    if isinstance(item, list):
        return [token % TOKENS for token in item] or [1]
    return item or "a" if isinstance(item, str) else item % TOKENS


def fix_administration(body):
    if body.get("limits"):
        # Two limits on one counter are one too many.
        body["limits"] = [fix_limit(body["limits"][0])]
    if body.get("labels"):
        body["labels"] = {"team": "red"}
    if "level" in body:
        # A tier needs one of two names.
        body["name"] = body.get("name") or "schemathesis"
    if "content" in body:
        body["content"], body["format"] = TIERS, "yaml"
    if "start" in body:
        body["start"], body["end"] = "2023-11-01T00:00:00Z", "2023-11-02T00:00:00Z"
    if "settings" in body:
        body["settings"] = {"log": {"level": "warn"}}
    if "source" in body:
        # What there is to load is not in the document.
        body["source"] = "builtin:demo"
    if body.get("env"):
        body["env"] = {"context_window": 64, "kv_memory": "1MiB"}
    if body.get("prices"):
        # Prices hold from now on, the first one of a model is complete, and a model has one.
        body["prices"] = body["prices"][:1]
        body["prices"][0].update(effective_from=None, prompt="1", cached="1", completion="1")


def fix_limit(limit):
    if isinstance(limit, str):
        return "100000 tokens / 1m"
    if limit["resource"] == "concurrent":
        limit.pop("window", None)
        limit.pop("timezone", None)
    elif limit.get("window") not in ("day", "week", "month"):
        limit["window"] = limit.get("window") or "1m"
        limit.pop("timezone", None)
    elif limit.get("timezone") is not None:
        limit["timezone"] = "Europe/Paris"
    limit["amount"] = 1
    return limit
