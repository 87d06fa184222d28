//! Models from the Hugging Face hub: the files of one repository, downloaded once and kept in the hub's cache.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::Progress;

use super::hub_error::{HubError, Subject};
use super::hub_files::{HubFiles, Selection};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// How often a transfer that makes no headway is begun again.
const MAX_ATTEMPTS: u32 = 6;

/// How the hub is reached. The values come from the configuration; this module reads no environment.
#[derive(Clone)]
pub struct HubOptions {
    /// The hub's address (`HF_ENDPOINT`); the public one when absent.
    pub endpoint: Option<String>,
    /// The folder that holds the cache and a saved token (`HF_HOME`). Downloads need one.
    pub home: Option<PathBuf>,
    /// Access token (`HF_TOKEN`); when absent the one saved in `home`, if any.
    pub token: Option<String>,
    /// The pause before the first new attempt of a broken transfer; it doubles each time.
    pub retry_pause: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self { endpoint: None, home: None, token: None, retry_pause: Duration::from_millis(500) }
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("home", &self.home)
            .field("token", &token)
            .finish_non_exhaustive()
    }
}

/// Makes sure that the files of `repo` are in the cache and says where.
///
/// All files come from one commit. Without a network, what an earlier call completed for the same revision is used.
///
/// # Errors
/// A [`HubError`] that names the repository and what to do.
pub fn fetch(
    repo: &str,
    revision: Option<&str>,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<HubFiles, HubError> {
    let download = Download::new(repo, revision.unwrap_or("main"), options, progress)?;
    let listing = match download.at_revision.info() {
        Ok(listing) => listing,
        Err(error) => {
            let error = download.explain(error, None);
            return match download.completed_before() {
                Some(files) if matches!(error, HubError::Unreachable { .. }) => Ok(files),
                _ => Err(error),
            };
        }
    };
    if listing.sha.is_empty() || !listing.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(HubError::BadAnswer { repo: repo.to_owned(), problem: "the commit is no hash".to_owned() });
    }
    let names: Vec<String> = listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    download.at_commit(listing.sha).all(&names)
}

struct Download<'a> {
    repo: &'a str,
    revision: &'a str,
    endpoint: String,
    options: &'a HubOptions,
    progress: &'a dyn Progress,
    api: Api,
    cache: Cache,
    at_revision: ApiRepo,
}

impl<'a> Download<'a> {
    fn new(
        repo: &'a str,
        revision: &'a str,
        options: &'a HubOptions,
        progress: &'a dyn Progress,
    ) -> Result<Self, HubError> {
        let home = options.home.as_ref().ok_or(HubError::NoHome)?;
        // The library compares paths of the cache with each other, which needs them absolute.
        let home = std::path::absolute(home).map_err(|source| HubError::Cache { path: home.clone(), source })?;
        let cache = Cache::new(home.join("hub"));
        let endpoint = options.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/').to_owned();
        let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_endpoint(endpoint.clone());
        if options.token.is_some() {
            builder = builder.with_token(options.token.clone());
        }
        let subject = Subject { repo, revision, endpoint: &endpoint, file: None, cache: cache.path() };
        let api = builder.build().map_err(|error| HubError::from_api(error, &subject))?;
        let at_revision = api.repo(Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned()));
        Ok(Self { repo, revision, endpoint, options, progress, api, cache, at_revision })
    }

    fn cached(&self, revision: &str) -> CacheRepo {
        self.cache.repo(Repo::with_revision(self.repo.to_owned(), RepoType::Model, revision.to_owned()))
    }

    /// What an earlier download of this revision left; `None` unless every file is there.
    fn completed_before(&self) -> Option<HubFiles> {
        let folder = self.cache.path().join(Repo::new(self.repo.to_owned(), RepoType::Model).folder_name());
        // The reference is written only once all files of its commit are there.
        let commit = std::fs::read_to_string(folder.join("refs").join(self.revision)).ok()?;
        HubFiles::of_snapshot(&folder.join("snapshots").join(commit.trim()))
    }

    fn explain(&self, error: ApiError, file: Option<&str>) -> HubError {
        let cache = self.cache.path();
        let subject = Subject { repo: self.repo, revision: self.revision, endpoint: &self.endpoint, file, cache };
        HubError::from_api(error, &subject)
    }

    fn at_commit(self, commit: String) -> Commit<'a> {
        let repo = Repo::with_revision(self.repo.to_owned(), RepoType::Model, commit.clone());
        let snapshot = self.cache.repo(repo.clone()).pointer_path(&commit);
        Commit { remote: self.api.repo(repo.clone()), cached: self.cache.repo(repo), snapshot, download: self }
    }
}

/// One repository at one commit: every file fits every other.
struct Commit<'a> {
    download: Download<'a>,
    remote: ApiRepo,
    cached: CacheRepo,
    snapshot: PathBuf,
}

