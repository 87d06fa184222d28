//! The two servers: how each is started at its best, and stopped.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::ask::{self, Report};
use super::rows::Work;

/// The key both are asked with; the rival checks none.
const KEY: &str = "compare-a7f3c1d95e2b4860";
const PATIENCE: Duration = Duration::from_secs(120);

/// A server to start.
#[derive(Debug, Clone)]
pub(crate) enum Arm {
    Millgate { threads: usize },
    Rival { program: PathBuf, threads: usize, options: Vec<String> },
}

impl Arm {
    /// For messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Millgate { .. } => "millgate",
            Self::Rival { .. } => "llama-server",
        }
    }

    fn command(&self, model: &Path, work: &Work, port: u16, folder: &Path) -> Result<Command> {
        Ok(match self {
            Self::Millgate { threads } => {
                let config = folder.join("millgate.toml");
                // Random weights repeat themselves, which makes guessing ahead look better than it is on text.
                let text = format!("[cpu]\nthreads = {threads}\n[engine]\nspeculation = \"off\"\n");
                fs::write(&config, text).context("write the configuration")?;
                let mut command = Command::new(env!("CARGO_BIN_EXE_millgate"));
                command.arg("serve").arg("--config").arg(config);
                command.arg("--listen").arg(format!("127.0.0.1:{port}"));
                command.arg("--data-dir").arg(folder.join("data"));
                command.arg("--model").arg(format!("m={}", model.display()));
                command.env("MILLGATE_ADMIN_KEY", KEY);
                command
            }
            Self::Rival { program, threads, options } => {
                let threads = threads.to_string();
                // A slot for each stream, and context for all of them.
                let context = (work.context() * work.clients).to_string();
                let mut command = Command::new(program);
                command.arg("--model").arg(model).args([
                    "--alias",
                    "m",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    &port.to_string(),
                ]);
                command.args(["--threads", &threads, "--threads-batch", &threads]);
                command.args(["--parallel", &work.clients.to_string(), "--ctx-size", &context]).args(options);
                command
            }
        })
    }
}

/// A server that was started.
pub(crate) struct Serving {
    process: Child,
    url: String,
    log: PathBuf,
    client: reqwest::Client,
    started: Instant,
    /// Its files, removed with it.
    _folder: TempDir,
}

impl Serving {
    /// Starts the arm with `model`, ready for `work`.
    ///
    /// # Errors
    /// The program is not there.
    pub(crate) async fn start(arm: &Arm, model: &Path, work: &Work) -> Result<Self> {
        let folder = TempDir::new().context("make a folder")?;
        let port = TcpListener::bind("127.0.0.1:0").context("find a port")?.local_addr().context("find a port")?.port();
        let log = folder.path().join("log");
        let output = File::create(&log).context("make a log")?;
        let mut command = arm.command(model, work, port, folder.path())?;
        command.stdin(Stdio::null()).stdout(output.try_clone().context("share the log")?).stderr(output);
        let client = reqwest::Client::builder().no_proxy().build().context("make a client")?;
        let started = Instant::now();
        let process = command.spawn().with_context(|| format!("start {}", arm.name()))?;
        Ok(Self { process, url: format!("http://127.0.0.1:{port}"), log, client, started, _folder: folder })
    }

    /// Waits for the first token of a short answer; the time since the start.
    ///
    /// # Errors
    /// None came in two minutes.
    pub(crate) async fn first_token(&self) -> Result<Duration> {
        let answer = ask::first_token(&self.client, &self.url, KEY, PATIENCE).await;
        answer.with_context(|| self.last_words())?;
        Ok(self.started.elapsed())
    }

    /// Puts the work on it.
    ///
    /// # Errors
    /// A request failed.
    pub(crate) fn bench(&self, work: &Work) -> Result<Report> {
        ask::bench(&self.url, KEY, work).with_context(|| self.last_words())
    }

    /// Megabytes of memory it holds, mapped files included.
    ///
    /// # Errors
    /// It is gone, or this is not Linux.
    pub(crate) fn resident_mb(&self) -> Result<f64> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.process.id())).context("read the server's status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in the status")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("read VmRSS")?;
        Ok(kib * 1024.0 / 1e6)
    }

    /// Ends it, as dropping does.
    ///
    /// # Errors
    /// It had ended by itself.
    pub(crate) fn stop(mut self) -> Result<()> {
        ensure!(
            self.process.try_wait().context("look at the server")?.is_none(),
            "it ended early; {}",
            self.last_words()
        );
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        format!("the server's log ends: {}", lines.into_iter().rev().collect::<Vec<_>>().join(" | "))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
