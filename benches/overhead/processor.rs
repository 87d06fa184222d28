//! Who took how much of the processor: the first thread of the process, which is the client, and all others, the server.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Processor time, as the kernel counts it; zero where it does not say.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) client: Duration,
    pub(crate) server: Duration,
}

impl Spent {
    pub(crate) fn since(self, before: Self) -> Self {
        Self { client: self.client.saturating_sub(before.client), server: self.server.saturating_sub(before.server) }
    }
}

/// The time that the threads of this process have run so far.
pub(crate) fn spent() -> Spent {
    let first = std::process::id().to_string();
    let mut spent = Spent::default();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let time = thread_time(&task.path()).unwrap_or_default();
        if task.file_name() == *first {
            spent.client += time;
        } else {
            spent.server += time;
        }
    }
    spent
}

fn thread_time(path: &Path) -> Option<Duration> {
    let text = fs::read_to_string(path.join("schedstat")).ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}
