//! How downloads and loads tell how far they are.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

/// Hears about stages of work measured in bytes, such as one file's download or the load of a model's weights.
///
/// Stages follow one another: `stage`, any number of `advance`, `finish`.
pub trait Progress: Send + Sync {
    /// A stage begins; it is over after `total_bytes`.
    fn stage(&self, name: &str, total_bytes: u64);
    /// So many more bytes of the stage are done.
    fn advance(&self, bytes: u64);
    /// The stage is over, whether or not all bytes were needed.
    fn finish(&self);
    /// Whether nobody wants the result any more; asked between tensors and between files. Never, unless overridden.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Says nothing: for tests and for programs that are not watched.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _name: &str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}

/// One progress bar on standard error; it stays silent where that is not a terminal.
#[derive(Debug, Default)]
pub struct Bar {
    current: Mutex<Option<ProgressBar>>,
}

impl Bar {
    /// A bar that appears with the first stage.
    pub fn new() -> Self {
        Self::default()
    }

    fn with_current(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        // A poisoned bar is still a bar: nothing depends on what it shows.
        act(&mut self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Bar {
    fn stage(&self, name: &str, total_bytes: u64) {
        let style =
            ProgressStyle::with_template("{msg:32!} [{bar:28}] {bytes:>10} / {total_bytes} {bytes_per_sec} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
        let bar = ProgressBar::new(total_bytes).with_style(style).with_message(name.to_owned());
        self.with_current(|current| {
            if let Some(previous) = current.replace(bar) {
                previous.finish_and_clear();
            }
        });
    }

    fn advance(&self, bytes: u64) {
        self.with_current(|current| {
            if let Some(bar) = current {
                bar.inc(bytes);
            }
        });
    }

    fn finish(&self) {
        self.with_current(|current| {
            if let Some(bar) = current.take() {
                bar.finish_and_clear();
            }
        });
    }
}
