//! A stand-in collector of traces.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

/// What it was sent: headers and raw messages.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<(HeaderMap, Bytes)>>>);

impl Collector {
    /// Listens; where is told, too.
    pub(crate) async fn start() -> (Self, String) {
        let collector = Self::default();
        let take = async |State(collector): State<Collector>, headers: HeaderMap, body: Bytes| {
            collector.0.lock().unwrap().push((headers, body));
        };
        let router = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        Handle::current().spawn(async move { axum::serve(listener, router).await });
        (collector, endpoint)
    }

    pub(crate) fn messages(&self) -> Vec<(HeaderMap, Bytes)> {
        self.0.lock().unwrap().clone()
    }
}
