//! Downloads from a stand-in of the hub: a small HTTP server that breaks, refuses and redirects as the real one does.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millgate_models::weights::{HubFiles, fetch};
use millgate_models::{HubError, HubOptions, Progress, Silent};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the stand-in serves, and how it misbehaves.
#[derive(Default)]
struct Hub {
    files: HashMap<String, Vec<u8>>,
    commit: String,
    /// The commit that answers about files name, where it is another one.
    claimed_commit: Option<String>,
    /// The only accepted token.
    token: Option<String>,
    /// Transfers of this file break after half of what was asked for, so many times.
    breaks: HashMap<String, usize>,
    /// No transfer gets past this position of a file.
    stuck_at: Option<usize>,
    /// Every request is answered with this status.
    status: Option<u16>,
    /// The etags are weak ones.
    weak: bool,
    /// Large files come from another path, as from the hub's object store.
    redirects: bool,
    /// Every request that arrived: path and range.
    log: Vec<String>,
}

struct Server {
    address: String,
    hub: Arc<Mutex<Hub>>,
}

impl Server {
    fn start(hub: Hub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::new(Mutex::new(hub));
        let (shared, base) = (hub.clone(), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up early is part of the game.
                let _ = answer(stream, &mut shared.lock().unwrap(), &base);
            }
        });
        Self { address, hub }
    }

    fn options(&self, home: &Path) -> HubOptions {
        HubOptions {
            endpoint: Some(self.address.clone()),
            home: Some(home.to_owned()),
            token: None,
            retry_pause: Duration::from_millis(1),
        }
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.hub.lock().unwrap().log)
    }
}

fn answer(mut stream: TcpStream, hub: &mut Hub, base: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let (mut range, mut token) = (None, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.trim_start_matches("bytes=").to_owned()),
            "authorization" => token = Some(value.trim_start_matches("Bearer ").to_owned()),
            _ => {}
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    hub.log.push(format!("{path} {}", range.as_deref().unwrap_or("-")));
    let status = hub.status.or((hub.token.is_some() && hub.token != token).then_some(401));
    if let Some(status) = status {
        return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    if path.starts_with("/api/models/org/name/revision/") {
        let names: Vec<_> = hub.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": hub.commit, "siblings": names}).to_string();
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    }
    send_file(stream, hub, base, &path, range.as_deref())
}

fn send_file(mut stream: TcpStream, hub: &mut Hub, base: &str, path: &str, range: Option<&str>) -> std::io::Result<()> {
    let resolved = format!("/org/name/resolve/{}/", hub.commit);
    let is_store = path.starts_with("/store/");
    let name = path.strip_prefix(&resolved).or_else(|| path.strip_prefix("/store/")).unwrap_or_default().to_owned();
    let Some(content) = hub.files.get(&name) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    // Content decides the etag, as on the hub.
    let etag = format!("{:x}-{}", content.len(), content.iter().map(|&byte| u64::from(byte)).sum::<u64>());
    let weak = if hub.weak { "W/" } else { "" };
    let commit = hub.claimed_commit.as_ref().unwrap_or(&hub.commit);
    let identity = format!("ETag: {weak}\"{etag}\"\r\nX-Repo-Commit: {commit}\r\nConnection: close\r\n");
    if hub.redirects && !is_store && name.ends_with(".safetensors") {
        let location = format!("Location: {base}/store/{name}\r\nX-Linked-Etag: \"{etag}\"\r\n");
        return write!(stream, "HTTP/1.1 302 Found\r\n{location}{identity}Content-Length: 0\r\n\r\n");
    }
    let (from, to) = range.and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(content.len(), |last: usize| (last + 1).min(content.len()));
    if from >= content.len() {
        return write!(stream, "HTTP/1.1 416 Range\r\n{identity}Content-Length: 0\r\n\r\n");
    }
    let body = &content[from..to];
    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, content.len());
    write!(stream, "HTTP/1.1 206 Partial\r\n{identity}{range}Content-Length: {}\r\n\r\n", body.len())?;
    let is_probe = body.len() == 1;
    if let Some(end) = hub.stuck_at.filter(|&end| to > end && !is_probe) {
        return stream.write_all(&content[from.min(end)..end]);
    }
    match hub.breaks.get_mut(&name).filter(|left| **left > 0 && !is_probe) {
        Some(left) => {
            *left -= 1;
            stream.write_all(&body[..body.len() / 2])
        }
        None => stream.write_all(body),
    }
}

fn weights(seed: u8) -> Vec<u8> {
    (0..100_000u32).map(|i| (i % 251) as u8 ^ seed).collect()
}

