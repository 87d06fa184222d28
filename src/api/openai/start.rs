//! From a checked request to a running generation: the model, the prompts, the permit, the engine.
use std::sync::Arc;

use axum::http::HeaderMap;
use millgate_models::text::{ChatMessage, TemplateError};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::completion_request::Prompt;
use super::driver::{Flight, Generation, Output, Patience};
use super::params::GenerationParams;
use crate::api::error::ApiError;
use crate::api::limits::{refusal_error, standing_headers};
use crate::api::models::{ModelState, ReadyModel, ServedModel};
use crate::api::request_context::RequestContext;
use crate::api::state::Api;
use crate::engine::{CacheSalt, EventStream, FlowId, QueueBound, Request, RequestId, SamplingParams, SubmitError};
use crate::governance::{Ask, CompletionCap, Permit, Principal, Refusal, Scheduling, Status, Usage};
use crate::telemetry::{Tenant, TracedRequest};

/// Outputs that may wait between the generation and the connection; the rest waits, joined, in the generation.
const CHANNEL_DEPTH: usize = 16;
/// A text this short is tokenized in the time that it takes to hand it to another thread and back.
const SHORT_TEXT_BYTES: usize = 1024;
/// A model that takes longer than this over a short text gets the next ones in the pool.
const QUICK: std::time::Duration = std::time::Duration::from_millis(5);
/// What a message counts for besides its text: a template writes something around each.
const MESSAGE_BYTES: usize = 32;
/// When to ask again for a model that is being loaded.
const LOADING_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);
/// When to ask again for a model that somebody has to load first.
const IDLE_PAUSE: std::time::Duration = std::time::Duration::from_secs(60);

/// Who asks, and through what.
pub(crate) struct Caller {
    pub(crate) principal: Principal,
    pub(crate) context: RequestContext,
    pub(crate) endpoint: &'static str,
    pub(crate) arrived: Instant,
}

/// Everything a generation needs, checked.
pub(crate) struct Plan {
    pub(crate) model: Arc<ServedModel>,
    pub(crate) ready: Arc<ReadyModel>,
    /// Token ids; at least one prompt, none of them empty.
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) params: GenerationParams,
    pub(crate) logprobs: Option<u8>,
    pub(crate) prompt_logprobs: Option<u8>,
    /// Whether the answer's text goes on from the prompt's, as a raw completion does.
    pub(crate) continues_text: bool,
    pub(crate) tokenizing_since: Instant,
}

/// A generation that has begun.
pub(crate) struct Running {
    pub(crate) outputs: mpsc::Receiver<Output>,
    /// The limit headers of the answer.
    pub(crate) headers: HeaderMap,
}

/// The model a request means: named in the path, in the body, or alike in both.
///
/// # Errors
/// 400 when none is named or two different ones, 404 and 403 as the contract says, 503 while it is not ready.
pub(crate) fn choose_model(
    api: &Api,
    principal: &Principal,
    path: Option<&str>,
    body: Option<&str>,
) -> Result<(Arc<ServedModel>, Arc<ReadyModel>), ApiError> {
    let name = match (path, body) {
        (Some(path), Some(body)) if path != body => {
            let message = format!("`model` is `{body}` in the body and `{path}` in the address");
            return Err(ApiError::invalid(Some("model"), message));
        }
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => return Err(ApiError::invalid(Some("model"), "`model` is required")),
    };
    let Some(model) = api.models.get(name) else { return Err(ApiError::not_found("Model")) };
    if principal.policy.tier.is_none() {
        return Err(ApiError::forbidden("No tier holds any of your groups."));
    }
    if !principal.policy.allows(name) {
        return Err(ApiError::model_forbidden());
    }
    match &model.state {
        ModelState::Ready(ready) => Ok((Arc::clone(&model), Arc::clone(ready))),
        ModelState::Loading(_) => Err(ApiError::unavailable(
            format!("The model `{name}` is being loaded. Please retry later."),
            LOADING_PAUSE,
        )),
        ModelState::Failed { .. } => {
            Err(ApiError::unavailable(format!("The model `{name}` could not be loaded."), IDLE_PAUSE))
        }
        ModelState::Unloading(_) | ModelState::Unloaded => {
            Err(ApiError::unavailable(format!("The model `{name}` is not loaded at the moment."), IDLE_PAUSE))
        }
    }
}

