//! A load that can be watched by clients and given up by its owner.

use std::sync::Arc;

use millgate_models::Progress;
use tokio_util::sync::CancellationToken;

use crate::api::LoadProgress;

/// The stage in which the weights are read; all others before it are downloads.
const READING: &str = "loading weights";

/// Tells the API and the terminal how far a load is, and the load whether it is still wanted.
pub(super) struct Watched {
    pub(super) shown: Arc<LoadProgress>,
    pub(super) terminal: Arc<dyn Progress>,
    pub(super) cancelled: CancellationToken,
}

impl Progress for Watched {
    fn stage(&self, name: &str, total_bytes: u64) {
        if !self.cancelled.is_cancelled() {
            self.shown.begin(if name == READING { "load" } else { "download" }, Some(total_bytes));
        }
        self.terminal.stage(name, total_bytes);
    }

    fn advance(&self, bytes: u64) {
        self.shown.advance(bytes);
        self.terminal.advance(bytes);
    }

    fn finish(&self) {
        self.terminal.finish();
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }
}