fn hub_with(files: &[(&str, &[u8])]) -> Hub {
    let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
    Hub { files, commit: COMMIT.to_owned(), ..Hub::default() }
}

fn small_model() -> Hub {
    let mut hub = hub_with(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{ }"),
        ("generation_config.json", b"{  }"),
        ("README.md", b"# a model"),
        ("pytorch_model.bin", b"pickle"),
    ]);
    hub.files.insert("model.safetensors".to_owned(), weights(0));
    hub
}

fn folder(files: HubFiles) -> std::path::PathBuf {
    match files {
        HubFiles::Folder(folder) => folder,
        HubFiles::Gguf(file) => panic!("a single file: {}", file.display()),
    }
}

#[derive(Default)]
struct Counting(Mutex<Vec<(String, u64, u64, bool)>>);

impl Progress for Counting {
    fn stage(&self, name: &str, total_bytes: u64) {
        self.0.lock().unwrap().push((name.to_owned(), total_bytes, 0, false));
    }
    fn advance(&self, bytes: u64) {
        self.0.lock().unwrap().last_mut().unwrap().2 += bytes;
    }
    fn finish(&self) {
        self.0.lock().unwrap().last_mut().unwrap().3 = true;
    }
}

#[test]
fn a_model_is_fetched_once_and_only_what_is_needed_of_it() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(small_model());
    let progress = Counting::default();
    let found = folder(fetch("org/name", None, &server.options(home.path()), &progress).unwrap());
    assert_eq!(std::fs::read(found.join("model.safetensors")).unwrap(), weights(0));
    assert!(found.starts_with(home.path().join("hub/models--org--name/snapshots")), "{}", found.display());
    assert!(found.join("generation_config.json").exists());
    assert!(!found.join("README.md").exists() && !found.join("pytorch_model.bin").exists());
    let stages = progress.0.into_inner().unwrap();
    assert!(stages.contains(&("model.safetensors".to_owned(), 100_000, 100_000, true)), "{stages:?}");
    server.log();

    let again = fetch("org/name", None, &server.options(home.path()), &Silent).unwrap();
    assert_eq!(folder(again), found);
    assert_eq!(server.log(), ["/api/models/org/name/revision/main -"]);
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke() {
    let home = tempfile::tempdir().unwrap();
    let mut hub = small_model();
    hub.breaks.insert("model.safetensors".to_owned(), 3);
    hub.redirects = true;
    let server = Server::start(hub);
    let found = folder(fetch("org/name", Some("v1/x"), &server.options(home.path()), &Silent).unwrap());
    assert_eq!(std::fs::read(found.join("model.safetensors")).unwrap(), weights(0));
    let log = server.log();
    assert_eq!(log[0], "/api/models/org/name/revision/v1%2Fx -");
    let starts: Vec<&str> = log.iter().filter_map(|line| line.strip_prefix("/store/model.safetensors ")).collect();
    let starts: Vec<&str> = starts.into_iter().filter(|range| *range != "0-0").collect();
    assert_eq!(starts, ["0-", "50000-", "75000-", "87500-"]);
}

#[test]
fn a_download_that_was_given_up_is_resumed_by_the_next_call() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { stuck_at: Some(60_000), ..small_model() });
    let error = fetch("org/name", None, &server.options(home.path()), &Silent).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    server.hub.lock().unwrap().stuck_at = None;
    server.log();
    let found = folder(fetch("org/name", None, &server.options(home.path()), &Silent).unwrap());
    assert_eq!(std::fs::read(found.join("model.safetensors")).unwrap(), weights(0));
    let log = server.log();
    assert!(log.iter().any(|line| line.ends_with("/model.safetensors 60000-")), "{log:?}");
}

#[test]
fn a_partial_file_that_is_already_whole_or_too_long_does_not_get_in_the_way() {
    for extra in [0, 7] {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start(small_model());
        let content = weights(0);
        let sum = content.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        let blobs = home.path().join("hub/models--org--name/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let part = blobs.join(format!("{:x}-{sum}.part", content.len()));
        std::fs::write(&part, [content.as_slice(), &vec![0; extra]].concat()).unwrap();
        let found = folder(fetch("org/name", None, &server.options(home.path()), &Silent).unwrap());
        assert_eq!(std::fs::read(found.join("model.safetensors")).unwrap(), content);
    }
}

#[test]
fn shards_are_fetched_as_the_index_names_them() {
    let home = tempfile::tempdir().unwrap();
    let index =
        br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let server = Server::start(hub_with(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
        ("model-3.safetensors", b"unused"),
    ]));
    let found = folder(fetch("org/name", None, &server.options(home.path()), &Silent).unwrap());
    assert_eq!(std::fs::read(found.join("model-2.safetensors")).unwrap(), b"two");
    assert!(!found.join("model-3.safetensors").exists());
}