impl Commit<'_> {
    fn all(&self, names: &[String]) -> Result<HubFiles, HubError> {
        let selection = Selection::of(names, self.download.repo)?;
        for name in &selection.files {
            self.file(name)?;
        }
        if let Some(index) = &selection.index {
            let bytes = std::fs::read(self.file(index)?);
            let bytes = bytes.map_err(|source| HubError::Cache { path: self.snapshot.join(index), source })?;
            for shard in Selection::shards(index, &bytes, names, self.download.repo)? {
                self.file(&shard)?;
            }
        }
        let revision = self.download.cached(self.download.revision);
        let commit = self.snapshot.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        revision.create_ref(commit).map_err(|source| HubError::Cache { path: self.snapshot.clone(), source })?;
        Ok(selection.located(&self.snapshot))
    }

    /// Brings one file into the cache, beginning again where a broken transfer ended.
    fn file(&self, name: &str) -> Result<PathBuf, HubError> {
        let target = self.snapshot.join(name);
        let (mut failures, mut best) = (0, 0);
        loop {
            if target.exists() {
                return Ok(target);
            }
            if self.download.progress.is_cancelled() {
                return Err(HubError::Cancelled);
            }
            let mut received = 0;
            let Err(error) = self.attempt(name, &mut received) else { continue };
            // Only attempts without headway count: a bad line may break a long transfer many times.
            failures = if received > best { 1 } else { failures + 1 };
            best = best.max(received);
            if !error.is_passing() || failures >= MAX_ATTEMPTS {
                return Err(error);
            }
            std::thread::sleep(self.download.options.retry_pause * (1 << (failures - 1)));
        }
    }

    /// One try. `received` becomes the number of bytes of the file that are here after a failure.
    fn attempt(&self, name: &str, received: &mut u64) -> Result<(), HubError> {
        let explain = |error| self.download.explain(error, Some(name));
        let metadata = self.download.api.metadata(&self.remote.url(name)).map_err(explain)?;
        let size = metadata.size() as u64;
        // The library files what comes under the commit that the answer names, wherever that would lead.
        if self.snapshot.file_name().and_then(|commit| commit.to_str()) != Some(metadata.commit_hash()) {
            let problem = format!("`{name}` is said to be of another commit than the one asked for");
            return Err(HubError::BadAnswer { repo: self.download.repo.to_owned(), problem });
        }
        // A weak etag (`W/...`) becomes a folder in the cache; nothing else may lead anywhere.
        let etag = metadata.etag();
        let plain = etag.strip_prefix("W/").unwrap_or(etag);
        if plain.is_empty() || plain.contains(['/', '\\']) || plain.contains("..") {
            let problem = format!("the etag of `{name}` is no file name");
            return Err(HubError::BadAnswer { repo: self.download.repo.to_owned(), problem });
        }
        let blob = self.cached.blob_path(etag);
        if self.link_to_blob(name, etag, size) {
            return Ok(());
        }
        let part = blob.with_extension("part");
        prepare_part(&part, size)?;
        let watcher = Watcher { progress: self.download.progress, name, open: false };
        let path = self.remote.download_with_progress(name, watcher).map_err(|error| {
            *received = std::fs::metadata(&part).map_or(0, |part| part.len());
            explain(error)
        })?;
        let found = std::fs::metadata(&path).map(|file| file.len()).unwrap_or(0);
        if found != size {
            // A server that ignores the range sends the beginning again; only a fresh start helps.
            let removed = std::fs::remove_file(&path).and_then(|()| std::fs::remove_file(&blob));
            removed.map_err(|source| HubError::Cache { path: blob, source })?;
            return Err(HubError::WrongLength { file: name.to_owned(), found, expected: size });
        }
        Ok(())
    }

    /// Uses a blob that another commit has brought already; only where links exist.
    fn link_to_blob(&self, name: &str, etag: &str, size: u64) -> bool {
        let is_whole =
            std::fs::metadata(self.cached.blob_path(etag)).is_ok_and(|file| file.is_file() && file.len() == size);
        if !is_whole {
            return false;
        }
        let pointer = self.snapshot.join(name);
        let Some(folder) = pointer.parent() else { return false };
        if std::fs::create_dir_all(folder).is_err() {
            return false;
        }
        // From `snapshots/<commit>/` up to the repository's folder, and once more for every folder in the name.
        let ups = 2 + Path::new(name).components().count() - 1;
        let mut relative: PathBuf = std::iter::repeat_n("..", ups).collect();
        relative.push("blobs");
        relative.push(etag);
        link(&relative, &pointer).is_ok()
    }
}

/// Makes a partial download resumable: the library asks for the rest, which must not be nothing.
fn prepare_part(part: &Path, size: u64) -> Result<(), HubError> {
    let Ok(found) = std::fs::metadata(part) else { return Ok(()) };
    if found.len() < size {
        return Ok(());
    }
    let keep = if found.len() == size { size.saturating_sub(1) } else { 0 };
    let shorten = || std::fs::OpenOptions::new().write(true).open(part)?.set_len(keep);
    shorten().map_err(|source| HubError::Cache { path: part.to_owned(), source })
}

#[cfg(unix)]
fn link(target: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(not(unix))]
fn link(_target: &Path, _pointer: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Passes the library's reports on as one stage a file.
struct Watcher<'a> {
    progress: &'a dyn Progress,
    name: &'a str,
    open: bool,
}

impl hf_hub::api::Progress for Watcher<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        // Called twice, before and after the request.
        if !self.open {
            self.progress.stage(self.name, size as u64);
            self.open = true;
        }
    }

    fn update(&mut self, size: usize) {
        self.progress.advance(size as u64);
    }

    fn finish(&mut self) {
        if std::mem::take(&mut self.open) {
            self.progress.finish();
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        hf_hub::api::Progress::finish(self);
    }
}
