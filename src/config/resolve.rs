//! Turns the raw file, the environment and the command line into checked settings: defaults here, once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use millgate_models::{DeviceChoice, DeviceTextError, HubOptions, KvDtypeChoice, QuantizeTo, Source};

use crate::api::Config as ApiConfig;
use crate::engine::Config as EngineConfig;
use crate::governance::limits::check_limits;
use crate::governance::{Config as GovernanceConfig, KubernetesCluster, Limit, OidcIssuer, Secret, tiers};
use crate::telemetry::{Config as LogConfig, LogFormat, TracesConfig};

use super::environment::Environment;
use super::file::{ConfigError, line_of};
use super::kubernetes::cluster;
use super::notices::{self, NoticeSettings};
use super::oidc::providers;
use super::raw::{RawConfig, RawEngine, RawKvDtype, RawLogFormat, RawModel, RawQuantize, RawTiers, RawTraces};
use super::tokens::token_lives;
use super::units::{ByteSize, MemoryBound, Span};

/// What the command line says; it wins over the file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--device`.
    pub device: Option<DeviceChoice>,
    /// `--model NAME=SOURCE`, each replacing the file's model of that name or added to the list.
    pub models: Vec<(String, String)>,
    /// `--quantize FORMAT`, for the models of `--model`.
    pub quantize: Option<RawQuantize>,
}

/// Everything in effect, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Where probes and metrics listen, if apart.
    pub ops_listen: Option<SocketAddr>,
    /// How long streams may finish after a stop was asked for.
    pub drain_timeout: Duration,
    /// The largest request body, in bytes.
    pub body_limit: ByteSize,
    /// How long a client may take to send a request.
    pub read_timeout: Duration,
    /// The longest time from admission to the last token.
    pub generation_timeout: Duration,
    /// Connections open at the same time.
    pub max_connections: usize,
    /// Origins browsers may call from.
    pub cors_origins: Vec<String>,
    /// Proxies whose forwarded address is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Folders below which administrators may load models through the API.
    pub model_folders: Vec<PathBuf>,
    /// Where durable data lives.
    pub data_dir: PathBuf,
    /// How each model's engine batches requests.
    pub engine: EngineConfig,
    /// The most tokens one step computes: sizes each model's workspace. What suits the device when absent.
    pub step_tokens: Option<usize>,
    /// Where models compute that name no device of their own.
    pub device: DeviceChoice,
    /// Whether a GPU computes a row alike whatever else is in its step.
    pub deterministic: bool,
    /// What all models may take together.
    pub memory_limit: MemoryBound,
    /// The KV cache of a model that sets none; a share of what is left when absent.
    pub kv_cache: Option<ByteSize>,
    /// Worker threads; the control group's quota when absent.
    pub threads: Option<usize>,
    /// Live keys a user may own.
    pub max_keys_per_user: u32,
    /// How long a key lives when its maker does not say.
    pub key_default_life: Duration,
    /// The longest life a key may be given.
    pub key_longest_life: Duration,
    /// Failed credentials a source may present in a minute.
    pub failed_credentials_per_minute: u32,
    /// Whose service accounts' namespaces belong to tiers.
    pub tier_instance: String,
    /// The folder whose files declare tiers.
    pub tier_folder: Option<PathBuf>,
    /// How often it is looked at.
    pub tier_poll: Duration,
    /// Limits of a tier that a ConfigMap brings.
    pub new_tier_limits: Vec<Limit>,
    /// How long a provider's word about groups counts.
    pub groups_max_age: Duration,
    /// Identity providers.
    pub oidc: Vec<OidcIssuer>,
    /// The cluster whose tokens are believed.
    pub kubernetes: Option<KubernetesCluster>,
    /// How long a short-lived token lives when its maker does not say.
    pub token_default_life: Duration,
    /// The longest life a short-lived token may be given.
    pub token_longest_life: Duration,
    /// How long one key signs tokens.
    pub signing_key_life: Duration,
    /// What is told about quotas, and to whom.
    pub notices: NoticeSettings,
    /// Where `hf:` models come from.
    pub hub: HubSettings,
    /// What is logged and how.
    pub log: LogConfig,
    /// Where traces go.
    pub traces: TracesConfig,
    /// What is served.
    pub models: Vec<ModelSettings>,
    /// The bootstrap key of `admin`, from the environment only.
    pub admin_key: Option<Secret>,
}