#[test]
fn a_repository_that_holds_only_one_gguf_is_that_file() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(hub_with(&[("README.md", b"x"), ("model-Q8_0.gguf", b"GGUF...")]));
    let HubFiles::Gguf(file) = fetch("org/name", None, &server.options(home.path()), &Silent).unwrap() else {
        panic!("not a single file");
    };
    assert_eq!(std::fs::read(file).unwrap(), b"GGUF...");
}

#[test]
fn a_new_commit_brings_only_what_changed() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { weak: true, ..small_model() });
    fetch("org/name", None, &server.options(home.path()), &Silent).unwrap();
    server.log();
    {
        let mut hub = server.hub.lock().unwrap();
        hub.commit = COMMIT.replace('0', "f");
        hub.files.insert("config.json".to_owned(), b"{\"new\": 1}".to_vec());
    }
    let found = folder(fetch("org/name", None, &server.options(home.path()), &Silent).unwrap());
    assert_eq!(std::fs::read(found.join("config.json")).unwrap(), b"{\"new\": 1}");
    assert_eq!(std::fs::read(found.join("model.safetensors")).unwrap(), weights(0));
    let log = server.log();
    let whole = log.iter().filter(|line| line.contains("model.safetensors") && !line.ends_with("0-0")).count();
    assert_eq!(whole, if cfg!(unix) { 0 } else { 1 }, "{log:?}");
}

#[test]
fn without_a_network_what_was_completed_before_is_used_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(small_model());
    let found = fetch("org/name", None, &server.options(home.path()), &Silent).unwrap();
    // A port that was free a moment ago and that nobody listens on.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let offline = HubOptions { endpoint: Some(format!("http://{free}/")), ..server.options(home.path()) };
    assert_eq!(fetch("org/name", None, &offline, &Silent).unwrap(), found);
    for (repo, revision) in [("org/name", Some("other")), ("org/other", None)] {
        let error = fetch(repo, revision, &offline, &Silent).unwrap_err();
        assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&free.to_string()), "{error}");
    }
    let blob = std::fs::canonicalize(folder(found).join("model.safetensors")).unwrap();
    std::fs::remove_file(blob).unwrap();
    assert!(fetch("org/name", None, &offline, &Silent).is_err());
}

#[test]
fn the_token_is_sent_from_the_options_or_from_the_home_folder_and_never_shown() {
    let mut hub = small_model();
    hub.token = Some("hf_secret".to_owned());
    let server = Server::start(hub);
    let home = tempfile::tempdir().unwrap();
    let error = fetch("org/name", None, &server.options(home.path()), &Silent).unwrap_err();
    assert!(matches!(error, HubError::NotAllowed { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    let options = HubOptions { token: Some("hf_secret".to_owned()), ..server.options(home.path()) };
    fetch("org/name", None, &options, &Silent).unwrap();
    assert!(!format!("{options:?}").contains("secret"), "{options:?}");
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "hf_secret\n").unwrap();
    fetch("org/name", None, &server.options(home.path()), &Silent).unwrap();
}

#[test]
fn every_refusal_has_its_own_words() {
    let home = tempfile::tempdir().unwrap();
    let fails = |status: u16| {
        let server = Server::start(Hub { status: Some(status), ..small_model() });
        fetch("org/name", None, &server.options(home.path()), &Silent).unwrap_err()
    };
    assert!(matches!(fails(403), HubError::NotAllowed { status: 403, .. }));
    assert!(matches!(fails(404), HubError::NotFound { .. }));
    assert!(matches!(fails(500), HubError::Status { status: 500, .. }));
    let options = HubOptions { home: None, ..Server::start(small_model()).options(home.path()) };
    assert!(matches!(fetch("org/name", None, &options, &Silent), Err(HubError::NoHome)));
    let server = Server::start(hub_with(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]));
    let error = fetch("org/name", None, &server.options(home.path()), &Silent).unwrap_err();
    assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
    let file = home.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let error = fetch("org/name", None, &Server::start(small_model()).options(&file), &Silent).unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }), "{error}");
}

#[test]
fn a_file_of_another_commit_is_refused_and_leads_nowhere() {
    for claimed in ["fedcba9876543210fedcba9876543210fedcba98", "../../../../elsewhere"] {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start(Hub { claimed_commit: Some(claimed.to_owned()), ..small_model() });
        let error = fetch("org/name", None, &server.options(&home.path().join("in")), &Silent).unwrap_err();
        assert!(error.to_string().contains("another commit"), "{error}");
        assert!(!home.path().join("elsewhere").exists());
    }
}