/// Renders the conversation with the model's template and tokenizes it.
pub(crate) async fn tokenize_chat(
    api: &Api,
    ready: &Arc<ReadyModel>,
    messages: Vec<ChatMessage>,
) -> Result<Vec<u32>, ApiError> {
    let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
    refuse_hopeless(ready, bytes, "messages")?;
    let model = Arc::clone(ready);
    on_pool(api, ready, bytes + messages.len() * MESSAGE_BYTES, move || {
        let Some(template) = &model.text.chat_template else {
            let message = "this model has no chat template: use /v1/completions";
            return Err(ApiError::invalid(Some("messages"), message));
        };
        let text = template.render(&messages, true).map_err(|error| template_error(&error))?;
        let tokens = model.text.tokenizer.encode_rendered(&text).map_err(|error| untokenizable("messages", &error))?;
        check_length(&model, tokens, "messages")
    })
    .await
}

/// Tokenizes the prompts of a text completion.
pub(crate) async fn tokenize_prompts(
    api: &Api,
    ready: &Arc<ReadyModel>,
    prompts: Vec<Prompt>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    for prompt in &prompts {
        if let Prompt::Text(text) = prompt {
            refuse_hopeless(ready, text.len(), "prompt")?;
        }
    }
    let model = Arc::clone(ready);
    let sizes = prompts.iter().map(|prompt| match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => tokens.len(),
    });
    on_pool(api, ready, sizes.sum(), move || {
        prompts.into_iter().map(|prompt| tokenize_prompt(&model, prompt)).collect()
    })
    .await
}

fn tokenize_prompt(model: &ReadyModel, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    let tokens = match prompt {
        Prompt::Text(text) => model.text.tokenizer.encode(&text).map_err(|error| untokenizable("prompt", &error))?,
        Prompt::Tokens(tokens) => tokens,
    };
    let vocabulary = model.engine.spec().vocab_size;
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
        let message = format!("token {token} does not exist: the model has {vocabulary} tokens");
        return Err(ApiError::invalid(Some("prompt"), message));
    }
    check_length(model, tokens, "prompt")
}

/// Runs `work` on the blocking pool, at most `tokenizer_threads` at a time; at once and here when there is little of it.
async fn on_pool<T: Send + 'static>(
    api: &Api,
    ready: &ReadyModel,
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    api.metrics.tokenizing();
    if bytes <= SHORT_TEXT_BYTES && ready.is_quick_to_read() {
        let begun = Instant::now();
        let result = work();
        if begun.elapsed() > QUICK {
            ready.note_slow_to_read();
        }
        return result;
    }
    let slot = Arc::clone(&api.tokenizing).acquire_owned().await.expect("the semaphore is never closed");
    let work = move || {
        // Held by the work itself: a client that leaves does not end it, and must not make room for more.
        let _slot = slot;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "tokenizing a prompt panicked");
            Err(ApiError::internal())
        }
    }
}

/// No token stands for more than `max_token_bytes`, so a longer text cannot fit and need not be tokenized to know it.
fn refuse_hopeless(ready: &ReadyModel, bytes: usize, param: &'static str) -> Result<(), ApiError> {
    let window = ready.context_window();
    let most = window.saturating_mul(ready.text.tokenizer.max_token_bytes().max(1));
    if bytes <= most {
        return Ok(());
    }
    let message =
        format!("This model's maximum context length is {window} tokens; {bytes} bytes of text can never fit.");
    Err(too_long(param, message))
}

fn check_length(model: &ReadyModel, tokens: Vec<u32>, param: &'static str) -> Result<Vec<u32>, ApiError> {
    let window = model.context_window();
    if tokens.is_empty() {
        return Err(ApiError::invalid(Some(param), format!("`{param}` holds no token")));
    }
    if tokens.len() >= window {
        let length = tokens.len();
        let message = format!(
            "This model's maximum context length is {window} tokens. However, your {param} resulted in {length} tokens, \
             which leaves no room for an answer. Please reduce the length of the {param}."
        );
        return Err(too_long(param, message));
    }
    Ok(tokens)
}

fn too_long(param: &'static str, message: String) -> ApiError {
    ApiError::invalid(Some(param), message).with_detail(json!({"reason": "context_length_exceeded"}))
}

fn template_error(error: &TemplateError) -> ApiError {
    ApiError::invalid(Some("messages"), format!("the model's chat template refuses the messages: {error}"))
}

fn untokenizable(param: &'static str, error: &dyn std::error::Error) -> ApiError {
    ApiError::invalid(Some(param), format!("`{param}` cannot be tokenized: {error}"))
}

