//! Follows a folder of files that declare tiers: reads its content now and then, and applies it when it is another.
//!
//! Content, not events: Kubernetes swaps a symbolic link when a mounted ConfigMap changes, and network folders send none.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::governance::Governor;
use crate::governance::tier_files::Declaration;
use crate::telemetry::Metrics;

/// The largest file; a ConfigMap has at most 1 MiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The most files.
const FILES_MAX: usize = 1000;
/// How often a folder that changes while it is read is read again.
const READS: usize = 3;

/// A folder that declares tiers.
pub struct TierFolder {
    folder: PathBuf,
    governor: Governor,
    metrics: Arc<Metrics>,
    /// Said once, not at every look.
    problem: Option<String>,
}

impl TierFolder {
    /// Nothing is read yet.
    pub fn new(folder: PathBuf, governor: Governor, metrics: Arc<Metrics>) -> Self {
        Self { folder, governor, metrics, problem: None }
    }

    /// Reads the folder and brings the tiers in line with it; what is wrong is reported, and the last good state stays.
    pub async fn look(&mut self) {
        let problem = self.apply().await.err().map(|error| format!("{error:#}"));
        self.metrics.tier_files(problem.is_some());
        if let Some(problem) = &problem {
            self.governor.tier_files_failed(problem.clone());
            if self.problem.as_ref() != Some(problem) {
                let folder = self.folder.display();
                error!("the tiers of `{folder}` cannot be applied, the last good state stays in effect: {problem}");
            }
        } else if self.problem.is_some() {
            info!("the tiers of `{}` are in order again", self.folder.display());
        }
        self.problem = problem;
    }

    /// Looks again and again, until `stop`.
    pub(super) async fn follow(mut self, every: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => self.look().await,
            }
        }
    }

    async fn apply(&self) -> Result<()> {
        let folder = self.folder.clone();
        let files =
            tokio::task::spawn_blocking(move || read_steady(&folder)).await.context("the reader ended early")??;
        let declared = Declaration::from_files(&files)?;
        let plan = self.governor.follow_tiers(&declared).await?;
        if !plan.is_empty() {
            let folder = self.folder.display();
            let (created, changed, deleted) = (plan.create.len(), plan.update.len(), plan.delete.len());
            info!(created, changed, deleted, "applied the tiers of `{folder}`");
        }
        Ok(())
    }
}

/// Name and text of each file, sorted; twice the same, so that no half of a change is taken for the whole.
fn read_steady(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut last = read(folder);
    for _ in 1..READS {
        let next = read(folder);
        match (last, next) {
            (Ok(a), Ok(b)) if a == b => return Ok(b),
            (Err(_), Err(error)) => return Err(error),
            (_, next) => last = next,
        }
    }
    bail!("`{}` keeps changing while it is read", folder.display())
}

fn read(folder: &Path) -> Result<Vec<(String, String)>> {
    let unreadable = || format!("cannot read the folder `{}`", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !declares_tiers(name) {
            continue;
        }
        let text = read_file(&path).with_context(|| format!("cannot read `{name}`"))?;
        files.push((name.to_owned(), text));
        if files.len() > FILES_MAX {
            bail!("`{}` has more than {FILES_MAX} files", folder.display());
        }
    }
    if files.is_empty() {
        // Not an order to delete every tier: a volume that is not mounted yet looks the same.
        bail!("`{}` has no file that declares tiers", folder.display());
    }
    files.sort();
    Ok(files)
}

/// A mounted ConfigMap has its key, `tiers`, as a file; hidden names are how Kubernetes keeps versions.
fn declares_tiers(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    !name.starts_with('.')
        && (name == "tiers" || matches!(extension.as_deref(), Some("yaml" | "yml" | "json" | "toml")))
}

fn read_file(path: &Path) -> io::Result<String> {
    // Reading a pipe or a device may wait for ever, or find no end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_may_declare_tiers_are_read() {
        for name in ["tiers", "a.yaml", "b.YML", "c.json", "d.toml"] {
            assert!(declares_tiers(name), "{name}");
        }
        for name in ["..data", ".hidden.yaml", "README.md", "tiers.bak", "a.yaml~"] {
            assert!(!declares_tiers(name), "{name}");
        }
    }
}