/// `[hub]` and its environment, resolved.
#[derive(Debug, Clone, Default)]
pub struct HubSettings {
    /// The hub's address; the public one when absent.
    pub endpoint: Option<String>,
    /// Where downloads are kept; the hub's own default when absent.
    pub home: Option<PathBuf>,
    /// Access token.
    pub token: Option<Secret>,
}

impl Settings {
    /// The HTTP side's part of it.
    #[must_use]
    pub fn api(&self) -> ApiConfig {
        ApiConfig {
            max_body_bytes: usize::try_from(self.body_limit.0).unwrap_or(usize::MAX),
            read_timeout: self.read_timeout,
            generation_timeout: self.generation_timeout,
            max_connections: self.max_connections,
            cors_origins: self.cors_origins.clone(),
            trusted_proxies: self.trusted_proxies.clone(),
            has_ops_listener: self.ops_listen.is_some(),
            notice_thresholds: self.notices.thresholds.clone(),
            // A wait that the engine would cut short helps nobody.
            refill_wait: self.engine.park_timeout * 3 / 4,
            ..ApiConfig::default()
        }
    }

    /// Governance's part of it.
    #[must_use]
    pub fn governance(&self) -> GovernanceConfig {
        GovernanceConfig {
            admin_key: self.admin_key.clone(),
            key_default_life: self.key_default_life,
            key_longest_life: self.key_longest_life,
            keys_max_per_user: self.max_keys_per_user.into(),
            failed_credentials_per_minute: self.failed_credentials_per_minute,
            instance: self.tier_instance.as_str().into(),
            new_tier_limits: self.new_tier_limits.clone(),
            groups_max_age: self.groups_max_age,
            oidc: self.oidc.clone(),
            kubernetes: self.kubernetes.clone(),
            token_default_life: self.token_default_life,
            token_longest_life: self.token_longest_life,
            signing_key_life: self.signing_key_life,
            notice_thresholds: self.notices.thresholds.clone(),
            has_notice_receiver: self.notices.webhook.is_some(),
            ..GovernanceConfig::default()
        }
    }
}

impl HubSettings {
    /// The same as the downloader wants it.
    #[must_use]
    pub fn options(&self) -> HubOptions {
        let token = self.token.as_ref().map(|token| token.reveal().to_owned());
        HubOptions { endpoint: self.endpoint.clone(), home: self.home.clone(), token, ..HubOptions::default() }
    }
}

/// Where a model was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelOrigin {
    /// A `[[models]]` table of the file.
    File,
    /// `--model`.
    CommandLine,
    /// Nobody named one, so the bundled one is served.
    Default,
    /// An administrator created it through the API.
    Api,
}

impl ModelOrigin {
    /// The place in words, for a sentence; `None` for the API.
    #[must_use]
    pub fn place(self) -> Option<&'static str> {
        match self {
            Self::File => Some("the configuration file"),
            Self::CommandLine => Some("the command line"),
            Self::Default => Some("the default configuration"),
            Self::Api => None,
        }
    }
}

/// One model to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// Where it was named.
    pub origin: ModelOrigin,
    /// The name clients use.
    pub name: String,
    /// Where its files are.
    pub source: Source,
    /// The name people see.
    pub display_name: Option<String>,
    /// The tiers that may use it; all of them when absent.
    pub tiers: Option<Vec<String>>,
    /// A shorter context than the model's own, in tokens.
    pub context_window: Option<usize>,
    /// The size of its KV cache.
    pub kv_memory: Option<ByteSize>,
    /// The number format of its KV cache.
    pub kv_dtype: KvDtypeChoice,
    /// Where it computes; where all do when absent.
    pub device: Option<DeviceChoice>,
    /// What its weights are quantised to while they load.
    pub quantize: Option<QuantizeTo>,
}

