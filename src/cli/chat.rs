//! `millgate chat`: a conversation in the terminal, streamed through the HTTP API like any other client's.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::config::Environment;

use super::args::ChatArgs;
use super::client::Client;
use super::fail::{Hinted, report};
use super::output;

const HISTORY_FILE: &str = ".millgate_history";
const HELP: &str =
    "/clear forgets the conversation · /system TEXT sets the system prompt · /quit ends · Ctrl-C stops an answer";

/// Runs the conversation until `/quit` or the end of input.
///
/// # Errors
/// No server, no model, or, with piped input, the first failure.
pub(super) fn run(args: &ChatArgs, environment: &Environment, runtime: &Runtime) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let model = runtime.block_on(pick_model(&client, args.model.as_deref()))?;
    let conversation = Conversation { client, model, system: args.system.clone(), turns: Vec::new(), args };
    if std::io::stdin().is_terminal() {
        interactive(conversation, environment, runtime)
    } else {
        piped(conversation, runtime)
    }
}

/// The model asked for, or the first that is ready.
///
/// # Errors
/// When the caller may use no such model.
pub(super) async fn pick_model(client: &Client, wanted: Option<&str>) -> Result<String> {
    let models = client.get("/v1/models").await?;
    let models = models["data"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = models.iter().filter_map(|model| model["id"].as_str()).collect();
    if let Some(wanted) = wanted {
        if names.contains(&wanted) {
            return Ok(wanted.to_owned());
        }
        return Err(Hinted::error(
            format!("there is no model `{wanted}` for this key"),
            format!("it may use: {}", names.join(", ")),
        ));
    }
    let ready = models.iter().find(|model| model["ready"] == true).and_then(|model| model["id"].as_str());
    ready.map(str::to_owned).ok_or_else(|| {
        Hinted::error("no model is ready for this key", "publish one to its tier, or look at `millgate model list`")
    })
}

struct Conversation<'a> {
    client: Client,
    model: String,
    system: Option<String>,
    turns: Vec<Value>,
    args: &'a ChatArgs,
}

/// What a line asks for.
enum Line<'a> {
    Say(&'a str),
    Clear,
    System(&'a str),
    Help,
    Quit,
    Nothing,
}

fn read(line: &str) -> Line<'_> {
    match line.trim() {
        "" => Line::Nothing,
        "/quit" | "/exit" | "/bye" => Line::Quit,
        "/clear" => Line::Clear,
        "/help" | "/?" => Line::Help,
        text => match text.strip_prefix("/system") {
            Some(rest) if rest.is_empty() || rest.starts_with(' ') => Line::System(rest.trim()),
            _ => Line::Say(text),
        },
    }
}

fn interactive(mut conversation: Conversation<'_>, environment: &Environment, runtime: &Runtime) -> Result<()> {
    let mut editor = DefaultEditor::new().context("cannot prepare line editing")?;
    let history: Option<PathBuf> = environment.user_home.as_ref().map(|home| home.join(HISTORY_FILE));
    if let Some(history) = &history {
        // There is no history before the first conversation.
        let _ = editor.load_history(history);
    }
    output::note(&format!("{} on {} · {HELP}", conversation.model, conversation.client.base()));
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("cannot read the line"),
        };
        let _ = editor.add_history_entry(line.as_str());
        match read(&line) {
            Line::Quit => break,
            Line::Help => output::note(HELP),
            Line::Nothing => {}
            Line::Clear => {
                conversation.turns.clear();
                output::note("forgotten");
            }
            Line::System(text) => {
                conversation.system = Some(text.to_owned()).filter(|text| !text.is_empty());
                conversation.turns.clear();
                output::note(if text.is_empty() {
                    "no system prompt"
                } else {
                    "system prompt set, conversation forgotten"
                });
            }
            Line::Say(text) => {
                if let Err(error) = runtime.block_on(conversation.say(text)) {
                    output::note(&report(&error));
                }
            }
        }
    }
    if let Some(history) = &history {
        editor.save_history(history).context("cannot save the history")?;
    }
    Ok(())
}

/// Each line is a message, so that scripts can hold a conversation; the first failure ends it.
fn piped(mut conversation: Conversation<'_>, runtime: &Runtime) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        match read(&line.context("cannot read standard input")?) {
            Line::Quit => break,
            Line::Nothing | Line::Help => {}
            Line::Clear => conversation.turns.clear(),
            Line::System(text) => conversation.system = Some(text.to_owned()).filter(|text| !text.is_empty()),
            Line::Say(text) => runtime.block_on(conversation.say(text))?,
        }
    }
    Ok(())
}

impl Conversation<'_> {
    /// Sends a message and writes the answer as it arrives. A failed message is not remembered.
    async fn say(&mut self, text: &str) -> Result<()> {
        let mut messages: Vec<Value> =
            self.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
        messages.extend(self.turns.iter().cloned());
        let mine = json!({"role": "user", "content": text});
        messages.push(mine.clone());
        let mut body = json!({"model": self.model, "messages": messages, "stream": true});
        if let Some(temperature) = self.args.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = self.args.max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        let mut answer = String::new();
        let mut cut_by_limit: Option<String> = None;
        let outcome = tokio::select! {
            outcome = self.client.stream("/v1/chat/completions", &body, |event| {
                let choice = &event["choices"][0];
                if let Some(piece) = choice["delta"]["content"].as_str() {
                    answer.push_str(piece);
                    output::text(piece)?;
                }
                if choice["finish_reason"] == "length" {
                    let limit = event["millgate"]["detail"]["limit"].as_str();
                    cut_by_limit = Some(limit.map_or_else(|| "the longest answer allowed".into(), |limit| format!("the limit {limit}")));
                }
                Ok(true)
            }) => outcome,
            // Dropping the stream tells the server to stop within a step.
            _ = tokio::signal::ctrl_c() => Ok(()),
        };
        if !answer.is_empty() {
            output::text("\n")?;
        }
        outcome?;
        if let Some(limit) = cut_by_limit {
            output::note(&format!("(cut off by {limit})"));
        }
        self.turns.push(mine);
        self.turns.push(json!({"role": "assistant", "content": answer}));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        assert!(matches!(read("  /quit "), Line::Quit));
        assert!(matches!(read("/system be brief"), Line::System("be brief")));
        assert!(matches!(read("/system"), Line::System("")));
        assert!(matches!(read("/systems are nice"), Line::Say("/systems are nice")));
        assert!(matches!(read("what does /clear do?"), Line::Say(_)));
        assert!(matches!(read(" "), Line::Nothing));
    }
}
