//! Every configuration key with its meaning, unit, default and reason: the one source of docs/config.md and the example file.

use std::fmt::Write as _;

/// One documented key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The table it stands in, such as `server`; `models` is a list of tables.
    pub table: &'static str,
    /// Its name inside the table.
    pub name: &'static str,
    /// What kind of value it takes, with its unit.
    pub kind: &'static str,
    /// What holds when it is not set.
    pub default: &'static str,
    /// A value as it is written in TOML; the example file shows it.
    pub example: &'static str,
    /// What it does and why one would change it.
    pub about: &'static str,
}

/// True for a table that may stand several times.
fn is_list(table: &str) -> bool {
    matches!(table, "models" | "oidc")
}

const fn key(
    table: &'static str,
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    example: &'static str,
) -> Key {
    Key { table, name, kind, default, example, about: "" }
}

impl Key {
    const fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }
}

const TABLES: &[(&str, &str)] = &[
    ("server", "Addresses, bounds and shutdown."),
    ("store", "Where durable data lives."),
    ("engine", "How requests are batched. The defaults suit most machines."),
    (
        "memory",
        "How much memory models may take. Each gets a fixed share before it loads; what does not fit is refused.",
    ),
    ("cpu", "Threads."),
    ("keys", "API keys."),
    ("tiers", "Rules for all tiers, and a folder of files that declare them."),
    ("identity", "What holds for all identity providers."),
    (
        "kubernetes",
        "The Kubernetes cluster whose tokens are believed: its API server is asked about each (TokenReview). Off until `audiences` is set. See docs/operations.md.",
    ),
    ("tokens", "Short-lived signed tokens, made with `POST /v1/tokens`."),
    (
        "notices",
        "What is told when a quota (a limit on a calendar period, or on money) is nearly used up, and to whom. The secret that signs is read from the environment (`MILLGATE_WEBHOOK_SECRET`) or a file.",
    ),
    ("hub", "Where `hf:` models come from. The access token is read from the environment only (`HF_TOKEN`)."),
    ("log", "What is logged. Prompts, outputs, keys and addresses never are."),
    (
        "traces",
        "Traces over OTLP (HTTP with protobuf), one span a request with its stages below. Off until an endpoint is set. Prompts, outputs, users and keys are never in them.",
    ),
    (
        "oidc",
        "One `[[oidc]]` table for each identity provider (OpenID Connect) whose tokens are believed. See docs/operations.md.",
    ),
    ("models", "One `[[models]]` table a model. Without any, the bundled demo model is served as `demo`."),
];