/// Checks and completes a configuration. `text` is the file's text, to name lines; empty without a file.
///
/// # Errors
/// [`ConfigError::Value`] with the key, its line and what would be right.
pub fn resolve(
    raw: RawConfig,
    text: &str,
    environment: &Environment,
    overrides: &Overrides,
) -> Result<Settings, ConfigError> {
    let at = Place { text };
    let (cpu, kubernetes, notices) = (raw.cpu.clone(), raw.kubernetes.clone(), raw.notices.clone());
    let RawConfig {
        server, store, engine, memory, keys, tiers, identity, tokens, hub, log, traces, oidc, models, ..
    } = raw;
    let listen = overrides.listen.or(server.listen).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080)));
    if server.ops_listen == Some(listen) && listen.port() != 0 {
        return Err(at.wrong("server", 0, "ops_listen", "it is the same address as `server.listen`"));
    }
    let (usual, usual_api) = (GovernanceConfig::default(), ApiConfig::default());
    let key_default_life = keys.default_life.map_or(usual.key_default_life, |span| span.0);
    let key_longest_life = keys.longest_life.map_or(usual.key_longest_life, |span| span.0);
    if key_default_life > key_longest_life {
        return Err(at.wrong("keys", 0, "default_life", "it is longer than `keys.longest_life`"));
    }
    if keys.failures_per_minute == Some(0) {
        return Err(at.wrong("keys", 0, "failures_per_minute", "at least 1, or a typing error locks its author out"));
    }
    let (token_default_life, token_longest_life, signing_key_life) = token_lives(&tokens, &at)?;
    let groups_max_age = identity.groups_max_age.map_or(usual.groups_max_age, |span| span.0);
    if !(Duration::from_secs(3600)..=Duration::from_secs(90 * 86_400)).contains(&groups_max_age) {
        return Err(at.wrong("identity", 0, "groups_max_age", "it is outside 1h to 90d"));
    }
    let threads = cpu.threads.map(|threads| at.within("cpu", "threads", threads, 1, 1024)).transpose()?;
    Ok(Settings {
        listen,
        ops_listen: server.ops_listen,
        drain_timeout: server.drain_timeout.map_or(Duration::from_secs(30), |span| span.0),
        body_limit: server.body_limit.unwrap_or(ByteSize(4 << 20)),
        read_timeout: server.read_timeout.map_or(Duration::from_secs(30), |span| span.0),
        generation_timeout: server.generation_timeout.map_or(usual_api.generation_timeout, |span| span.0),
        max_connections: at.within(
            "server",
            "max_connections",
            server.max_connections.unwrap_or(usual_api.max_connections),
            1,
            1_000_000,
        )?,
        cors_origins: at.origins(server.cors_origins.unwrap_or_default())?,
        trusted_proxies: at.networks(&server.trusted_proxies.unwrap_or_default())?,
        model_folders: at.folders(server.model_folders.unwrap_or_default())?,
        data_dir: overrides.data_dir.clone().or(store.data_dir).unwrap_or_else(|| PathBuf::from("millgate-data")),
        step_tokens: engine.step_tokens.map(|size| at.within("engine", "step_tokens", size, 32, 65_536)).transpose()?,
        device: overrides.device.map_or_else(|| at.device(engine.device.as_deref()), Ok)?,
        deterministic: engine.deterministic.unwrap_or(false),
        engine: at.engine(&engine)?,
        memory_limit: memory.limit.unwrap_or(MemoryBound::Percent(80)),
        kv_cache: memory.kv_cache,
        threads,
        max_keys_per_user: keys.max_per_user.unwrap_or(50),
        key_default_life,
        key_longest_life,
        failed_credentials_per_minute: keys.failures_per_minute.unwrap_or(usual.failed_credentials_per_minute),
        tier_instance: at.instance(tiers.instance)?,
        tier_folder: tiers.folder,
        tier_poll: at.poll(tiers.poll)?,
        new_tier_limits: at.limits(tiers.new_limits)?,
        groups_max_age,
        oidc: providers(oidc, &at)?,
        kubernetes: cluster(kubernetes, environment, &at)?,
        token_default_life,
        token_longest_life,
        signing_key_life,
        notices: notices::resolve(&at, notices, environment)?,
        hub: HubSettings {
            endpoint: hub.endpoint.or_else(|| environment.hub_endpoint.clone()),
            home: hub.home.or_else(|| environment.hub_home.clone()).or_else(|| default_hub_home(environment)),
            token: environment.hub_token.clone().map(Secret::new),
        },
        log: LogConfig {
            filter: environment.log_filter.clone().or(log.level).unwrap_or_else(|| "info".into()),
            format: match log.format {
                None | Some(RawLogFormat::Text) => LogFormat::Text,
                Some(RawLogFormat::Json) => LogFormat::Json,
            },
        },
        traces: at.traces(traces, environment)?,
        models: at.models(models, overrides)?,
        admin_key: environment.admin_key.clone().map(Secret::new),
    })
}

