//! The program as its users meet it: what it prints, what it says when something is wrong, its exit code.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

struct Ran {
    out: String,
    err: String,
    is_success: bool,
}

/// What the program prints on standard output when it succeeds; its complaint when it does not.
pub(crate) fn printed(args: &[&str]) -> Result<String, String> {
    let ran = millgate(args, "");
    if ran.is_success { Ok(ran.out) } else { Err(ran.err) }
}

/// Runs the program with a clean environment, away from the working tree.
fn millgate(args: &[&str], input: &str) -> Ran {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut child = Command::new(env!("CARGO_BIN_EXE_millgate"))
        .args(args)
        .current_dir(folder.path())
        .env_clear()
        .env("HOME", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child
        .stdin
        .take()
        .expect("standard input is a pipe")
        .write_all(input.as_bytes())
        .expect("the program reads or ends");
    ran(child.wait_with_output().expect("the program ends"))
}

fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
    Ran { out: text(output.stdout), err: text(output.stderr), is_success: output.status.success() }
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let help = millgate(&["--help"], "");
    assert!(help.is_success && help.out.contains("First steps:"));
    for command in ["serve", "chat", "bench", "usage"] {
        let help = millgate(&["help", command], "");
        assert!(help.is_success && help.out.contains(&format!("  millgate {command}")), "{command}: {}", help.out);
    }
    for command in [
        ["key", "create"],
        ["tier", "apply"],
        ["user", "create"],
        ["model", "inspect"],
        ["model", "create"],
        ["model", "load"],
        ["model", "unload"],
        ["model", "delete"],
        ["price", "set"],
    ] {
        let help = millgate(&["help", command[0], command[1]], "");
        assert!(help.is_success && help.out.contains(&format!("  millgate {}", command.join(" "))), "{command:?}");
    }
}

#[test]
fn without_a_server_one_is_told_so_once_and_what_to_do() {
    for args in
        [vec!["chat"], vec!["model", "list"], vec!["key", "list"], vec!["bench"], vec!["tier", "list", "--json"]]
    {
        // Port 9 is the discard service's; nobody listens there.
        let args: Vec<&str> = args.iter().copied().chain(["--url", "http://127.0.0.1:9"]).collect();
        let ran = millgate(&args, "hello\n");
        assert!(!ran.is_success && ran.out.is_empty(), "{args:?}: {}", ran.out);
        assert!(ran.err.starts_with("error: no server answers at http://127.0.0.1:9"), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("hint: start one with `millgate serve`"), "{args:?}: {}", ran.err);
        assert_eq!(ran.err.matches("error: ").count(), 1, "{}", ran.err);
    }
}

#[test]
fn a_wrong_configuration_names_the_key_and_the_line_everywhere() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "[server]\nlisten = \"127.0.0.1:1\"\ndrain_timeuot = \"1s\"\n")
        .expect("it is writable");
    let path = file.path().to_str().expect("a plain path");
    for args in
        [vec!["config", "check", path], vec!["config", "show", "--config", path], vec!["serve", "--config", path]]
    {
        let ran = millgate(&args, "");
        assert!(!ran.is_success);
        assert!(
            ran.err.contains("line 3") && ran.err.contains("drain_timeuot") && ran.err.contains("`drain_timeout`"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn the_shown_configuration_is_a_configuration_and_hides_secrets() {
    let example = millgate(&["config", "example"], "");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), &example.out).expect("it is writable");
    let path = file.path().to_str().expect("a plain path");
    assert!(millgate(&["config", "check", path], "").is_success);
    let shown = millgate(&["config", "show", "--config", path, "--json"], "");
    let value: serde_json::Value = serde_json::from_str(&shown.out).expect("it is JSON");
    assert_eq!(value["server"]["listen"], "127.0.0.1:8080");
}

#[test]
fn a_mistyped_model_argument_shows_how_to_write_it() {
    let ran = millgate(&["serve", "--model", "qwen"], "");
    assert!(!ran.is_success && ran.err.contains("NAME=SOURCE"), "{}", ran.err);
}
