//! The program as its users meet it: what it prints, what it says when something is wrong, its exit code.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use millgate::governance::{ADMIN, ADMINS, Config, ManualClock, Secret};

use crate::governance_house::{House, NOON_US};

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
    let written = child.stdin.take().expect("standard input is a pipe").write_all(input.as_bytes());
    // A program that needs no input may have ended before it could be written.
    let has_ended = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    assert!(written.as_ref().err().is_none_or(has_ended), "{written:?}");
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
    for command in ["serve", "chat", "bench", "usage", "reconcile"] {
        let help = millgate(&["help", command], "");
        assert!(help.is_success && help.out.contains(&format!("  millgate {command}")), "{command}: {}", help.out);
    }
    for command in [
        ["key", "create"],
        ["key", "list"],
        ["key", "show"],
        ["key", "update"],
        ["key", "rotate"],
        ["key", "revoke"],
        ["key", "bulk-revoke"],
        ["tier", "apply"],
        ["tier", "simulate"],
        ["user", "create"],
        ["audit", "list"],
        ["audit", "verify"],
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

#[tokio::test]
async fn the_audit_log_is_read_and_checked_in_the_data_directory_of_a_stopped_server() {
    let house = crate::governance_house::House::new().await;
    house.user("ann", &["g"]).await;
    let image = house.crash_image();
    house.close().await;
    let folder = image.path().to_str().expect("a plain path");
    let listed = millgate(&["audit", "list", "--target", "user/ann", "--data-dir", folder], "");
    assert!(
        listed.is_success && listed.out.contains("user.create") && listed.out.contains("operator"),
        "{}",
        listed.out
    );
    let whole = millgate(&["audit", "verify", "--data-dir", folder], "");
    assert!(whole.is_success && whole.out.starts_with("the audit log is whole: "), "{}{}", whole.out, whole.err);
    let head = whole.out.lines().find_map(|line| line.strip_prefix("head: ")).expect("a head").to_owned();
    assert!(millgate(&["audit", "verify", "--data-dir", folder, "--head", &head], "").is_success);

    let url = format!("sqlite://{}", image.path().join("millgate.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.expect("the file");
    sqlx::query("DROP TRIGGER audit_is_never_deleted").execute(&pool).await.expect("by force");
    let cut = "DELETE FROM audit WHERE sequence = (SELECT MAX(sequence) FROM audit)";
    sqlx::query(cut).execute(&pool).await.expect("by force");
    pool.close().await;
    assert!(millgate(&["audit", "verify", "--data-dir", folder], "").is_success, "the log alone cannot show it");
    let cut = millgate(&["audit", "verify", "--data-dir", folder, "--head", &head], "");
    assert!(!cut.is_success && cut.err.contains("the end of the log was cut off"), "{}", cut.err);
    let nowhere = millgate(&["audit", "verify", "--data-dir", "nowhere"], "");
    assert!(!nowhere.is_success && nowhere.err.contains("there is no audit log in `nowhere`"), "{}", nowhere.err);
}

#[tokio::test]
async fn whoever_holds_the_data_directory_makes_admin_an_administrator_again() {
    let house = House::new().await;
    let operator = house.governor.operator();
    house.user("ann", &[ADMINS]).await;
    house.governor.delete_user(&operator, ADMIN).await.expect("another administrator is left");
    let image = house.crash_image();
    house.close().await;
    let folder = image.path().to_str().expect("a plain path");
    let made = millgate(&["key", "create", "--admin", "--json", "--data-dir", folder], "");
    assert!(made.is_success, "{}", made.err);
    let made: serde_json::Value = serde_json::from_str(&made.out).expect("it is JSON");
    let key = Secret::new(made["key"].as_str().expect("the key"));
    let house = House::open(image, Arc::new(ManualClock::at(NOON_US)), Config::default()).await;
    assert!(house.authenticate(&key).await.expect("the key works").is_admin);
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
