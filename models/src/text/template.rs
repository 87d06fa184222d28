//! Chat templates: a model's own Jinja text turns messages into a prompt, within a budget.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, State, context};

use super::template_clock::{self, Clock};
use super::{TemplateError, template_json};

/// Steps a rendering may take; one also pays for 64 bytes of text made on the way, so this bounds memory too.
///
/// A conversation of a million tokens in five hundred messages needs less than a quarter.
const FUEL: u64 = 4_000_000;
/// The largest prompt a template may write, in bytes.
const MAX_PROMPT_BYTES: usize = 64 << 20;
/// The largest template that is compiled, in bytes; the longest published ones have about 20,000.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
const NAME: &str = "chat_template";

/// One message as the template sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, or what the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// The speaker's name, absent for the template when `None`.
    pub name: Option<String>,
}

impl ChatMessage {
    fn to_value(&self) -> Value {
        let Self { role, content, name } = self;
        match name {
            Some(name) => context! { role, content, name },
            None => context! { role, content },
        }
    }
}

/// A compiled chat template; cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template; the two tokens are what it may refer to as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError::Broken`] with the line of the mistake.
    pub fn new(source: &str, bos_token: Option<String>, eos_token: Option<String>) -> Result<Self, TemplateError> {
        Self::with_clock(source, bos_token, eos_token, template_clock::system_clock)
    }

    /// As [`Self::new`], with the clock that `strftime_now` reads.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_clock(
        source: &str,
        bos_token: Option<String>,
        eos_token: Option<String>,
        clock: Clock,
    ) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let problem = format!("{} bytes long, at most {MAX_TEMPLATE_BYTES} are compiled", source.len());
            return Err(TemplateError::Broken { problem });
        }
        let mut environment = environment(clock).map_err(describe)?;
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(describe)?;
        Ok(Self { environment: Arc::new(environment), bos_token, eos_token })
    }

    /// Renders the messages; with `add_generation_prompt` the text ends where the model's answer begins.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] when the template refuses these messages, [`TemplateError::OutOfBudget`] when it
    /// does not finish, [`TemplateError::Broken`] for mistakes in the template.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let none = Value::from(());
        let token = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let context = context! {
            messages => messages.iter().map(ChatMessage::to_value).collect::<Value>(),
            add_generation_prompt => add_generation_prompt,
            bos_token => token(&self.bos_token),
            eos_token => token(&self.eos_token),
            // The reference passes these two as none when a request has none; templates test both ways.
            tools => none.clone(),
            documents => none,
        };
        let template = self.environment.get_template(NAME).map_err(describe)?;
        let prompt = template.render(context).map_err(describe)?;
        if prompt.len() > MAX_PROMPT_BYTES {
            let detail = format!("it writes more than {MAX_PROMPT_BYTES} bytes");
            return Err(TemplateError::OutOfBudget { detail });
        }
        Ok(prompt)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

/// The engine set up as the reference implementation sets up Jinja.
fn environment(clock: Clock) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(bounded_method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| template_clock::format(clock(), format));
    environment.add_filter("tojson", |value: &Value, indent: Option<u32>, options: Kwargs| {
        template_json::to_json(value, indent, &options)
    });
    Ok(environment)
}

/// Marks an error as the template's own `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RaisedByTemplate(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(error.with_source(RaisedByTemplate(message)))
}

/// Python's string, list and dictionary methods, refusing the calls that would make a giant string in one step.
fn bounded_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let product = match (method, value.as_str(), args) {
        ("replace", Some(text), [_, new, ..]) => text.len().saturating_mul(new.as_str().map_or(0, str::len)),
        ("join", Some(text), [items, ..]) => text.len().saturating_mul(items.len().unwrap_or(0)),
        ("format", Some(text), _) => widths_in(text),
        _ => 0,
    };
    if product > MAX_PROMPT_BYTES {
        return Err(Error::new(ErrorKind::OutOfFuel, format!("`{method}` would make too long a string")));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// The sum of all numbers in a format string: no field it describes is wider.
fn widths_in(format: &str) -> usize {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.fold(0, |sum, digits| digits.parse::<usize>().map_or(usize::MAX, |width| width.saturating_add(sum)))
}

fn describe(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(RaisedByTemplate(message)) = current.downcast_ref() {
            return TemplateError::Raised { message: message.clone() };
        }
        if current.downcast_ref::<Error>().is_some_and(is_over_budget) {
            return TemplateError::OutOfBudget { detail: current.to_string() };
        }
        cause = current.source();
    }
    TemplateError::Broken { problem: error.to_string() }
}

fn is_over_budget(error: &Error) -> bool {
    // The engine has no kind of its own for its recursion limit.
    error.kind() == ErrorKind::OutOfFuel || error.detail() == Some("recursion limit exceeded")
}

/// Replaces `{% generation %}` blocks, which only mark text for training, by blocks that do nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let inner = &rest[start + 2..];
        let Some(end) = inner.find("%}") else { break };
        let replacement = match inner[..end].trim_matches(['-', '+']).trim() {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => {
                out.push_str(&rest[..start + 2]);
                rest = inner;
                continue;
            }
        };
        let sign = |edge: Option<char>| edge.filter(|c| matches!(c, '-' | '+')).map_or(String::new(), String::from);
        let (before, after) = (sign(inner[..end].chars().next()), sign(inner[..end].chars().next_back()));
        out.push_str(&format!("{}{{%{before} {replacement} {after}%}}", &rest[..start]));
        rest = &inner[end + 2..];
    }
    out.push_str(rest);
    out
}