fn default_hub_home(environment: &Environment) -> Option<PathBuf> {
    environment.user_home.as_ref().map(|home| home.join(".cache").join("huggingface"))
}

/// The file's text, so that an error can say where.
pub(super) struct Place<'a> {
    text: &'a str,
}

impl Place<'_> {
    /// A value that cannot work, with its key and line.
    pub(super) fn wrong(&self, table: &str, nth: usize, name: &str, problem: impl Into<String>) -> ConfigError {
        let key = if matches!(table, "models" | "oidc") {
            format!("{table}[{nth}].{name}")
        } else {
            format!("{table}.{name}")
        };
        ConfigError::Value { key, line: line_of(self.text, table, nth, name), problem: problem.into() }
    }

    fn within(&self, table: &str, name: &str, value: usize, least: usize, most: usize) -> Result<usize, ConfigError> {
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(self.wrong(table, 0, name, format!("{value} is outside {least} to {most}")))
    }

    fn traces(&self, raw: RawTraces, environment: &Environment) -> Result<TracesConfig, ConfigError> {
        let endpoint = raw.endpoint.or_else(|| environment.otlp_endpoint.clone());
        let is_plain = |text: &String| {
            ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) && !text.contains(['@', '?', '#'])
        };
        if !endpoint.as_ref().is_none_or(is_plain) {
            let problem = "write an address like http://127.0.0.1:4318; credentials belong into `traces.headers`";
            return Err(self.wrong("traces", 0, "endpoint", problem));
        }
        let sample_ratio = raw.sample_ratio.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&sample_ratio) {
            return Err(self.wrong("traces", 0, "sample_ratio", "write a number from 0 to 1"));
        }
        let own = raw.headers.unwrap_or_default();
        let given = environment.otlp_headers.iter().flat_map(|text| text.split(',')).map(str::to_owned);
        let mut headers = BTreeMap::new();
        for header in own.into_iter().chain(given) {
            match header.split_once('=') {
                Some((name, value)) if !name.trim().is_empty() => {
                    headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
                }
                // Not shown: it may be a secret without its name.
                _ => return Err(self.wrong("traces", 0, "headers", "each header is `name=value`")),
            }
        }
        Ok(TracesConfig { endpoint, headers, sample_ratio })
    }

    fn device(&self, text: Option<&str>) -> Result<DeviceChoice, ConfigError> {
        let device = text.map(str::parse::<DeviceChoice>).transpose();
        device.map(Option::unwrap_or_default).map_err(|error| self.wrong("engine", 0, "device", error.to_string()))
    }

    fn engine(&self, raw: &RawEngine) -> Result<EngineConfig, ConfigError> {
        let usual = EngineConfig::default();
        let max_step = raw.max_step.map_or(usual.max_step, |span| span.0);
        if max_step.is_zero() {
            return Err(self.wrong("engine", 0, "max_step", "a step takes time; 60ms is usual"));
        }
        let within = |name, value, most| self.within("engine", name, value, 1, most);
        let wait = |name, span: Duration| match span.is_zero() {
            true => Err(self.wrong("engine", 0, name, "with no time at all every request would end at once")),
            false => Ok(span),
        };
        Ok(EngineConfig {
            max_step,
            max_running: raw.max_running.map(|running| within("max_running", running, 4096)).transpose()?,
            max_queue_requests: within(
                "queue_requests",
                raw.queue_requests.unwrap_or(usual.max_queue_requests),
                1_000_000,
            )?,
            max_queue_tokens: within(
                "queue_tokens",
                raw.queue_tokens.unwrap_or(usual.max_queue_tokens),
                1_000_000_000,
            )?,
            queue_timeout: wait("queue_timeout", raw.queue_timeout.map_or(usual.queue_timeout, |span| span.0))?,
            park_timeout: wait("park_timeout", raw.park_timeout.map_or(usual.park_timeout, |span| span.0))?,
            prefix_cache: raw.prefix_cache.unwrap_or(usual.prefix_cache),
            speculation: match raw.speculation.as_deref() {
                None => usual.speculation,
                Some("auto") => true,
                Some("off") => false,
                Some(_) => return Err(self.wrong("engine", 0, "speculation", "it is `auto` or `off`")),
            },
            ..usual
        })
    }

    fn networks(&self, texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
        let parse = |text: &String| {
            let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| address()).map_err(|_| {
                self.wrong(
                    "server",
                    0,
                    "trusted_proxies",
                    format!("`{text}` is no network; write 10.0.0.0/8 or one address"),
                )
            })
        };
        texts.iter().map(parse).collect()
    }

    fn folders(&self, folders: Vec<PathBuf>) -> Result<Vec<PathBuf>, ConfigError> {
        match folders.iter().find(|folder| !folder.is_absolute()) {
            None => Ok(folders),
            Some(relative) => {
                let problem = format!("`{}` is no absolute path; write /srv/models", relative.display());
                Err(self.wrong("server", 0, "model_folders", problem))
            }
        }
    }

    fn instance(&self, named: Option<String>) -> Result<String, ConfigError> {
        match named {
            None => Ok(tiers::INSTANCE.into()),
            Some(name) if tiers::is_resource_name(&name) => Ok(name),
            Some(name) => {
                let problem =
                    format!("`{name}` is no part of a namespace; write lower-case letters, digits and hyphens");
                Err(self.wrong("tiers", 0, "instance", problem))
            }
        }
    }

    fn poll(&self, span: Option<Span>) -> Result<Duration, ConfigError> {
        let poll = span.map_or(Duration::from_secs(2), |span| span.0);
        if poll < Duration::from_millis(100) {
            return Err(self.wrong("tiers", 0, "poll", "at least 100ms, or reading the folder is all that happens"));
        }
        Ok(poll)
    }

    fn limits(&self, texts: Option<Vec<String>>) -> Result<Vec<Limit>, ConfigError> {
        let Some(texts) = texts else { return Ok(tiers::free_limits()) };
        let wrong = |problem: String| self.wrong("tiers", 0, "new_limits", problem);
        let limits = texts.iter().map(|text| text.parse::<Limit>()).collect::<Result<Vec<_>, _>>();
        let limits = limits.map_err(|error| wrong(error.to_string()))?;
        if limits.is_empty() {
            return Err(wrong("without any a new tier would be unlimited; name at least one".into()));
        }
        check_limits(&limits).map_err(|error| wrong(error.to_string()))?;
        Ok(limits)
    }

    fn origins(&self, origins: Vec<String>) -> Result<Vec<String>, ConfigError> {
        let is_origin = |origin: &&String| {
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            **origin != "*" && rest.is_none_or(|rest| rest.is_empty() || rest.contains('/'))
        };
        match origins.iter().find(is_origin) {
            Some(wrong) => {
                let problem = format!("`{wrong}` is no origin; write https://chat.example.com, without a path, or *");
                Err(self.wrong("server", 0, "cors_origins", problem))
            }
            None => Ok(origins),
        }
    }

    fn models(&self, raw: Vec<RawModel>, overrides: &Overrides) -> Result<Vec<ModelSettings>, ConfigError> {
        let mut models: Vec<ModelSettings> = Vec::new();
        for (nth, model) in raw.into_iter().enumerate() {
            let model = self.model(nth, model)?;
            if models.iter().any(|other| other.name == model.name) {
                return Err(self.wrong("models", nth, "name", format!("there is already a model `{}`", model.name)));
            }
            models.push(model);
        }
        for (name, source) in &overrides.models {
            let nth = models.len();
            let (name, source, quantize) = (name.clone(), source.clone(), overrides.quantize);
            let model = self.model(nth, RawModel { name, source, quantize, ..RawModel::default() })?;
            match models.iter_mut().find(|other| other.name == model.name) {
                Some(other) => {
                    (other.source, other.origin) = (model.source, ModelOrigin::CommandLine);
                    if overrides.quantize.is_some() {
                        other.quantize = model.quantize;
                    }
                }
                None => models.push(ModelSettings { origin: ModelOrigin::CommandLine, ..model }),
            }
        }
        if models.is_empty() {
            let demo = RawModel { name: "demo".into(), source: "builtin:demo".into(), ..RawModel::default() };
            models.push(ModelSettings { origin: ModelOrigin::Default, ..self.model(0, demo)? });
        }
        Ok(models)
    }

    fn model(&self, nth: usize, raw: RawModel) -> Result<ModelSettings, ConfigError> {
        resolve_model(raw, ModelOrigin::File).map_err(|wrong| self.wrong("models", nth, wrong.field, wrong.problem))
    }
}

