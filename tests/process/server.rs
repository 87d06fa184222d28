//! Starts `millgate serve` as a child process and talks to it over HTTP.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The administrator's key of every server started here.
pub(super) const ADMIN_KEY: &str = "bootstrap-secret-only-for-tests";
/// Longest wait for a start or an end; a loaded machine may need most of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server; killed when dropped.
pub(crate) struct ServerProcess {
    child: Child,
    url: String,
    client: reqwest::Client,
    output: mpsc::UnboundedReceiver<String>,
}

/// A whole answer to a generation.
pub(super) struct Answer {
    pub(super) body: Value,
}

impl ServerProcess {
    /// Starts a server on a free port with its data in `data_dir` and waits until it is ready.
    pub(crate) async fn start(data_dir: &Path, arguments: &[&str]) -> Self {
        Self::launch(serve_command(data_dir, arguments)).await
    }

    /// Starts a server by a command of the test's own and waits until it is ready.
    pub(super) async fn launch(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary was built with the tests");
        let (sender, mut output) = mpsc::unbounded_channel();
        follow(child.stdout.take().expect("stdout is piped"), sender.clone());
        follow(child.stderr.take().expect("stderr is piped"), sender);
        let mut seen = String::new();
        let url = loop {
            let line = tokio::time::timeout(PATIENCE, output.recv()).await.expect("the start takes no minutes");
            let Some(line) = line else { panic!("the server ended before it listened:\n{seen}") };
            seen.push_str(&line);
            seen.push('\n');
            if let Some(url) = address_in(&line) {
                break url;
            }
        };
        // The bundled root certificates need a provider; plain HTTP uses none, but the client wants one installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("a plain client builds");
        let server = Self { child, url, client, output };
        server.wait_until_ready().await;
        server
    }

    async fn wait_until_ready(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let reply = self.client.get(format!("{}/readyz", self.url)).send().await;
            if reply.is_ok_and(|reply| reply.status() == 200) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the server never became ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A request with the administrator's key.
    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).bearer_auth(ADMIN_KEY).json(body)
    }

    /// A change with the administrator's key.
    pub(super) fn put(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.put(format!("{}{path}", self.url)).bearer_auth(ADMIN_KEY).json(body)
    }

    /// A request with the administrator's key.
    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url)).bearer_auth(ADMIN_KEY)
    }

    /// A short chat with somebody's key: status and body.
    pub(crate) async fn chat_as(&self, key: &str, seed: u64) -> (u16, Value) {
        let request = self.client.post(format!("{}/v1/chat/completions", self.url)).bearer_auth(key);
        let reply = request.json(&chat_body("Hello?", seed)).send().await.expect("the server answers");
        (reply.status().as_u16(), reply.json().await.expect("answers are JSON"))
    }

    /// What `/v1/me` says to the holder of a key.
    pub(crate) async fn me(&self, key: &str) -> Value {
        let reply = self.client.get(format!("{}/v1/me", self.url)).bearer_auth(key).send().await;
        reply.expect("the server answers").json().await.expect("answers are JSON")
    }

    /// The same request with another key.
    pub(super) fn as_key(&self, request: reqwest::RequestBuilder, key: &str) -> reqwest::RequestBuilder {
        let mut request = request.build().expect("the address is well formed");
        let value = format!("Bearer {key}").parse().expect("keys are plain text");
        request.headers_mut().insert(reqwest::header::AUTHORIZATION, value);
        reqwest::RequestBuilder::from_parts(self.client.clone(), request)
    }

    /// The process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A request without a credential.
    pub(super) fn get_without_key(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    /// A chat answer that must succeed.
    pub(super) async fn chat(&self, body: &Value) -> Answer {
        let reply = self.post("/v1/chat/completions", body).send().await.expect("the server answers");
        let status = reply.status();
        let body: Value = reply.json().await.expect("answers are JSON");
        assert_eq!(status, 200, "{body}");
        Answer { body }
    }

    /// Sends a signal by its number.
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().expect("`kill` is on every Debian machine");
        assert!(sent.success(), "kill {signal} {id}");
    }

    /// The memory of the process that is in use now, in bytes.
    pub(super) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs on Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the system tells it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kibibytes") * 1024
    }

    /// Waits for the end after a signal.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "the server never ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything printed since the start, after the end.
    pub(super) async fn rest_of_output(&mut self) -> String {
        let mut text = String::new();
        while let Some(line) = self.output.recv().await {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `millgate serve` that is expected to fail by itself, and returns its status and everything it printed.
pub(super) fn failed_start(data_dir: &Path, arguments: &[&str]) -> (ExitStatus, String) {
    let output =
        serve_command(data_dir, arguments).stdin(Stdio::null()).output().expect("the binary was built with the tests");
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

/// A chat request for the bundled model.
pub(super) fn chat_body(question: &str, seed: u64) -> Value {
    json!({
        "model": "demo", "seed": seed, "max_tokens": 24, "temperature": 0.8,
        "messages": [{"role": "user", "content": question}],
    })
}

/// `millgate serve` on a free port, with its data in `data_dir`.
pub(super) fn serve_command(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millgate"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .args(arguments)
        .current_dir(data_dir)
        .env("MILLGATE_ADMIN_KEY", ADMIN_KEY)
        .env_remove("MILLGATE_CONFIG");
    command
}

/// Passes every line on; the thread ends with the pipe, which ends with the child.
fn follow(pipe: impl Read + Send + 'static, sender: mpsc::UnboundedSender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
}

/// The first loopback address in a line, as a base URL.
fn address_in(line: &str) -> Option<String> {
    let start = line.find("http://127.0.0.1:")?;
    let rest = &line[start + "http://127.0.0.1:".len()..];
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!port.is_empty() && port != "0").then(|| format!("http://127.0.0.1:{port}"))
}