/// Every key the file may hold, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("server", "listen", "address:port", "127.0.0.1:8080", "\"127.0.0.1:8080\"")
        .about("Where the API listens. Only this machine by default: put 0.0.0.0:8080 here once keys and a TLS proxy are in place."),
    key("server", "ops_listen", "address:port", "unset", "\"127.0.0.1:9090\"")
        .about("A second listener for probes and metrics, without a credential. While unset they are on the main one."),
    key("server", "drain_timeout", "duration", "30s", "\"30s\"")
        .about("How long streams in flight may go on after SIGTERM. Keep it below the supervisor's kill timeout."),
    key("server", "body_limit", "bytes", "4MiB", "\"4MiB\"")
        .about("The largest request body; more is a 413. A 128k-token prompt is about half a MiB."),
    key("server", "read_timeout", "duration", "30s", "\"30s\"")
        .about("How long a client may take to send its request. Bounds what a slow or hostile sender can hold open."),
    key("server", "generation_timeout", "duration", "1h", "\"1h\"")
        .about("The longest time from admission to the last token; then the answer ends. Bounds what one request can hold; what was made until then is charged."),
    key("server", "max_connections", "connections", "4096", "4096")
        .about("Connections open at the same time; further ones wait to be accepted. Keep it below the open-files limit."),
    key("server", "cors_origins", "list of origins", "none", "[\"https://chat.example.com\"]")
        .about("Web pages from these origins may call the API from a browser. `*` allows any; keys are still needed."),
    key("server", "trusted_proxies", "list of networks", "none", "[\"10.0.0.0/8\"]")
        .about("Proxies whose X-Forwarded-For is believed when failed credentials are counted per source."),
    key("server", "model_folders", "list of folders", "none", "[\"/srv/models\"]")
        .about("Folders below which administrators may load models through the API; absolute paths. Anything else on this machine can only be served by the command line or this file."),
    key("store", "data_dir", "folder", "millgate-data", "\"millgate-data\"")
        .about("Users, key digests, tiers, the ledger. One process owns it; back it up."),
    key("engine", "max_step", "duration", "60ms", "\"60ms\"")
        .about("A step with somebody of the same or a higher tier decoding lasts at most this long; longer prompts are computed in pieces. Less: smoother streams. More: faster prompts."),
    key("engine", "step_tokens", "tokens", "512; 4096 on a GPU", "512")
        .about("The most tokens one step computes; sizes the workspace."),
    key("engine", "max_running", "sequences", "as many as the model has output rows", "64")
        .about("How many sequences decode together. More raises throughput and each one's time between tokens."),
    key("engine", "queue_requests", "requests", "1024", "1024")
        .about("How many requests may wait for a place; the next gets 503 with Retry-After."),
    key("engine", "queue_tokens", "tokens", "1048576", "1048576")
        .about("How many prompt tokens may wait: bounds the memory of the queue and the wait behind few huge prompts."),
    key("engine", "queue_timeout", "duration", "10m", "\"10m\"")
        .about("How long a request may wait for its start; common clients give up after ten minutes."),
    key("engine", "park_timeout", "duration", "2s", "\"2s\"")
        .about("How long a request at the end of its allowance keeps its place while a limit refills."),
    key("engine", "prefix_cache", "true or false", "true", "true")
        .about("Reuse the computed beginning of a prompt for the same user. Off only to measure."),
    key("engine", "speculation", "auto or off", "auto", "\"auto\"")
        .about("On the CPU, guess tokens from what the text said before and compute several in one step, where that is measured to be faster. Answers are the same, to the bit; rejected guesses are never charged. `off` only to measure."),
    key("engine", "device", "auto, cpu or cuda:N", "auto", "\"auto\"")
        .about("Where models compute. `auto` takes the first NVIDIA GPU that can be used and has room for the model, else the CPU, and says why. A GPU that is named must be there. Needs a build with the feature `cuda`."),
    key("engine", "deterministic", "true or false", "false", "false")
        .about("On a GPU, the numbers of an answer do not depend on who else is served, at some cost in speed. On the CPU they never do."),
    key("memory", "limit", "bytes or share", "80%", "\"80%\"")
        .about("All models together: weights, workspaces and KV caches. A share is of what the machine or its control group allows."),
    key("memory", "kv_cache", "bytes", "an equal part of what is left, at most 4GiB", "\"2GiB\"")
        .about("The KV cache of each model that does not set `kv_memory`. More lets more and longer conversations run together."),
    key("cpu", "threads", "threads", "the control group's quota, else physical cores", "8")
        .about("Worker threads of the one pool that all models share."),
    key("keys", "max_per_user", "keys", "50", "50").about("How many live API keys one user may own."),
    key("keys", "default_life", "duration", "90d", "\"90d\"")
        .about("How long a key lives when its maker does not say. Keys that nobody renews end by themselves."),
    key("keys", "longest_life", "duration", "365d", "\"365d\"").about("The longest life a key may be given."),
    key("keys", "failures_per_minute", "attempts", "120", "120")
        .about("Failed credentials a source may present in a minute before it is told to wait; a valid one always passes."),
    key("tiers", "instance", "name", "maas-default-gateway", "\"maas-default-gateway\"")
        .about("Service accounts of the namespace `{instance}-tier-{name}` are in that tier without its groups naming them."),
    key("tiers", "folder", "folder", "unset", "\"/etc/millgate/tiers\"")
        .about("A folder whose files (`*.yaml`, `*.json`, `*.toml`, or a mounted ConfigMap's `tiers`) declare tiers. What they declare cannot be changed elsewhere; a wrong file leaves the last good state in effect."),
    key("tiers", "poll", "duration", "2s", "\"2s\"")
        .about("How often the folder's content is read. Read, not watched for events, so that mounted ConfigMaps and network folders work."),
    key("tiers", "new_limits", "list of limits", "those of the tier `free` of a first start", "[\"60 requests / 1m\", \"40000 tokens / 1m\"]")
        .about("The limits of a tier that a ConfigMap declares for the first time, because a ConfigMap has none; never unlimited in silence."),
    key("identity", "groups_max_age", "duration", "7d", "\"7d\"")
        .about("How long a provider's word about a user's groups counts, 1h to 90d. Then the user's keys have the groups given here only, until the next login."),
    key("kubernetes", "audiences", "list of names", "unset", "[\"millgate\"]")
        .about("A token must be meant for one of these, or tokens made for other programs would open this server. The API server's own audience works, too, and so do then all tokens that open the cluster itself."),
    key("kubernetes", "server", "URL", "KUBERNETES_SERVICE_HOST, else https://kubernetes.default.svc", "\"https://kubernetes.default.svc\"")
        .about("The API server. https, or http on this machine. Redirects and proxies are not followed."),
    key("kubernetes", "token_file", "file", "that of the pod's service account", "\"/var/run/secrets/kubernetes.io/serviceaccount/token\"")
        .about("The token by which the API server knows this server. Read for every review, because it is replaced while the server runs."),
    key("kubernetes", "ca_file", "file", "that of the pod's service account", "\"/var/run/secrets/kubernetes.io/serviceaccount/ca.crt\"")
        .about("The certificates by which the API server is known, in PEM form; no others are trusted. Read for every review, too."),
    key("kubernetes", "allow_inference", "true or false", "false", "false")
        .about("Whether these tokens open inference. Otherwise they open account and administration: users make an API key or a token with them."),
    key("kubernetes", "group_map", "table of names", "none", "{ \"system:serviceaccounts:platform\" = \"millgate-admins\" }")
        .about("What groups of the cluster mean here. Only through it does one give administration, or a `system:` group other than those of a service account's own namespace."),
    key("tokens", "default_life", "duration", "4h", "\"4h\"")
        .about("How long a token lives when its maker does not say; never longer than the key it was made with."),
    key("tokens", "longest_life", "duration", "24h", "\"24h\"")
        .about("The longest life a token may be given, 10m to 24h. Short lives bound what a leaked token is worth."),
    key("tokens", "rotate_every", "duration", "30d", "\"30d\"")
        .about("How long one key signs tokens before the next takes over, at least 1h. The old one verifies until its last token has expired."),
    key("notices", "thresholds", "list of percents", "50, 80, 95", "[50, 80, 95]")
        .about("Shares of a quota whose reaching is told: in `x-millgate-quota-notice`, in `/v1/me`, and to the webhook once per limit, subject and period. Nothing is refused for it. An empty list tells nothing."),
    key("notices", "webhook_url", "URL", "unset", "\"https://alerts.example.com/millgate\"")
        .about("Where each notice is sent. Redirects are not followed. Whoever may set this can make the server send requests to that address: it is never taken from the API."),
    key("notices", "webhook_secret_file", "file", "unset", "\"/run/secrets/millgate-webhook\"")
        .about("A file whose content, without white space at its ends, signs what is sent; at least 16 characters. `MILLGATE_WEBHOOK_SECRET` wins over it."),
    key("hub", "endpoint", "URL", "https://huggingface.co", "\"https://huggingface.co\"")
        .about("The hub or a mirror of it; `HF_ENDPOINT` is used when this is unset."),
    key("hub", "home", "folder", "HF_HOME, else ~/.cache/huggingface", "\"/var/cache/huggingface\"")
        .about("Where downloads are kept, in the hub's own layout, so that other programs find them too."),
    key("log", "level", "filter", "info", "\"info\"")
        .about("error, warn, info, debug or trace, also per module (`info,millgate::engine=debug`). `MILLGATE_LOG` wins over it."),
    key("log", "format", "text or json", "text", "\"text\"").about("`json` writes one object a line, for log collectors."),
    key("traces", "endpoint", "address", "unset", "\"http://127.0.0.1:4318\"")
        .about("The collector's base address; `/v1/traces` is added. A collector that is away costs traces, never requests."),
    key("traces", "sample_ratio", "0 to 1", "1", "1.0")
        .about("The share of requests that leave a trace. The caller's `traceparent` is a link only and decides nothing."),
    key("traces", "headers", "list of name=value", "none", "[\"authorization=Basic dXNlcjpwYXNz\"]")
        .about("Headers of the messages to the collector. Values are secrets: they are never shown."),
    key("oidc", "name", "name", "required", "\"corp\"")
        .about("A short name, lower-case letters, digits and `-`. Users are called `corp:ann` here, so none can be taken for a user made here."),
    key("oidc", "issuer", "URL", "required", "\"https://id.example.com/realms/staff\"")
        .about("The issuer, letter by letter as in its tokens and in its discovery document. https, or http on this machine."),
    key("oidc", "audiences", "list of names", "required", "[\"millgate\"]")
        .about("A token must be meant for one of these (`aud`), or tokens made for other programs would open this server."),
    key("oidc", "clients", "list of names", "any", "[\"millgate-web\"]")
        .about("A token must have been given to one of these clients (`azp`, else `client_id`)."),
    key("oidc", "algorithms", "list of names", "[\"RS256\", \"ES256\"]", "[\"RS256\", \"ES256\", \"EdDSA\"]")
        .about("What tokens may be signed with: RS256 to RS512, PS256 to PS512, ES256, ES384, EdDSA. Never `none`, never a shared secret."),
    key("oidc", "user_claim", "claim", "preferred_username", "\"preferred_username\"")
        .about("The claim that names the user for people. Who somebody is hangs on issuer and `sub` alone."),
    key("oidc", "groups_claim", "claim", "unset", "\"groups\"")
        .about("The claim that lists the groups, or a path such as `realm_access.roles`. While unset, groups are given here only."),
    key("oidc", "allow_inference", "true or false", "false", "false")
        .about("Whether these tokens open inference. Otherwise they open account and administration: users make an API key or a token with them."),
    key("oidc", "leeway", "duration", "30s", "\"30s\"").about("How far the provider's clock and this one may be apart, at most 5m."),
    key("oidc", "keys_refresh", "duration", "15m", "\"15m\"")
        .about("After this the provider's keys are fetched again and tokens seen before are checked again, 1m to 24h. An unknown key is looked for at once, at most every 10 s."),
    key("oidc", "keys_max_age", "duration", "24h", "\"24h\"")
        .about("How long fetched keys are used while the provider cannot be reached, at most 7d. Then its tokens get 503."),
    key("oidc", "group_map", "table of names", "none", "{ \"Platform Admins\" = \"millgate-admins\" }")
        .about("What words of that claim mean here. Only through it does a claim give administration, a `system:` group, or a name with unusual characters."),
    key("models", "name", "name", "required", "\"qwen\"")
        .about("What clients put into `model`: lower-case letters, digits, `-`, `_`, `.`; no `/`."),
    key("models", "source", "source", "required", "\"hf:Qwen/Qwen3-0.6B\"")
        .about("`builtin:demo`, `hf:org/name[@revision]`, a folder in Hugging Face layout, or a `.gguf` file."),
    key("models", "display_name", "text", "the name", "\"Qwen3 0.6B\"").about("What people see in lists."),
    key("models", "tiers", "\"all\" or list of tiers", "\"all\"", "\"all\"")
        .about("Which tiers may use it. A user has the models of the own tier only, not those of lower tiers."),
    key("models", "context_window", "tokens", "the model's own", "8192")
        .about("The longest prompt plus answer. Shorter than the model's own saves KV cache for more users."),
    key("models", "kv_memory", "bytes", "memory.kv_cache", "\"2GiB\"").about("This model's KV cache."),
    key("models", "kv_dtype", "auto, f32, bf16 or fp8", "auto", "\"auto\"")
        .about("Number format of the KV cache: f32 for f32 models, else bf16. bf16 halves it. On a GPU it is that of the model, or fp8 for a bf16 model, which halves it again at some loss."),
    key("models", "device", "auto, cpu or cuda:N", "engine.device", "\"auto\"").about("Where this model computes."),
    key("models", "quantize", "none, q8_0 or q4_k", "none", "\"none\"")
        .about("Quantizes f32, f16 and bf16 weights while they load: q8_0 halves bf16 and loses hardly anything, q4_k takes a third and loses some. The result is kept in `quantized/` of the data directory, so later starts are quick."),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("MILLGATE_CONFIG", "the configuration file, when `--config` is not given"),
    ("MILLGATE_ADMIN_KEY", "the bootstrap key of `admin`: a well-formed key or a secret of 24 characters or more"),
    ("MILLGATE_API_KEY", "the key `chat`, `bench` and the administration commands use, when `--key` is not given"),
    ("MILLGATE_URL", "the server these commands talk to, when `--url` is not given"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "the collector of traces when `traces.endpoint` is unset"),
    (
        "OTEL_EXPORTER_OTLP_HEADERS",
        "headers for the collector as `name=value,name=value`; they win over `traces.headers`",
    ),
    ("MILLGATE_LOG", "log filter; wins over `log.level`. `RUST_LOG` is read when it is unset"),
    ("MILLGATE_WEBHOOK_SECRET", "signs what is sent to `notices.webhook_url`; 16 characters or more"),
    ("KUBERNETES_SERVICE_HOST", "the API server when `kubernetes.server` is unset; every pod has it"),
    ("KUBERNETES_SERVICE_PORT", "its port, 443 when unset"),
    ("HF_TOKEN", "access token for gated models"),
    ("HF_HOME", "where downloads are kept, when `hub.home` is not set"),
    ("HF_ENDPOINT", "the hub or its mirror, when `hub.endpoint` is not set"),
];

