"""Drives a running Millgate with OpenAI's own Python client, as an application would.

Environment: MILLGATE_URL (ends in /v1), MILLGATE_ADMIN_KEY, MILLGATE_MODEL, MILLGATE_KEY (no limit in the way), MILLGATE_LIMITED_KEY (one request every two
seconds), MILLGATE_REVOKED_KEY, MILLGATE_HIDDEN_MODEL (exists, but is not published to the caller's tier).
Prints one line a check; the exit status is 0 only when every check held.
"""

import os
import time
import urllib.request

import openai
import prometheus_client.openmetrics.parser
import prometheus_client.parser

URL = os.environ["MILLGATE_URL"]
MODEL = os.environ["MILLGATE_MODEL"]
HELLO = [{"role": "user", "content": "Say hello."}]


def client(key_variable, **options):
    """A client for one of the keys; no silent retries unless a check asks for them."""
    options.setdefault("max_retries", 0)
    return openai.OpenAI(base_url=URL, api_key=os.environ[key_variable], **options)


def raised(kind, call):
    """The exception of class `kind` that `call` raises; anything else fails the check."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")


def chat_answers_with_exact_usage():
    reply = client("MILLGATE_KEY").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, seed=1)
    usage = reply.usage
    assert reply.object == "chat.completion" and reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 12
    assert usage.prompt_tokens_details.cached_tokens >= 0


def a_stream_adds_up_to_the_plain_answer():
    same = dict(model=MODEL, messages=HELLO, max_tokens=16, temperature=0.0)
    plain = client("MILLGATE_KEY").chat.completions.create(**same)
    stream = client("MILLGATE_KEY").chat.completions.create(**same, stream=True, stream_options={"include_usage": True})
    text, reasons, usage = "", [], None
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        if chunk.usage is not None:
            usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == plain.choices[0].message.content, (text, plain.choices[0].message.content)
    assert reasons == [plain.choices[0].finish_reason]
    assert usage is not None and usage.completion_tokens == plain.usage.completion_tokens


def completions_take_text_and_return_choices():
    reply = client("MILLGATE_KEY").completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, n=2, seed=7, temperature=0.9)
    assert reply.object == "text_completion" and [c.index for c in reply.choices] == [0, 1]


def logprobs_come_as_the_client_models_them():
    reply = client("MILLGATE_KEY").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert content and all(len(entry.top_logprobs) == 2 and entry.logprob <= 0.0 for entry in content)


def models_are_listed():
    models = client("MILLGATE_KEY").models.list()
    assert MODEL in [model.id for model in models.data]
    assert client("MILLGATE_KEY").models.retrieve(MODEL).id == MODEL


def errors_map_to_the_clients_classes():
    good = client("MILLGATE_KEY")
    ask = lambda who, **changes: who.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 4, **changes})
    bad = raised(openai.BadRequestError, lambda: ask(good, temperature=-3))
    assert bad.status_code == 400 and bad.body["type"] == "invalid_request_error" and bad.body["param"] == "temperature"
    refused = raised(openai.AuthenticationError, lambda: ask(client("MILLGATE_REVOKED_KEY")))
    assert refused.status_code == 401 and refused.body["type"] == "authentication_error"
    missing = raised(openai.NotFoundError, lambda: ask(good, model="no-such-model"))
    assert missing.status_code == 404 and missing.body["type"] == "not_found_error"
    hidden = raised(openai.PermissionDeniedError, lambda: ask(good, model=os.environ["MILLGATE_HIDDEN_MODEL"]))
    assert hidden.status_code == 403 and hidden.body["type"] == "authorization_error"


def a_limit_is_a_rate_limit_error_and_automatic_retry_gets_through():
    limited = client("MILLGATE_LIMITED_KEY")
    ask = lambda who: who.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    ask(limited)
    error = raised(openai.RateLimitError, lambda: ask(limited))
    assert error.status_code == 429 and error.body["type"] == "rate_limit_error", error.body
    wait = int(error.response.headers["retry-after-ms"]) / 1000
    assert 0 < wait <= 2.1 and int(error.response.headers["retry-after"]) >= wait
    began = time.monotonic()
    ask(client("MILLGATE_LIMITED_KEY", max_retries=2))
    assert time.monotonic() - began >= wait * 0.5, "the retry did not wait as the header says"


def typed_admin_usage_adds_up_to_what_was_seen():
    admin = openai.OpenAI(base_url=URL, api_key="unused", admin_api_key=os.environ["MILLGATE_ADMIN_KEY"], max_retries=0)
    ask = dict(start_time=int(time.time()) - 86400, bucket_width="1h", limit=168)
    sums = lambda **more: [
        result for bucket in admin.admin.organization.usage.completions(**ask, **more).data for result in bucket.results
    ]
    total = lambda results: tuple(
        sum(getattr(result, field) for result in results)
        for field in ("num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens")
    )
    before = total(sums())
    usage = client("MILLGATE_KEY").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7).usage
    after = total(sums())
    seen = (1, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens)
    assert tuple(b - a for a, b in zip(before, after)) == seen, (before, after, seen)
    by_model = sums(group_by=["model", "user_id"])
    assert {result.model for result in by_model} == {MODEL} and all(result.user_id for result in by_model)
    assert total(by_model) == after
    page = admin.admin.organization.usage.costs(start_time=int(time.time()) - 86400, group_by=["line_item"])
    amounts = [result.amount for bucket in page.data for result in bucket.results]
    assert amounts and all(amount.currency == "usd" and amount.value > 0 for amount in amounts), page
    forbidden = raised(
        openai.PermissionDeniedError,
        lambda: openai.OpenAI(base_url=URL, api_key="unused", admin_api_key=os.environ["MILLGATE_KEY"], max_retries=0)
        .admin.organization.usage.completions(start_time=0),
    )
    assert forbidden.body["type"] == "authorization_error"


def figures_are_read_by_the_prometheus_client():
    def families(accept, parse):
        request = urllib.request.Request(URL.removesuffix("/v1") + "/metrics", headers={"accept": accept})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as reply:
            return {family.name: family for family in parse(reply.read().decode())}

    def value(family, name, **labels):
        return sum(
            sample.value
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    client("MILLGATE_KEY").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3)
    plain = families("text/plain", prometheus_client.parser.text_string_to_metric_families)
    strict = families(
        "application/openmetrics-text; version=1.0.0",
        prometheus_client.openmetrics.parser.text_string_to_metric_families,
    )
    for found in (plain, strict):
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            assert found[name].type == "gauge" and len(found[name].samples) == 1, found[name]
        assert found["vllm:admission_rejections"].type == "counter"
        assert value(found["vllm:generation_tokens"], "vllm:generation_tokens_total", model_name=MODEL) > 0
        first = found["vllm:time_to_first_token_seconds"]
        count = value(first, "vllm:time_to_first_token_seconds_count", model_name=MODEL)
        assert first.type == "histogram" and count > 0
        assert value(first, "vllm:time_to_first_token_seconds_bucket", model_name=MODEL, le="+Inf") == count
        assert value(found["millgate_http_responses"], "millgate_http_responses_total", status="200") > 0
    # What OpenMetrics calls an info is a gauge with that ending in the older text.
    missing = {name for name in strict if name not in plain and f"{name}_info" not in plain}
    assert not missing, missing


def leaving_a_stream_closes_it():
    stream = client("MILLGATE_KEY").chat.completions.create(model=MODEL, messages=HELLO, max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()


CHECKS = [
    chat_answers_with_exact_usage,
    a_stream_adds_up_to_the_plain_answer,
    completions_take_text_and_return_choices,
    logprobs_come_as_the_client_models_them,
    models_are_listed,
    errors_map_to_the_clients_classes,
    a_limit_is_a_rate_limit_error_and_automatic_retry_gets_through,
    typed_admin_usage_adds_up_to_what_was_seen,
    figures_are_read_by_the_prometheus_client,
    leaving_a_stream_closes_it,
]

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(f"held: {check.__name__}", flush=True)