/// A field of a model that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongModel {
    /// Which field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Checks one model.
///
/// # Errors
/// [`WrongModel`] with the first field that cannot be.
pub fn resolve_model(raw: RawModel, origin: ModelOrigin) -> Result<ModelSettings, WrongModel> {
    let wrong = |field, problem: String| WrongModel { field, problem };
    check_model_name(&raw.name).map_err(|problem| wrong("name", problem))?;
    let source = raw.source.parse::<Source>().map_err(|error| wrong("source", error.to_string()))?;
    if raw.context_window == Some(0) {
        return Err(wrong("context_window", "it is in tokens and at least 1".into()));
    }
    let device = raw.device.map(|text| text.parse()).transpose();
    let device = device.map_err(|error: DeviceTextError| wrong("device", error.to_string()))?;
    Ok(ModelSettings {
        origin,
        device,
        name: raw.name,
        source,
        display_name: raw.display_name,
        tiers: match raw.tiers {
            None | Some(RawTiers::All(_)) => None,
            Some(RawTiers::Listed(tiers)) => Some(tiers),
        },
        context_window: raw.context_window,
        kv_memory: raw.kv_memory,
        kv_dtype: raw.kv_dtype.unwrap_or(RawKvDtype::Auto).choice(),
        quantize: raw.quantize.and_then(RawQuantize::choice),
    })
}

