//! A stand-in API server of a cluster: answers TokenReviews as a real one does (recorded from 1.36), with all its bad days.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::Listener;
use axum::{Json, Router};
use futures::stream;
use millgate::governance::KubernetesCluster;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::issuer::{AUDIENCE, unsigned};

/// The authority that has signed the stand-in's certificate. Both are good until 2120, for this machine only.
const CA: &str = include_str!("kubernetes/ca.pem");
const CERTIFICATE: &str = include_str!("kubernetes/server.pem");
const SECRET_KEY: &str = include_str!("kubernetes/server.key");
/// Another one, which has signed nothing.
pub(crate) const ANOTHER_CA: &str = include_str!("kubernetes/another-ca.pem");

/// How the API server is today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It answers.
    Well,
    /// It takes requests and does not answer while this lasts.
    Hangs,
    /// Connections end within the answer.
    BreaksOff,
    /// It does not let the server ask.
    Forbids,
    /// Something in it is broken.
    Fails,
    /// A proxy before it answers with a page.
    Garbled,
}

/// Whom a token is for.
#[derive(Clone, Debug)]
struct Account {
    username: String,
    uid: String,
    groups: Vec<String>,
    audiences: Vec<String>,
}

/// A cluster that runs until the test ends.
pub(crate) struct Kubernetes {
    server: String,
    state: Arc<Shown>,
    files: TempDir,
}

/// What the API server knows and has seen.
struct Shown {
    own_token: Mutex<String>,
    accounts: Mutex<HashMap<String, Account>>,
    mood: watch::Sender<Mood>,
    asked: Mutex<Vec<String>>,
}

impl Kubernetes {
    /// An API server that speaks plain HTTP.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (router, state) = shown();
        let server = format!("http://{}", listener.local_addr().unwrap());
        TaskTracker::new().spawn(async move { axum::serve(listener, router).await });
        Self::with_files(server, state)
    }

    /// An API server with a certificate of the cluster's own authority.
    pub(crate) async fn start_with_tls() -> Self {
        // Fails only when there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(SECRET_KEY.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (router, state) = shown();
        let server = format!("https://{}", tcp.local_addr().unwrap());
        let listener = TlsListener { tcp, acceptor: TlsAcceptor::from(Arc::new(config.unwrap())) };
        TaskTracker::new().spawn(async move { axum::serve(listener, router).await });
        Self::with_files(server, state)
    }

    fn with_files(server: String, state: Arc<Shown>) -> Self {
        let cluster = Self { server, state, files: tempfile::tempdir().unwrap() };
        cluster.trust(CA);
        cluster.replace_own_token();
        cluster
    }

    /// How the test server is told about it.
    pub(crate) fn config(&self) -> KubernetesCluster {
        KubernetesCluster {
            server: self.server.clone(),
            token_file: self.file("token"),
            ca_file: self.file("ca.crt"),
            ..KubernetesCluster::new(vec![AUDIENCE.into()])
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// What stands in the file of certificates from now on.
    pub(crate) fn trust(&self, certificates: &str) {
        std::fs::write(self.file("ca.crt"), certificates).unwrap();
    }

    /// Makes a new token for the test server, the only one that counts, and writes it into the file.
    pub(crate) fn replace_own_token(&self) -> String {
        let token = self.withdraw_own_token();
        std::fs::write(self.file("token"), format!("{token}\n")).unwrap();
        token
    }

    /// Makes a new token for the test server that is not in the file yet.
    pub(crate) fn withdraw_own_token(&self) -> String {
        let token = jwt("system:serviceaccount:millgate:millgate", &["https://kubernetes.default.svc"], i64::MAX / 2);
        self.state.own_token.lock().unwrap().clone_from(&token);
        token
    }

    /// From now on it is like this.
    pub(crate) fn set(&self, mood: Mood) {
        self.state.mood.send_replace(mood);
    }

    /// Tokens it was asked about, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }

    /// A token of a service account for the test server that ends at this second.
    pub(crate) fn service_account(&self, namespace: &str, name: &str, ends_s: i64) -> String {
        let groups = [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ];
        let username = format!("system:serviceaccount:{namespace}:{name}");
        self.token(&username, "bde41d77-e910-481f-badc-b17954aee33e", &groups, ends_s)
    }

    /// A token for anybody.
    pub(crate) fn token(&self, username: &str, uid: &str, groups: &[impl ToString], ends_s: i64) -> String {
        self.token_for(&[AUDIENCE], username, uid, groups, ends_s)
    }

    /// A token for anybody that is meant for these audiences.
    pub(crate) fn token_for(
        &self,
        audiences: &[&str],
        username: &str,
        uid: &str,
        groups: &[impl ToString],
        ends_s: i64,
    ) -> String {
        let token = jwt(username, audiences, ends_s);
        let account = Account {
            username: username.to_owned(),
            uid: uid.to_owned(),
            groups: groups.iter().map(ToString::to_string).collect(),
            audiences: audiences.iter().map(ToString::to_string).collect(),
        };
        self.state.accounts.lock().unwrap().insert(token.clone(), account);
        token
    }

    /// Forgets a token, as when its service account or its pod is deleted.
    pub(crate) fn revoke(&self, token: &str) {
        self.state.accounts.lock().unwrap().remove(token).unwrap();
    }
}

/// Looks like a token of a cluster; only the table says which are good.
pub(crate) fn jwt(subject: &str, audiences: &[&str], ends_s: i64) -> String {
    let claims = json!({
        "iss": "https://kubernetes.default.svc.cluster.local", "sub": subject, "aud": audiences, "exp": ends_s,
        "jti": Uuid::new_v4().to_string(),
    });
    format!("{}.c2lnbmVkLWJ5LXRoZS1jbHVzdGVy", unsigned(&json!({"alg": "RS256", "kid": "k8s"}), &claims))
}

fn shown() -> (Router, Arc<Shown>) {
    let state = Arc::new(Shown {
        own_token: Mutex::default(),
        accounts: Mutex::default(),
        mood: watch::Sender::new(Mood::Well),
        asked: Mutex::default(),
    });
    let router = Router::new().route("/apis/authentication.k8s.io/v1/tokenreviews", post(review));
    (router.with_state(state.clone()), state)
}

async fn review(State(state): State<Arc<Shown>>, headers: HeaderMap, Json(asked): Json<Value>) -> Response {
    let own = format!("Bearer {}", state.own_token.lock().unwrap());
    if headers.get("authorization").is_none_or(|sent| *sent != *own) {
        return status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
    }
    let token = asked["spec"]["token"].as_str().unwrap().to_owned();
    state.asked.lock().unwrap().push(token.clone());
    let mood = *state.mood.subscribe().wait_for(|mood| *mood != Mood::Hangs).await.unwrap();
    match mood {
        Mood::Well | Mood::Hangs => (StatusCode::CREATED, Json(answer(&state, &asked, &token))).into_response(),
        Mood::BreaksOff => {
            let pieces = [Ok(Bytes::from_static(b"{\"kind\": ")), Err(std::io::Error::other("broken"))];
            (StatusCode::CREATED, Body::from_stream(stream::iter(pieces))).into_response()
        }
        Mood::Forbids => {
            let message = "tokenreviews.authentication.k8s.io is forbidden: User \"app\" cannot create resource \
                           \"tokenreviews\" in API group \"authentication.k8s.io\" at the cluster scope";
            status(StatusCode::FORBIDDEN, "Forbidden", message)
        }
        Mood::Fails => status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "etcdserver: request timed out"),
        Mood::Garbled => (StatusCode::OK, "<html>Welcome</html>").into_response(),
    }
}

