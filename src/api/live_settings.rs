//! The settings in effect, and the few of them that change while the server runs.
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::error::{ApiError, Kind};
use super::fields::Fields;
use crate::telemetry::redact;

/// Puts a log filter that was checked into effect.
pub type ApplyFilter = Box<dyn FnOnce() + Send>;
/// Checks a log filter; the error says what is wrong with it.
pub type CheckFilter = Box<dyn Fn(&str) -> Result<ApplyFilter, String> + Send + Sync>;

/// The one setting that changes at run time.
const LOG_LEVEL: (&str, &str) = ("log", "level");
const NOTE: &str = "what is changed here lasts until the server stops; to keep it, set it in the configuration file";

/// What the composition root knows about the settings; this side only shows and compares them.
pub struct StartSettings {
    /// The effective settings by table and key, as the configuration file would have them, without secrets.
    pub document: Value,
    /// Every key there is, with its table.
    pub keys: Vec<(&'static str, &'static str)>,
    /// Secrets of the environment by name, and whether each is set.
    pub secrets: Vec<(&'static str, bool)>,
    /// How the log's filter is changed.
    pub check_filter: CheckFilter,
    /// Where changes run, so that a stop waits for them.
    pub tasks: TaskTracker,
}

/// The settings as they are now.
pub struct LiveSettings {
    start: StartSettings,
    current: Mutex<Value>,
    /// One change at a time: what the audit log says last is what is in effect.
    pub(crate) turn: Semaphore,
}

/// A change that was checked and not made yet.
pub(crate) struct Change {
    /// The settings as they will be.
    pub(crate) document: Value,
    apply: ApplyFilter,
}

impl LiveSettings {
    /// As the server was started.
    pub fn new(start: StartSettings) -> Self {
        Self { current: Mutex::new(start.document.clone()), start, turn: Semaphore::new(1) }
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.start.tasks
    }

    fn current(&self) -> Value {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What administrators see.
    pub(crate) fn view(&self) -> Value {
        let current = self.current();
        let (table, name) = LOG_LEVEL;
        let is_changed = current[table][name] != self.start.document[table][name];
        let key = format!("{table}.{name}");
        let mask = |is_set: &bool| if *is_set { json!("***") } else { Value::Null };
        let secrets: Map<_, _> =
            self.start.secrets.iter().map(|(name, is_set)| ((*name).into(), mask(is_set))).collect();
        json!({
            "object": "config",
            "settings": masked(current),
            "environment": secrets,
            "changeable": [&key],
            "changed_since_start": if is_changed { vec![&key] } else { Vec::new() },
            "note": NOTE,
        })
    }

    /// Checks a wish; `None`: all of it is in effect already.
    ///
    /// # Errors
    /// 400 for a key that does not exist or a wrong value, 409 for one that only a start reads.
    pub(crate) fn check(&self, wish: &Fields) -> Result<Option<Change>, ApiError> {
        let mut document = self.current();
        let mut filter = None;
        for (table, values) in wish.rest() {
            if !self.start.keys.iter().any(|(known, _)| *known == table) {
                return Err(wish.complain(table, "is no table of the configuration; docs/config.md lists them"));
            }
            if values.is_null() {
                continue;
            }
            let Value::Object(values) = values else {
                self.compare_list(wish, &document, table, values)?;
                continue;
            };
            for (name, value) in values {
                let field = format!("{table}.{name}");
                if !self.start.keys.contains(&(table, name)) {
                    return Err(wish.complain(&field, "is no key of the configuration; docs/config.md lists them"));
                }
                if value.is_null() || *value == document[table][name] || *value == masked(document[table][name].clone())
                {
                    continue;
                }
                if (table, name.as_str()) != LOG_LEVEL {
                    return Err(needs_restart(wish, &field, &format!("`{name}` in [{table}]")));
                }
                let Value::String(text) = value else { return Err(wish.complain(&field, "must be a string")) };
                filter = Some((self.start.check_filter)(text).map_err(|wrong| wish.complain(&field, wrong))?);
            }
            if filter.is_some() && table == LOG_LEVEL.0 {
                document[table][LOG_LEVEL.1] = values[LOG_LEVEL.1].clone();
            }
        }
        Ok(filter.map(|apply| Change { document, apply }))
    }

    /// `[[models]]` and `[[oidc]]`, which are not shown when there are none.
    fn compare_list(&self, wish: &Fields, document: &Value, table: &str, values: &Value) -> Result<(), ApiError> {
        let shown = document.get(table).cloned().unwrap_or_else(|| json!([]));
        match (values, &shown) {
            (Value::Array(_), Value::Array(_)) if *values == shown || *values == masked(shown.clone()) => Ok(()),
            (Value::Array(_), Value::Array(_)) => Err(needs_restart(wish, table, &format!("[[{table}]]"))),
            (_, Value::Array(_)) => Err(wish.complain(table, "must be a list of objects")),
            _ => Err(wish.complain(table, "must be an object")),
        }
    }

    /// Puts a change into effect; only in one's turn.
    pub(crate) fn make(&self, change: Change) {
        (change.apply)();
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = change.document;
    }
}

fn needs_restart(wish: &Fields, field: &str, place: &str) -> ApiError {
    let name = wish.name_of(field);
    let message = format!(
        "`{name}` is read when the server starts: set {place} of the configuration file (docs/config.md) and restart; \
         only `log.level` changes at run time"
    );
    ApiError::new(Kind::Conflict, message).with_param(&name)
}

/// The same with every credential in its texts masked: an address may hold a password.
fn masked(value: Value) -> Value {
    match value {
        Value::String(text) => redact(&text).into_owned().into(),
        Value::Array(list) => list.into_iter().map(masked).collect(),
        Value::Object(map) => map.into_iter().map(|(name, value)| (name, masked(value))).collect(),
        other => other,
    }
}
