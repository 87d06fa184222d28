//! Optional traces over OTLP: one span a request with a child for each stage, in the words of OpenTelemetry's GenAI
//! conventions. They are made when the request is over, so a request pays nothing for them while it runs, and they never
//! hold what was said, by whom, or with which key.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tokio::runtime::Handle;

/// Spans that wait for the exporter; what is more is dropped, never waited for.
const MAX_WAITING: usize = 8192;
/// Spans of one message to the collector.
const MAX_BATCH: usize = 512;
/// How long spans are collected before they are sent.
const PAUSE: Duration = Duration::from_secs(2);
/// How long the collector may take for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where traces go.
#[derive(Clone, PartialEq)]
pub struct TracesConfig {
    /// The collector's base address, to which `/v1/traces` is added; `None`: no traces, the default.
    pub endpoint: Option<String>,
    /// Headers of the messages; their values are secrets.
    pub headers: BTreeMap<String, String>,
    /// The share of requests that leave a trace, 0 to 1. Default 1.
    pub sample_ratio: f64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: None, headers: BTreeMap::new(), sample_ratio: 1.0 }
    }
}

impl fmt::Debug for TracesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TracesConfig")
            .field("endpoint", &self.endpoint)
            .field("headers", &self.headers.keys())
            .field("sample_ratio", &self.sample_ratio)
            .finish()
    }
}

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The HTTP client cannot be made.
    #[error("cannot make the HTTP client for traces")]
    Client(#[source] reqwest::Error),
    /// The address or a header is malformed.
    #[error("cannot send traces to `{endpoint}`")]
    Exporter {
        /// What was given.
        endpoint: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Sends traces, or does nothing; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Running>);

#[derive(Clone, Debug)]
struct Running {
    provider: SdkTracerProvider,
    /// One moment on both clocks.
    anchor: (Instant, SystemTime),
}

impl Running {
    /// A moment on the calendar's clock.
    fn at(&self, moment: Instant) -> SystemTime {
        let (anchor, wall) = self.anchor;
        match moment.checked_duration_since(anchor) {
            Some(after) => wall + after,
            None => wall - anchor.duration_since(moment),
        }
    }
}

/// The caller's span: a link, nothing else.
fn parent(traceparent: Option<&str>) -> Context {
    let carrier: HashMap<String, String> =
        traceparent.map(|value| ("traceparent".to_owned(), value.to_owned())).into_iter().collect();
    TraceContextPropagator::new().extract(&carrier)
}

impl Tracer {
    /// No traces.
    pub fn off() -> Self {
        Self::default()
    }

    /// Starts to send traces if an endpoint is set. `now` is the time since the Unix epoch.
    ///
    /// # Errors
    /// [`TracesError`] when the endpoint is not an address.
    pub fn start(config: &TracesConfig, now: Duration, runtime: &Handle) -> Result<Self, TracesError> {
        let Some(endpoint) = &config.endpoint else { return Ok(Self::off()) };
        // Fails only when there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(PATIENCE).build().map_err(TracesError::Client)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(OnRuntime { client, runtime: runtime.clone() })
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_headers(config.headers.clone().into_iter().collect())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|source| TracesError::Exporter { endpoint: endpoint.clone(), source: source.into() })?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING)
            .with_max_export_batch_size(MAX_BATCH)
            .with_scheduled_delay(PAUSE)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            // Not by the parent's word: a client must not decide how many traces this server keeps.
            .with_sampler(Sampler::TraceIdRatioBased(config.sample_ratio))
            .with_resource(Resource::builder_empty().with_service_name("millgate").with_attribute(version).build())
            .build();
        Ok(Self(Some(Running { provider, anchor: (Instant::now(), SystemTime::UNIX_EPOCH + now) })))
    }

    /// A trace to fill in, if any are wanted.
    pub fn begin(&self, request: TracedRequest) -> Option<RequestTrace> {
        let running = self.0.clone()?;
        Some(RequestTrace { running, request, stages: Vec::new(), outcome: Outcome::default() })
    }

    /// A span of a request that was refused before it ran; never waits.
    pub fn refused(&self, request: &RefusedRequest<'_>) {
        let Some(running) = &self.0 else { return };
        let (tracer, parent) = (running.provider.tracer("millgate"), parent(request.traceparent.as_deref()));
        let attributes = vec![
            KeyValue::new("gen_ai.operation.name", request.operation),
            KeyValue::new("gen_ai.provider.name", "millgate"),
            KeyValue::new("http.route", request.route.to_owned()),
            KeyValue::new("http.response.status_code", i64::from(request.status)),
            KeyValue::new("error.type", request.reason.to_owned()),
            KeyValue::new("millgate.request.id", request.id.clone()),
        ];
        let mut span = tracer
            .span_builder(request.operation)
            .with_kind(SpanKind::Server)
            .with_start_time(running.at(request.received))
            .with_attributes(attributes)
            .start_with_context(&tracer, &parent);
        span.set_status(Status::error(request.reason.to_owned()));
        span.end_with_timestamp(running.at(Instant::now()));
    }

    /// Sends what waits, for at most so long. A collector that is away does not hold up the stop for longer.
    pub async fn shutdown(&self, patience: Duration) {
        let Some(Running { provider, .. }) = self.0.clone() else { return };
        let stop = move || provider.shutdown_with_timeout(patience);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(stop).await {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// A request that was refused before it ran.
#[derive(Clone, Debug)]
pub struct RefusedRequest<'a> {
    /// `chat` or `text_completion`.
    pub operation: &'static str,
    /// The route's pattern.
    pub route: &'a str,
    /// Our id of the request.
    pub id: String,
    /// The client's `traceparent` header.
    pub traceparent: Option<String>,
    /// When it arrived.
    pub received: Instant,
    /// The HTTP status.
    pub status: u16,
    /// The reason for machines.
    pub reason: &'a str,
}

/// What a request asked for.
#[derive(Clone, Debug)]
pub struct TracedRequest {
    /// `chat` or `text_completion`.
    pub operation: &'static str,
    /// The model's name.
    pub model: String,
    /// Our id of the request, as the ledger has it.
    pub id: String,
    /// The client's `traceparent` header: only a link to the span above.
    pub traceparent: Option<String>,
    /// When it arrived.
    pub received: Instant,
    /// Choices a prompt.
    pub choices: u32,
    /// The client's cap.
    pub max_tokens: Option<u64>,
    /// Sampling parameters by the convention's names.
    pub sampling: [(&'static str, f64); 5],
}

/// How it ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Tokens of the prompts.
    pub input_tokens: u64,
    /// Those of them found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens of the answers.
    pub output_tokens: u64,
    /// Why each choice ended.
    pub finish_reasons: Vec<&'static str>,
    /// A word for what went wrong.
    pub error: Option<&'static str>,
}

/// The trace of one request under way.
#[derive(Debug)]
pub struct RequestTrace {
    running: Running,
    request: TracedRequest,
    stages: Vec<(&'static str, Instant, Instant)>,
    outcome: Outcome,
}

impl RequestTrace {
    /// Adds a stage.
    pub fn stage(&mut self, name: &'static str, from: Instant, to: Instant) {
        self.stages.push((name, from, to.max(from)));
    }

    /// Notes how the request ended.
    pub fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Hands the trace to the exporter; never waits.
    pub fn finish(self, now: Instant) {
        let tracer = self.running.provider.tracer("millgate");
        let at = |moment| self.running.at(moment);
        let parent = parent(self.request.traceparent.as_deref());
        let span = tracer
            .span_builder(format!("{} {}", self.request.operation, self.request.model))
            .with_kind(SpanKind::Server)
            .with_start_time(at(self.request.received))
            .with_attributes(attributes(&self.request, &self.outcome))
            .start_with_context(&tracer, &parent);
        let context = parent.with_span(span);
        for (name, from, to) in self.stages {
            let builder = tracer.span_builder(name).with_kind(SpanKind::Internal).with_start_time(at(from));
            let mut child = builder.start_with_context(&tracer, &context);
            child.end_with_timestamp(at(to));
        }
        if let Some(error) = self.outcome.error {
            context.span().set_status(Status::error(error));
        }
        context.span().end_with_timestamp(at(now));
    }
}

fn attributes(request: &TracedRequest, outcome: &Outcome) -> Vec<KeyValue> {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let mut attributes = vec![
        KeyValue::new("gen_ai.operation.name", request.operation),
        KeyValue::new("gen_ai.provider.name", "millgate"),
        KeyValue::new("gen_ai.request.model", request.model.clone()),
        KeyValue::new("gen_ai.response.model", request.model.clone()),
        KeyValue::new("gen_ai.request.choice.count", i64::from(request.choices)),
        KeyValue::new("gen_ai.usage.input_tokens", count(outcome.input_tokens)),
        KeyValue::new("gen_ai.usage.cache_read.input_tokens", count(outcome.cached_tokens)),
        KeyValue::new("gen_ai.usage.output_tokens", count(outcome.output_tokens)),
        KeyValue::new("millgate.request.id", request.id.clone()),
    ];
    attributes.extend(request.sampling.iter().map(|(name, value)| KeyValue::new(*name, *value)));
    if let Some(max_tokens) = request.max_tokens {
        attributes.push(KeyValue::new("gen_ai.request.max_tokens", count(max_tokens)));
    }
    match outcome.error {
        Some(error) => attributes.push(KeyValue::new("error.type", error)),
        None => {
            let reasons: Vec<StringValue> = outcome.finish_reasons.iter().map(|reason| (*reason).into()).collect();
            let reasons = Value::Array(Array::String(reasons));
            attributes.push(KeyValue::new("gen_ai.response.finish_reasons", reasons));
        }
    }
    attributes
}

/// An HTTP client that works on the server's runtime, wherever it is called from: the exporter has a thread of its own.
#[derive(Debug)]
struct OnRuntime {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let mut answer = client.execute(request.try_into()?).await?;
            let headers = std::mem::take(answer.headers_mut());
            let mut response = Response::builder().status(answer.status()).body(answer.bytes().await?)?;
            *response.headers_mut() = headers;
            Ok::<_, HttpError>(response)
        });
        sent.await?
    }
}
