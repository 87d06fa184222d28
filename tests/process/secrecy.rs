//! Prompts, answers and credentials stay out of everything: output at the loudest log level, errors, metrics, and every file.

use std::path::Path;

use serde_json::{Value, json};

use super::server::{ADMIN_KEY, ServerProcess, chat_body, serve_command};
use crate::support::{Collector, Kubernetes};

const PROMPT: &str = "xyzzy-plugh: tell me about limits";
const WEBHOOK_SECRET: &str = "signs-what-the-webhook-is-sent";
/// Credentials of strangers: never valid, and no less secret.
const STRANGERS: [&str; 3] = [
    "sk-mg_0123456789ab_thesecretpartofastrangerskeythatnobodymade",
    "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJzdHJhbmdlciJ9.c2lnbmF0dXJlLW9mLWEtc3RyYW5nZXI",
    "whsec_c2VjcmV0LW9mLWEtc3RyYW5nZXI",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_said_and_no_key_is_ever_logged() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = loud_server(folder.path()).await;

    let made: Value = server.post("/v1/api-keys", &json!({"name": "n"})).send().await.unwrap().json().await.unwrap();
    let key = made["key"].as_str().unwrap();
    let answer = server.chat(&chat_body(PROMPT, 1)).await.body;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    // Every way of being wrong that could end up in a line for the operator.
    for body in [
        json!({"model": "demo", "messages": PROMPT}),
        json!({"model": PROMPT, "messages": [{"role": "user", "content": PROMPT}]}),
        json!({"model": "demo", "messages": [{"role": PROMPT, "content": PROMPT}]}),
        json!({"model": "demo", (PROMPT): 1, "messages": [{"role": "user", "content": PROMPT, "name": PROMPT}], "n": 0}),
        json!({"model": "demo", "messages": [{"role": "user", "content": PROMPT.repeat(2000)}]}),
    ] {
        let reply = server.post("/v1/chat/completions", &body).send().await.unwrap();
        assert!(reply.status().is_client_error(), "{body}");
    }
    let wrong = server.get("/v1/me").header("x-api-key", key).header("x-request-id", PROMPT).send().await.unwrap();
    assert_eq!(wrong.status(), 200);
    server.signal("-TERM");
    assert!(server.ended().await.success());

    let printed = server.rest_of_output().await;
    assert!(printed.contains("/v1/chat/completions answered 200"), "requests are logged: {printed}");
    let secret = key.rsplit('_').next().unwrap();
    for hidden in ["xyzzy", secret, ADMIN_KEY] {
        assert!(!printed.contains(hidden), "`{hidden}` was printed");
    }
    assert!(text.len() < 8 || !printed.contains(&text), "the answer was printed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credential_made_or_presented_is_in_the_output_the_errors_the_metrics_the_traces_or_any_file() {
    let folder = tempfile::tempdir().unwrap();
    let (collector, endpoint) = Collector::start().await;
    // By name, so that it is not taken for the address of the server itself.
    let endpoint = endpoint.replace("127.0.0.1", "localhost");
    let cluster = Kubernetes::start().await;
    let more = format!("[traces]\nendpoint = \"{endpoint}\"\n[notices]\nwebhook_url = \"{endpoint}/notices\"\n");
    let mut server = loud_server_with(folder.path(), &(more + &believed(&cluster))).await;
    let mut secrets = vec![ADMIN_KEY.to_owned(), WEBHOOK_SECRET.to_owned()];
    // What the server shows the cluster, before and after it was replaced, and one that the cluster vouches for.
    secrets.push(std::fs::read_to_string(cluster.config().token_file).unwrap().trim().to_owned());
    secrets.push(cluster.replace_own_token());
    secrets.push(cluster.service_account("default", "caller", i64::from(u32::MAX)));
    let mut told = String::new();

    make_credentials(&server, &mut secrets).await;
    secrets.extend(STRANGERS.map(str::to_owned));
    // Something that leaves a whole trace.
    assert_eq!(server.chat(&chat_body("Hello?", 1)).await.body["object"], "chat.completion");
    for secret in &secrets {
        told += &misuse(&server, secret).await;
    }
    told += &server.get("/metrics").send().await.unwrap().text().await.unwrap();
    told += &server.get("/admin/v1/audit?limit=1000").send().await.unwrap().text().await.unwrap();
    told += &server.get("/admin/v1/api-keys").send().await.unwrap().text().await.unwrap();
    // While it runs, what is not yet in the database stands in its journal.
    refuse_in_files(folder.path(), &secrets);
    server.signal("-TERM");
    assert!(server.ended().await.success());
    refuse_in_files(folder.path(), &secrets);

    let traced = collector.messages();
    assert!(traced.iter().any(|(_, body)| holds(body, b"chat demo")), "requests left traces");
    assert!(told.contains("kubernetes:system:serviceaccount:default:caller"), "the cluster was asked: {told}");
    let printed = server.rest_of_output().await;
    assert!(printed.contains("TRACE") && printed.contains("answered 401"), "it was loud: {printed}");
    for secret in &secrets {
        let hidden = essence(secret);
        assert!(!printed.contains(hidden), "`{hidden}` was printed");
        assert!(!told.contains(hidden), "`{hidden}` was told: {told}");
        assert!(!traced.iter().any(|(_, body)| holds(body, hidden.as_bytes())), "`{hidden}` was traced");
    }
}

async fn loud_server(folder: &Path) -> ServerProcess {
    loud_server_with(folder, "").await
}

async fn loud_server_with(folder: &Path, more: &str) -> ServerProcess {
    let config = folder.join("loud.toml");
    std::fs::write(&config, format!("[log]\nlevel = \"trace\"\n{more}")).unwrap();
    let mut command = serve_command(folder, &["--config", config.to_str().unwrap()]);
    command.env("MILLGATE_WEBHOOK_SECRET", WEBHOOK_SECRET);
    ServerProcess::launch(command).await
}

/// The table that makes a server believe the tokens of a cluster.
fn believed(cluster: &Kubernetes) -> String {
    let cluster = cluster.config();
    format!(
        "[kubernetes]\naudiences = {:?}\nserver = {:?}\ntoken_file = {:?}\nca_file = {:?}\n",
        cluster.audiences,
        // By name here, too.
        cluster.server.replace("127.0.0.1", "localhost"),
        cluster.token_file,
        cluster.ca_file
    )
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// One of every kind that this server makes.
async fn make_credentials(server: &ServerProcess, secrets: &mut Vec<String>) {
    let first = made(server, "/v1/api-keys", json!({"name": "first", "labels": {"team": "a"}}), "key").await;
    secrets.push(first["key"].as_str().unwrap().to_owned());
    server.post("/admin/v1/users", &json!({"name": "ann"})).send().await.unwrap();
    let hers = made(server, "/admin/v1/api-keys", json!({"user": "ann", "name": "hers"}), "key").await;
    secrets.push(hers["key"].as_str().unwrap().to_owned());
    let path = format!("/v1/api-keys/{}/rotate", first["id"].as_str().unwrap());
    for (path, field) in [(path.as_str(), "key"), ("/v1/tokens", "token")] {
        let made = made(server, path, json!({}), field).await;
        secrets.push(made[field].as_str().unwrap().to_owned());
    }
}

async fn made(server: &ServerProcess, path: &str, body: Value, field: &str) -> Value {
    let reply = server.post(path, &body).send().await.unwrap();
    let status = reply.status();
    let body: Value = reply.json().await.unwrap();
    assert!(status.is_success() && body[field].is_string(), "{path}: {body}");
    body
}

/// Presents a credential in the right place and in every wrong one; what came back.
async fn misuse(server: &ServerProcess, secret: &str) -> String {
    let chat = |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    let requests = [
        server.get_without_key("/v1/me").header("x-api-key", secret),
        server.get_without_key("/v1/models").bearer_auth(secret),
        server.get(&format!("/v1/models/{secret}")),
        server.get(&format!("/v1/api-keys?cursor={secret}")),
        server.get(&format!("/nowhere/{secret}?{secret}={secret}")),
        server.get("/v1/me").header("x-request-id", secret),
        server.post("/v1/chat/completions", &chat(secret)),
        server.post("/v1/chat/completions", &chat("demo")).header("x-request-id", secret),
        server.post("/v1/api-keys", &json!({"name": "n", (secret): 1})),
        server.post("/v1/api-keys", &json!({"name": "n", "expires_in": secret})),
        server.post("/v1/api-keys", &json!({"name": "n", "limits": [secret]})),
        server.post("/v1/tiers/lookup", &json!({"groups": [secret]})),
        server.post("/admin/v1/tiers", &json!({"name": format!("{secret}!"), "level": 99, "groups": ["g"]})),
        server.post("/admin/v1/tiers/apply", &json!({"content": secret})),
    ];
    let mut told = String::new();
    for request in requests {
        let reply = request.send().await.unwrap();
        if !reply.status().is_success() {
            told += &reply.text().await.unwrap();
        }
    }
    told
}

/// The part that opens something: the id before it may be shown.
fn essence(secret: &str) -> &str {
    if secret.starts_with("sk-mg_") { secret.rsplit('_').next().unwrap() } else { secret }
}

fn refuse_in_files(folder: &Path, secrets: &[String]) {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(bytes) = std::fs::read(&path) else { continue };
        files += 1;
        for secret in secrets {
            assert!(!holds(&bytes, essence(secret).as_bytes()), "`{secret}` is in `{}`", path.display());
        }
    }
    assert!(files >= 2, "the data directory holds files");
}
