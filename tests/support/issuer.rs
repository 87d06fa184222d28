//! A stand-in identity provider on the loopback address: discovery, keys, tokens, and everything that can go wrong with it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use millgate::governance::OidcIssuer;
use rsa::pkcs1::EncodeRsaPrivateKey;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

/// The audience that tokens for the test server have.
pub(crate) const AUDIENCE: &str = "millgate";

/// A provider that runs until the test ends.
pub(crate) struct Issuer {
    address: SocketAddr,
    state: Arc<Shown>,
}

/// What the provider shows.
#[derive(Default)]
struct Shown {
    keys: Mutex<Vec<Value>>,
    calls_itself: Mutex<String>,
    key_fetches: AtomicUsize,
    is_down: AtomicBool,
}

impl Issuer {
    /// A provider that publishes these keys.
    pub(crate) async fn start(keys: &[&IssuerKey]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Shown::default());
        *state.calls_itself.lock().unwrap() = format!("http://{address}");
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(published))
            .with_state(state.clone());
        TaskTracker::new().spawn(async move { axum::serve(listener, router).await });
        let issuer = Self { address, state };
        issuer.publish(keys);
        issuer
    }

    /// Publishes these keys and no others from now on.
    pub(crate) fn publish(&self, keys: &[&IssuerKey]) {
        *self.state.keys.lock().unwrap() = keys.iter().map(|key| key.public.clone()).collect();
    }

    /// Whether it answers errors only.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
    }

    /// What its discovery document says it is called.
    pub(crate) fn call_itself(&self, name: &str) {
        *self.state.calls_itself.lock().unwrap() = name.to_owned();
    }

    /// How often its keys were fetched.
    pub(crate) fn key_fetches(&self) -> usize {
        self.state.key_fetches.load(Ordering::SeqCst)
    }

    /// Its name in tokens.
    pub(crate) fn name(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How the test server is told about it.
    pub(crate) fn config(&self) -> OidcIssuer {
        OidcIssuer {
            algorithms: ["RS256", "ES256", "EdDSA"].map(|name| name.parse().unwrap()).to_vec(),
            groups_claim: Some("groups".into()),
            group_map: [("Platform Admins".to_owned(), "millgate-admins".to_owned())].into(),
            ..OidcIssuer::new("corp", &self.name(), vec![AUDIENCE.into()])
        }
    }

    /// Good claims about a user, told at this second and good for an hour.
    pub(crate) fn claims(&self, subject: &str, name: &str, groups: &[&str], at_s: i64) -> Value {
        json!({
            "iss": self.name(), "aud": AUDIENCE, "sub": subject, "preferred_username": name, "groups": groups,
            "iat": at_s, "exp": at_s + 3600,
        })
    }
}

async fn discovery(State(state): State<Arc<Shown>>) -> Result<Json<Value>, StatusCode> {
    if state.is_down.load(Ordering::SeqCst) {
        return Err(StatusCode::BAD_GATEWAY);
    }
    let name = state.calls_itself.lock().unwrap().clone();
    Ok(Json(json!({"issuer": name, "jwks_uri": format!("{name}/keys")})))
}

async fn published(State(state): State<Arc<Shown>>) -> Result<Json<Value>, StatusCode> {
    state.key_fetches.fetch_add(1, Ordering::SeqCst);
    if state.is_down.load(Ordering::SeqCst) {
        return Err(StatusCode::BAD_GATEWAY);
    }
    Ok(Json(json!({"keys": *state.keys.lock().unwrap()})))
}

/// A key pair of the provider.
#[derive(Clone)]
pub(crate) struct IssuerKey {
    id: String,
    algorithm: Algorithm,
    secret: EncodingKey,
    pub(crate) public: Value,
}

impl IssuerKey {
    /// An RSA key for RS256; made once for all tests, because that takes a while.
    pub(crate) fn rsa(id: &str) -> Self {
        static DER: OnceLock<Vec<u8>> = OnceLock::new();
        let der = DER.get_or_init(|| {
            let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
            key.to_pkcs1_der().unwrap().as_bytes().to_vec()
        });
        Self::new(id, Algorithm::RS256, EncodingKey::from_rsa_der(der))
    }

    /// A P-256 key for ES256.
    pub(crate) fn ec(id: &str) -> Self {
        const PKCS8: &str = "3041020100301306072a8648ce3d020106082a8648ce3d030107042730250201010420";
        Self::new(id, Algorithm::ES256, EncodingKey::from_ec_der(&with_random(PKCS8)))
    }

    /// An Ed25519 key for EdDSA.
    pub(crate) fn ed(id: &str) -> Self {
        const PKCS8: &str = "302e020100300506032b657004220420";
        Self::new(id, Algorithm::EdDSA, EncodingKey::from_ed_der(&with_random(PKCS8)))
    }

    fn new(id: &str, algorithm: Algorithm, secret: EncodingKey) -> Self {
        let mut public = serde_json::to_value(Jwk::from_encoding_key(&secret, algorithm).unwrap()).unwrap();
        public["kid"] = id.into();
        public["use"] = "sig".into();
        Self { id: id.to_owned(), algorithm, secret, public }
    }

    /// The same key under another id.
    pub(crate) fn named(&self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self.clone() }
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(&json!({"alg": format!("{:?}", self.algorithm), "typ": "JWT", "kid": self.id}), claims)
    }

    /// A token with any header, signed with this key all the same.
    pub(crate) fn sign_with(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&unsigned(header, claims))
    }

    /// Any text with this key's signature.
    pub(crate) fn sign_text(&self, text: &str) -> String {
        let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &self.secret, self.algorithm).unwrap();
        format!("{text}.{signature}")
    }
}

/// A token signed with a shared secret.
pub(crate) fn sign_with_secret(secret: &[u8], header: &Value, claims: &Value) -> String {
    let text = unsigned(header, claims);
    let key = EncodingKey::from_secret(secret);
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{text}.{signature}")
}

/// Header and claims of a token, without a signature.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// A DER prefix followed by 32 random bytes.
fn with_random(prefix: &str) -> Vec<u8> {
    let mut der: Vec<u8> =
        (0..prefix.len()).step_by(2).map(|at| u8::from_str_radix(&prefix[at..at + 2], 16).unwrap()).collect();
    let mut random = [0; 32];
    getrandom::fill(&mut random).unwrap();
    // Below the order of any curve used here, and not zero.
    random[0] = random[0] & 0x7f | 1;
    der.extend(random);
    der
}