/// The text of docs/config.md.
#[must_use]
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Configuration\n\nMade by `millgate config reference`; do not edit. Every key is optional. Unknown keys are errors.\n\
         `millgate config check FILE` checks a file, `millgate config show` prints what is in effect.\n\
         Command-line options win over the file. Durations are `250ms`, `30s`, `5m`, `2h`, `7d`; amounts of memory `512MiB`, `4GiB`.\n",
    );
    for (table, about) in TABLES {
        let brackets = if is_list(table) { format!("[[{table}]]") } else { format!("[{table}]") };
        let _ = write!(page, "\n## `{brackets}`\n\n{about}\n\n| key | value | default | |\n|---|---|---|---|\n");
        for key in KEYS.iter().filter(|key| key.table == *table) {
            let _ = writeln!(page, "| `{table}.{}` | {} | {} | {} |", key.name, key.kind, key.default, key.about);
        }
    }
    page.push_str("\n## Environment\n\n| variable | |\n|---|---|\n");
    for (name, about) in ENVIRONMENT {
        let _ = writeln!(page, "| `{name}` | {about} |");
    }
    page
}

/// The text of millgate.example.toml: every key, commented out.
#[must_use]
pub fn example_file() -> String {
    let mut file = String::from(
        "# Every key of millgate.toml with an example value, all commented out: as it is, this file changes nothing.\n\
         # Take the `#` away from what you want to set, also from a table's name in double brackets.\n\
         # Made by `millgate config example`; docs/config.md has the same as a table.\n",
    );
    for (table, about) in TABLES {
        let brackets = if is_list(table) { format!("#[[{table}]]") } else { format!("[{table}]") };
        let _ = write!(file, "\n# {about}\n{brackets}\n");
        for key in KEYS.iter().filter(|key| key.table == *table) {
            let _ = write!(
                file,
                "# {}\n# {}; default: {}.\n#{} = {}\n",
                key.about, key.kind, key.default, key.name, key.example
            );
        }
    }
    file
}