/// Asks governance, hands the prompts to the engine, and starts the task that sees it through.
pub(crate) async fn start(api: &Api, caller: Caller, plan: Plan) -> Result<Running, ApiError> {
    check_logit_bias(&plan)?;
    let caps = caps(&plan);
    let tenant = tenant(&caller.principal);
    let asked = Instant::now();
    let admitted = api.governor.admit(&caller.principal, ask(&caller, &plan, &caps)).await;
    api.metrics.admission_decided(asked.elapsed());
    let permit = admitted.map_err(|refusal| {
        let error = refusal_error(&refusal);
        api.metrics.refused(error.reason());
        if matches!(refusal, Refusal::Denied(_)) {
            api.metrics.tenant_refused(&tenant, &plan.model.name);
        }
        error
    })?;
    api.metrics.tenant_admitted(&tenant, &plan.model.name);
    let headers = standing_headers(permit.standing(), &api.config.notice_thresholds);
    let submitted = Instant::now();
    let mut trace = api.tracer.begin(traced(&caller, &plan));
    if let Some(trace) = &mut trace {
        trace.stage("authenticate", caller.context.received, caller.arrived.into_std());
        trace.stage("tokenize", plan.tokenizing_since.into_std(), asked.into_std());
        trace.stage("admit", asked.into_std(), submitted.into_std());
    }
    let (permit, flights) =
        submit_all(api, &caller, &plan, &caps, permit).await.map_err(|error| error.with_headers(headers.clone()))?;
    if trace.is_some() {
        caller.context.note_traced();
    }
    let generation = Generation {
        id: caller.context.id,
        model: plan.model.name.clone(),
        permit,
        flights,
        choices: plan.params.choices,
        max_tokens: plan.params.max_tokens.map(u64::from),
        tenant,
        patience: Patience {
            stall: api.config.stall_timeout,
            refill: api.config.refill_wait,
            generation: api.config.generation_timeout,
        },
        metrics: Arc::clone(&api.metrics),
        arrived: caller.arrived,
        submitted,
        trace,
    };
    let (sender, outputs) = mpsc::channel(CHANNEL_DEPTH);
    let vigil = api.governor.watch_over(caller.principal, &plan.model.name);
    // In a box: the task is moved several times before it stays where it is.
    api.lifecycle.generations().spawn(Box::pin(generation.run(vigil, sender)));
    Ok(Running { outputs, headers })
}

/// What a trace says of a request.
fn traced(caller: &Caller, plan: &Plan) -> TracedRequest {
    let params = &plan.params;
    TracedRequest {
        operation: if plan.continues_text { "text_completion" } else { "chat" },
        model: plan.model.name.clone(),
        id: caller.context.id.to_string(),
        traceparent: caller.context.traceparent.clone(),
        received: caller.context.received,
        choices: params.choices,
        max_tokens: params.max_tokens.map(u64::from),
        sampling: [
            ("gen_ai.request.temperature", params.temperature.into()),
            ("gen_ai.request.top_p", params.top_p.into()),
            ("gen_ai.request.top_k", params.top_k.into()),
            ("gen_ai.request.presence_penalty", params.presence_penalty.into()),
            ("gen_ai.request.frequency_penalty", params.frequency_penalty.into()),
        ],
    }
}

/// Whose figures a caller's requests count in.
pub(crate) fn tenant(principal: &Principal) -> Tenant {
    let tier = principal.policy.tier_name().unwrap_or_default().to_owned();
    Tenant { user: Arc::clone(&principal.name), tier }
}

fn check_logit_bias(plan: &Plan) -> Result<(), ApiError> {
    let vocabulary = plan.ready.engine.spec().vocab_size;
    match plan.params.logit_bias.iter().find(|(token, _)| *token as usize >= vocabulary) {
        None => Ok(()),
        Some((token, _)) => {
            let message = format!("`logit_bias` names token {token}, the model has {vocabulary} tokens");
            Err(ApiError::invalid(Some("logit_bias"), message))
        }
    }
}

/// The most completion tokens of a choice, for each prompt.
fn caps(plan: &Plan) -> Vec<u64> {
    let window = plan.ready.context_window();
    let room = |prompt: &Vec<u32>| (window - prompt.len()) as u64;
    let most = plan.params.max_tokens.map_or(u64::MAX, u64::from);
    plan.prompts.iter().map(|prompt| room(prompt).min(most)).collect()
}

fn ask(caller: &Caller, plan: &Plan, caps: &[u64]) -> Ask {
    // One figure a request: prompts that have less room give the difference back when they settle.
    let widest = caps.iter().copied().max().unwrap_or(0);
    Ask {
        request_id: caller.context.id,
        client_request_id: caller.context.client_id.clone(),
        model: plan.model.name.clone(),
        endpoint: caller.endpoint,
        prompt_tokens: plan.prompts.iter().map(|prompt| prompt.len() as u64).sum(),
        sequences: plan.prompts.len() as u64 * u64::from(plan.params.choices),
        cap: match plan.params.max_tokens {
            Some(_) => CompletionCap::Explicit(widest),
            None => CompletionCap::Open { most: widest },
        },
    }
}

