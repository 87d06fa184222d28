//! OpenAI's own Python and Node clients, and schemathesis, against a running server.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "in a test a panic is the report, and a skipped one says so"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::TestApp;

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Runs a client program against a server made for it; `interpreter` and what it needs come from `tests/clients/install.sh`.
async fn drive(interpreter: &Path, installed: &Path, program: &str) {
    if !installed.exists() {
        let message =
            format!("{} is not installed: run tests/clients/install.sh (make test does)", installed.display());
        assert!(!is_ci(), "{message}");
        eprintln!("NOT RUN: {message}");
        return;
    }
    let app = TestApp::new()
        .tier("slow", |tier| tier.limit("1 requests / 2s"))
        .hidden_model("hidden")
        .system_clock()
        .start()
        .await;
    let (key, limited, revoked) = (app.user("ann", &[]).await, app.key("slow").await, app.user("ben", &[]).await);
    let price = serde_json::json!({"model": "*", "prompt": "1000000", "completion": "2000000"});
    let priced = app.admin().put("/admin/v1/prices", &serde_json::json!({"prices": [price]})).await;
    assert_eq!(priced.status, 200, "{}", priced.body);
    let id = revoked.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(revoked.delete(&format!("/v1/api-keys/{id}")).await.status, 200);
    let mut command = Command::new(interpreter);
    command
        .arg(clients().join(program))
        .env("MILLGATE_URL", format!("http://{}/v1", app.address))
        .env("MILLGATE_ADMIN_KEY", app.admin().key.unwrap())
        .env("MILLGATE_MODEL", "fake")
        .env("MILLGATE_KEY", key.key.unwrap())
        .env("MILLGATE_LIMITED_KEY", limited.key.unwrap())
        .env("MILLGATE_REVOKED_KEY", revoked.key.unwrap())
        .env("MILLGATE_HIDDEN_MODEL", "hidden")
        .env("NO_PROXY", "127.0.0.1");
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let (printed, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} failed:\n{printed}\n{complaint}");
    app.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "a test that cannot run must know whether that is acceptable here")]
fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// At the boundaries of what the document allows, as administrator and as nobody; `make schemathesis` does more.
#[test]
fn answers_keep_to_the_openapi_document_as_schemathesis_reads_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis");
    let python = folder.join(".venv/bin/python");
    if !python.exists() {
        let message =
            format!("{} is not installed: run tests/schemathesis/install.sh (make test does)", python.display());
        assert!(!is_ci(), "{message}");
        eprintln!("NOT RUN: {message}");
        return;
    }
    let mut command = Command::new(python);
    command.arg(folder.join("run.py")).arg(env!("CARGO_BIN_EXE_millgate")).env("RUNS", "quick");
    let output = command.output().unwrap();
    let (printed, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}\n{complaint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_python_client_drives_the_server() {
    let python = clients().join(".venv/bin/python");
    drive(&python, &python, "python_client.py").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_node_client_drives_the_server() {
    drive(Path::new("node"), &clients().join("node_modules/openai"), "node_client.mjs").await;
}