/// A model's name stands in URLs and in Prometheus labels, so it is kept simple.
fn check_model_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() {
        return Err("every model needs a name, such as \"qwen\"".into());
    }
    if name.len() > 128 || !name.chars().all(is_plain) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!(
            "`{name}` is no model name; use letters, digits, `-`, `_` and `.`, starting with a letter or digit"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve_text(text: &str) -> Result<Settings, ConfigError> {
        resolve(toml::from_str(text).unwrap(), text, &Environment::default(), &Overrides::default())
    }

    #[test]
    fn an_empty_file_serves_the_demo_model_on_this_machine_only() {
        let settings = resolve_text("").unwrap();
        assert!(settings.listen.ip().is_loopback());
        assert_eq!(settings.models.len(), 1);
        assert_eq!(settings.models[0].name, "demo");
        assert_eq!(settings.models[0].source.to_string(), "builtin:demo");
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let text = "[server]\nlisten = \"127.0.0.1:1\"\n[engine]\ndevice = \"cuda:3\"\n[[models]]\nname = \"a\"\nsource = \"x\"\ncontext_window = 64\n";
        let overrides = Overrides {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 2))),
            data_dir: Some("elsewhere".into()),
            device: Some(DeviceChoice::Cpu),
            models: vec![("a".into(), "y.gguf".into()), ("b".into(), "hf:org/b".into())],
            quantize: Some(RawQuantize::Q8_0),
        };
        let settings = resolve(toml::from_str(text).unwrap(), text, &Environment::default(), &overrides).unwrap();
        assert_eq!(settings.listen.port(), 2);
        assert_eq!(settings.data_dir, PathBuf::from("elsewhere"));
        assert_eq!(settings.device, DeviceChoice::Cpu);
        let models: Vec<(String, String)> =
            settings.models.iter().map(|m| (m.name.clone(), m.source.to_string())).collect();
        assert_eq!(models, [("a".into(), "y.gguf".into()), ("b".into(), "hf:org/b".into())]);
        assert_eq!(settings.models[0].context_window, Some(64));
        assert!(settings.models.iter().all(|model| model.quantize == Some(QuantizeTo::Q8_0)));
    }

    #[test]
    fn what_cannot_work_is_named_with_its_key_and_line() {
        let cases = [
            ("[[models]]\nname = \"a/b\"\nsource = \"x\"\n", "`models[0].name` (line 2)"),
            (
                "[[models]]\nname = \"a\"\nsource = \"x\"\n[[models]]\nsource = \"y\"\nname = \"a\"\n",
                "`models[1].name` (line 6)",
            ),
            ("[[models]]\nname = \"a\"\nsource = \"builtin:x\"\n", "`models[0].source` (line 3)"),
            ("[engine]\npark_timeout = \"0s\"\n", "`engine.park_timeout` (line 2)"),
            ("[engine]\nstep_tokens = 1\n", "`engine.step_tokens` (line 2)"),
            ("[engine]\ndevice = \"gpu\"\n", "`engine.device` (line 2)"),
            ("[[models]]\nname = \"a\"\nsource = \"x\"\ndevice = \"cuda:\"\n", "`models[0].device` (line 4)"),
            ("[tiers]\ninstance = \"A_b\"\n", "`tiers.instance` (line 2)"),
            ("[tiers]\npoll = \"1ms\"\n", "`tiers.poll` (line 2)"),
            ("[notices]\nthresholds = [0]\n", "`notices.thresholds` (line 2)"),
            ("[notices]\nwebhook_url = \"ftp://a\"\n", "`notices.webhook_url` (line 2)"),
            ("[notices]\nwebhook_url = \"https://a\"\n", "MILLGATE_WEBHOOK_SECRET"),
            ("[notices]\nwebhook_url = \"https://me:pass@a/b\"\n", "must hold no credentials"),
            ("[tiers]\nnew_limits = []\n", "`tiers.new_limits` (line 2)"),
            ("[tiers]\nnew_limits = [\"5 bananas / 1m\"]\n", "`tiers.new_limits` (line 2)"),
            ("[tokens]\nlongest_life = \"25h\"\n", "`tokens.longest_life` (line 2)"),
            ("[tokens]\ndefault_life = \"9m\"\n", "`tokens.default_life` (line 2)"),
            ("[server]\ncors_origins = [\"example.com\"]\n", "`server.cors_origins` (line 2)"),
            ("[server]\ntrusted_proxies = [\"10.0.0.0/99\"]\n", "`server.trusted_proxies` (line 2)"),
        ];
        for (text, named) in cases {
            let error = resolve_text(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let environment = Environment {
            admin_key: Some("hush-hush".into()),
            hub_token: Some("hf_hush".into()),
            ..Environment::default()
        };
        let settings = resolve(RawConfig::default(), "", &environment, &Overrides::default()).unwrap();
        assert!(!format!("{settings:?}{environment:?}").contains("hush"));
    }
}