/// Submits every prompt, or none: then the permit settles as failed and nothing is charged.
async fn submit_all(
    api: &Api,
    caller: &Caller,
    plan: &Plan,
    caps: &[u64],
    permit: Permit,
) -> Result<(Permit, Vec<Flight>), ApiError> {
    let scheduling = permit.scheduling();
    let seed = match plan.params.seed {
        Some(seed) => seed,
        // The most likely token needs no chance.
        None if plan.params.temperature == 0.0 => 0,
        None => random_seed()?,
    };
    let mut flights = Vec::with_capacity(plan.prompts.len());
    for (index, cap) in caps.iter().enumerate() {
        let most = cap * u64::from(plan.params.choices);
        let granted = share(permit.allowance(), plan.prompts.len(), index).min(most);
        let request = engine_request(caller, plan, index, Room { cap: *cap, granted, seed }, scheduling);
        match plan.ready.engine.submit(request) {
            Ok(stream) => flights.push(Flight::new(stream, granted, most)),
            Err(refused) => {
                let error = submit_error(&refused, caller, plan);
                abandon(permit, flights.into_iter().map(|flight| flight.stream)).await;
                api.metrics.refused(error.reason());
                if let SubmitError::QueueFull { bound, .. } = refused {
                    api.metrics.queue_full(&plan.model.name, bound_word(bound));
                }
                return Err(error);
            }
        }
    }
    Ok((permit, flights))
}

/// Cancels what was submitted and settles as failed.
async fn abandon(permit: Permit, streams: impl Iterator<Item = EventStream>) {
    // Dropping a stream cancels its request.
    drop(streams.collect::<Vec<_>>());
    if let Err(error) = permit.settle(Usage::default(), Status::Failed).await {
        tracing::error!(%error, "cannot write the ledger row of a refused request");
    }
}

/// The part of the allowance for prompt `index`; remainders go to the first prompts.
fn share(allowance: u64, prompts: usize, index: usize) -> u64 {
    let prompts = prompts as u64;
    allowance / prompts + u64::from((index as u64) < allowance % prompts)
}

/// What one prompt may use.
struct Room {
    cap: u64,
    granted: u64,
    seed: u64,
}

fn engine_request(caller: &Caller, plan: &Plan, index: usize, room: Room, scheduling: Scheduling) -> Request {
    let params = &plan.params;
    let max_tokens = u32::try_from(room.cap).unwrap_or(u32::MAX);
    Request {
        id: RequestId(caller.context.id),
        prompt: plan.prompts[index].clone(),
        sampling: SamplingParams {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            repetition_penalty: params.repetition_penalty,
            logit_bias: params.logit_bias.clone(),
            seed: room.seed,
            logprobs: plan.logprobs,
        },
        choices: params.choices,
        max_tokens,
        min_tokens: params.min_tokens.min(max_tokens),
        ignore_eos: params.ignore_eos,
        stop: params.stop.clone(),
        prompt_logprobs: plan.prompt_logprobs,
        continues_text: plan.continues_text,
        allowance: u32::try_from(room.granted).unwrap_or(u32::MAX),
        flow: FlowId(scheduling.flow),
        weight: scheduling.weight,
        priority: scheduling.priority,
        cache_salt: CacheSalt(scheduling.cache_salt),
    }
}

fn random_seed() -> Result<u64, ApiError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the operating system gives no random numbers");
        ApiError::internal()
    })?;
    Ok(u64::from_le_bytes(bytes))
}

/// A bound of the queue as vLLM calls it.
fn bound_word(bound: QueueBound) -> &'static str {
    match bound {
        QueueBound::Requests => "max_num_queued_reqs",
        QueueBound::Tokens => "max_num_queued_tokens",
    }
}

fn submit_error(error: &SubmitError, caller: &Caller, plan: &Plan) -> ApiError {
    match error {
        SubmitError::QueueFull { retry_after, .. } => ApiError::overloaded(*retry_after),
        SubmitError::Draining | SubmitError::Stopped => {
            ApiError::unavailable("The model or the server is being stopped. Please retry.", LOADING_PAUSE)
        }
        SubmitError::PromptTooLong { prompt_tokens, limit } => {
            let param = if plan.continues_text { "prompt" } else { "messages" };
            too_long(param, format!("The prompt has {prompt_tokens} tokens, at most {limit} fit."))
        }
        SubmitError::Invalid { what } => {
            tracing::error!(request.id = %caller.context.id, what, "the engine refused a checked request");
            ApiError::internal().naming_request(caller.context.id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_an_allowance_add_up_to_it() {
        for (allowance, prompts) in [(10, 3), (3, 3), (256, 1), (257, 128)] {
            let sum: u64 = (0..prompts).map(|index| share(allowance, prompts, index)).sum();
            assert_eq!(sum, allowance);
        }
    }
}
