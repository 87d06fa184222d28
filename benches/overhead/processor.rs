//! How much of the processor the server took: the time of all threads of this process but the client's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

const CLIENT: &str = "client";

/// A runtime for the client whose threads are told apart from the server's.
pub(crate) fn client_runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).thread_name(CLIENT).enable_all().build().expect("a runtime")
}

/// The time that the server's threads have run so far, as the kernel counts it; none where it does not say.
pub(crate) fn server_time() -> Option<Duration> {
    let tasks = fs::read_dir("/proc/self/task").ok()?;
    let threads = tasks.filter_map(|task| Some(task.ok()?.path()));
    threads.filter(|path| !is_clients(path)).map(|path| thread_time(&path)).sum()
}

fn is_clients(path: &Path) -> bool {
    fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == CLIENT)
}

fn thread_time(path: &Path) -> Option<Duration> {
    let text = fs::read_to_string(path.join("schedstat")).ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}
