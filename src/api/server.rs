//! The accept loop: bounded connections, bounded headers, slow senders cut off, and an orderly stop.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::config::Config;
use super::patient::Patient;
use super::source::Peer;
use super::worded::Worded;
use crate::telemetry::Metrics;

/// Hyper's read buffer a connection, which bounds the size of all headers together.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// How long to wait after the system refused a connection, for example because no file handle is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop` is cancelled, then lets every open exchange finish. What never becomes a
/// request is counted in `metrics` here; the rest the router counts.
///
/// # Cancel
/// Cancelling `stop` closes idle connections at once; the future resolves when the last exchange is over. Dropping the
/// future closes the listener and leaves open connections to themselves.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    config: &Config,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let connections = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.read_timeout)
        .max_headers(config.max_headers)
        .max_buf_size(MAX_HEADER_BYTES);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        if let Some((stream, peer, slot)) = accepted {
            let stream = Patient::new(stream, config.stall_timeout);
            let stream = Worded::new(stream, config.max_headers, MAX_HEADER_BYTES, Arc::clone(&metrics));
            let (http, router, stop) = (http.clone(), router.clone(), stop.clone());
            connections.spawn(async move {
                converse(http, stream, peer, router, stop).await;
                drop(slot);
            });
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> Option<Accepted> {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Tokens are small writes that must leave at once.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "cannot switch off write coalescing");
            }
            Some((stream, peer, slot))
        }
        Err(error) => {
            warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn converse(
    http: http1::Builder,
    stream: Worded<Patient>,
    peer: SocketAddr,
    router: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| answer(router.clone(), peer, request));
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => None,
    };
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        ended = Some(connection.await);
    }
    if let Some(Err(error)) = ended {
        // Clients break connections all day long; this is for whoever looks closely.
        debug!(%error, "connection ended early");
    }
}

async fn answer(router: Router, peer: SocketAddr, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    router.oneshot(request).await
}
