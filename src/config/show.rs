//! Prints what is in effect as a configuration file, secrets masked.

use std::fmt::Write as _;

use millgate_models::KvDtypeChoice;

use crate::telemetry::LogFormat;

use super::kubernetes::effective_cluster;
use super::notices::SecretSource;
use super::oidc::effective_provider;
use super::raw::{
    All, RawConfig, RawCpu, RawEngine, RawHub, RawIdentity, RawKeys, RawKvDtype, RawLog, RawLogFormat, RawMemory,
    RawModel, RawNotices, RawQuantize, RawServer, RawStore, RawTierRules, RawTiers, RawTokens, RawTraces,
};
use super::resolve::{ModelSettings, Settings};
use super::units::Span;

/// The settings as `millgate.toml` would have them; what comes from the environment stands in comments.
#[must_use]
pub fn show(settings: &Settings) -> String {
    let raw = effective(settings);
    let mut text = toml::to_string(&raw).expect("the raw configuration holds only what TOML can");
    for (name, is_set) in environment_secrets(settings) {
        let state = if is_set { "***" } else { "not set" };
        let _ = write!(text, "\n# {name}: {state}");
    }
    text.push('\n');
    text
}

/// The secrets that come from the environment, and whether each is set.
#[must_use]
pub fn environment_secrets(settings: &Settings) -> Vec<(&'static str, bool)> {
    let webhook = settings.notices.webhook.as_ref();
    let has_secret = webhook.is_some_and(|webhook| matches!(webhook.secret, SecretSource::Given(_)));
    vec![
        ("MILLGATE_WEBHOOK_SECRET", has_secret),
        ("MILLGATE_ADMIN_KEY", settings.admin_key.is_some()),
        ("HF_TOKEN", settings.hub.token.is_some()),
    ]
}

/// The same as a document, for the audit log: nothing that comes from the environment is in it.
#[must_use]
pub fn effective_document(settings: &Settings) -> serde_json::Value {
    serde_json::to_value(effective(settings)).expect("the raw configuration holds only what JSON can")
}

fn effective(settings: &Settings) -> RawConfig {
    let engine = &settings.engine;
    RawConfig {
        server: RawServer {
            listen: Some(settings.listen),
            ops_listen: settings.ops_listen,
            drain_timeout: Some(Span(settings.drain_timeout)),
            body_limit: Some(settings.body_limit),
            read_timeout: Some(Span(settings.read_timeout)),
            generation_timeout: Some(Span(settings.generation_timeout)),
            max_connections: Some(settings.max_connections),
            cors_origins: Some(settings.cors_origins.clone()),
            trusted_proxies: Some(settings.trusted_proxies.iter().map(ToString::to_string).collect()),
            model_folders: Some(settings.model_folders.clone()),
        },
        store: RawStore { data_dir: Some(settings.data_dir.clone()) },
        engine: RawEngine {
            max_step: Some(Span(engine.max_step)),
            step_tokens: settings.step_tokens,
            max_running: engine.max_running,
            queue_requests: Some(engine.max_queue_requests),
            queue_tokens: Some(engine.max_queue_tokens),
            queue_timeout: Some(Span(engine.queue_timeout)),
            park_timeout: Some(Span(engine.park_timeout)),
            prefix_cache: Some(engine.prefix_cache),
            speculation: Some(if engine.speculation { "auto" } else { "off" }.to_owned()),
            device: Some(settings.device.to_string()),
            deterministic: Some(settings.deterministic),
        },
        memory: RawMemory { limit: Some(settings.memory_limit), kv_cache: settings.kv_cache },
        cpu: RawCpu { threads: settings.threads },
        keys: RawKeys {
            max_per_user: Some(settings.max_keys_per_user),
            default_life: Some(Span(settings.key_default_life)),
            longest_life: Some(Span(settings.key_longest_life)),
            failures_per_minute: Some(settings.failed_credentials_per_minute),
        },
        tiers: RawTierRules {
            instance: Some(settings.tier_instance.clone()),
            folder: settings.tier_folder.clone(),
            poll: Some(Span(settings.tier_poll)),
            new_limits: Some(settings.new_tier_limits.iter().map(ToString::to_string).collect()),
        },
        identity: RawIdentity { groups_max_age: Some(Span(settings.groups_max_age)) },
        kubernetes: settings.kubernetes.as_ref().map(effective_cluster).unwrap_or_default(),
        tokens: RawTokens {
            default_life: Some(Span(settings.token_default_life)),
            longest_life: Some(Span(settings.token_longest_life)),
            rotate_every: Some(Span(settings.signing_key_life)),
        },
        notices: RawNotices {
            thresholds: Some(settings.notices.thresholds.clone()),
            webhook_url: settings.notices.webhook.as_ref().map(|webhook| webhook.url.clone()),
            webhook_secret_file: settings.notices.secret_file.clone(),
        },
        hub: RawHub { endpoint: settings.hub.endpoint.clone(), home: settings.hub.home.clone() },
        log: RawLog {
            level: Some(settings.log.filter.clone()),
            format: Some(match settings.log.format {
                LogFormat::Text => RawLogFormat::Text,
                LogFormat::Json => RawLogFormat::Json,
            }),
        },
        traces: RawTraces {
            endpoint: settings.traces.endpoint.clone(),
            sample_ratio: Some(settings.traces.sample_ratio),
            headers: Some(settings.traces.headers.keys().map(|name| format!("{name}=***")).collect()),
        },
        oidc: settings.oidc.iter().map(effective_provider).collect(),
        models: settings.models.iter().map(effective_model).collect(),
    }
}

fn effective_model(model: &ModelSettings) -> RawModel {
    RawModel {
        name: model.name.clone(),
        source: model.source.to_string(),
        display_name: model.display_name.clone(),
        tiers: Some(model.tiers.clone().map_or(RawTiers::All(All::All), RawTiers::Listed)),
        context_window: model.context_window,
        kv_memory: model.kv_memory,
        kv_dtype: Some(match model.kv_dtype {
            KvDtypeChoice::Auto => RawKvDtype::Auto,
            KvDtypeChoice::F32 => RawKvDtype::F32,
            KvDtypeChoice::Bf16 => RawKvDtype::Bf16,
            KvDtypeChoice::Fp8 => RawKvDtype::Fp8,
        }),
        device: model.device.map(|device| device.to_string()),
        quantize: Some(RawQuantize::of(model.quantize)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reference::example_in_effect;
    use crate::config::{Environment, Overrides, resolve};

    #[test]
    fn what_is_shown_resolves_to_the_same_again_and_hides_secrets() {
        let environment = Environment { admin_key: Some("hush-hush".into()), ..Environment::default() };
        let text = example_in_effect();
        let settings = resolve(toml::from_str(&text).unwrap(), &text, &environment, &Overrides::default()).unwrap();
        let shown = show(&settings);
        assert!(!shown.contains("hush") && shown.contains("# MILLGATE_ADMIN_KEY: ***"));
        let again = resolve(toml::from_str(&shown).unwrap(), &shown, &environment, &Overrides::default()).unwrap();
        assert_eq!(show(&again), shown);
    }
}