/// The example with every `#` taken away that keeps a key from having an effect.
#[cfg(test)]
pub(super) fn example_in_effect() -> String {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    example_file().lines().map(uncommented).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    fn workspace_file(path: &str) -> String {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    /// The keys serde knows for a table: an unknown key's error lists them all.
    fn keys_of(table: &str) -> Vec<String> {
        let brackets = if is_list(table) { format!("[[{table}]]") } else { format!("[{table}]") };
        let error = toml::from_str::<RawConfig>(&format!("{brackets}\nzzz = 1\n")).unwrap_err();
        let (_, listed) = error.message().split_once("expected ").unwrap();
        listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_key_of_the_file_is_documented_and_every_documented_key_exists() {
        for (table, _) in TABLES {
            let documented: Vec<&str> = KEYS.iter().filter(|key| key.table == *table).map(|key| key.name).collect();
            assert_eq!(keys_of(table), documented, "[{table}]");
        }
        let error = toml::from_str::<RawConfig>("zzz = 1").unwrap_err().to_string();
        for (table, _) in TABLES {
            assert!(error.contains(&format!("`{table}`")), "{error}");
        }
        assert!(
            KEYS.iter().all(|key| key.about.ends_with(['.', '?']) && !key.kind.is_empty() && !key.default.is_empty())
        );
    }

    #[test]
    fn the_example_file_and_the_reference_page_are_up_to_date() {
        let page = workspace_file("docs/config.md");
        assert_eq!(page, reference_page(), "run `millgate config reference > docs/config.md`");
        let example = workspace_file("millgate.example.toml");
        assert_eq!(example, example_file(), "run `millgate config example > millgate.example.toml`");
    }

    #[test]
    fn the_example_file_is_valid_sets_nothing_as_it_is_and_every_key_without_its_marks() {
        let untouched: RawConfig = toml::from_str(&example_file()).unwrap();
        let empty: RawConfig = toml::from_str("").unwrap();
        assert_eq!(format!("{untouched:?}"), format!("{empty:?}"));
        let raw: RawConfig = toml::from_str(&example_in_effect()).unwrap();
        let written = toml::to_string(&raw).unwrap();
        for key in KEYS {
            assert!(
                written.contains(&format!("{} = ", key.name)) || written.contains(&format!(".{}]", key.name)),
                "{}.{} is not set by the example",
                key.table,
                key.name
            );
        }
    }
}