/// Always 201. Who is nobody has no `authenticated`, an empty user and an error in words.
fn answer(state: &Shown, asked: &Value, token: &str) -> Value {
    let targets: Vec<&str> =
        asked["spec"]["audiences"].as_array().unwrap().iter().map(|audience| audience.as_str().unwrap()).collect();
    let status = match state.accounts.lock().unwrap().get(token) {
        None => json!({"user": {}, "error": "invalid bearer token"}),
        Some(account) => {
            let fits: Vec<&String> =
                account.audiences.iter().filter(|audience| targets.contains(&audience.as_str())).collect();
            if fits.is_empty() {
                let words = format!("{:?} is invalid for the target audiences {targets:?}", account.audiences);
                json!({"user": {}, "error": format!("[invalid bearer token, token audiences {words}]")})
            } else {
                let id = format!("JTI={}", Uuid::new_v4());
                json!({
                    "authenticated": true,
                    "user": {
                        "username": account.username, "uid": account.uid, "groups": account.groups,
                        "extra": {"authentication.kubernetes.io/credential-id": [id]},
                    },
                    "audiences": fits,
                })
            }
        }
    };
    json!({
        "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"managedFields": [{"manager": "millgate", "operation": "Update", "fieldsType": "FieldsV1"}]},
        "spec": asked["spec"], "status": status,
    })
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code.as_u16(),
    });
    (code, Json(status)).into_response()
}

/// Connections that begin with a handshake; one that fails is dropped.
struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (connection, peer) = self.tcp.accept().await.unwrap();
            if let Ok(secured) = self.acceptor.accept(connection).await {
                return (secured, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
