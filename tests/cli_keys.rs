//! `millgate key` against a running server: every subcommand, as people and as scripts use it.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Actor, TestApp};

/// Runs `millgate key ARGS` as the holder of a key.
async fn key(app: &TestApp, who: &Actor, args: &[&str]) -> Output {
    millgate(app, who, &[&["key"], args].concat()).await
}

/// Runs `millgate ARGS` as the holder of a key, away from the working tree.
pub(crate) async fn millgate(app: &TestApp, who: &Actor, args: &[&str]) -> Output {
    let mut args: Vec<String> = args.iter().copied().map(str::to_owned).collect();
    args.extend(["--url".to_owned(), format!("http://{}", app.address)]);
    let secret = who.key.clone().unwrap();
    let run = move || {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_millgate"));
        command.args(args).current_dir(folder.path()).env_clear().env("MILLGATE_API_KEY", secret).output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn says(app: &TestApp, who: &Actor, args: &[&str]) -> String {
    let output = key(app, who, args).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn json(app: &TestApp, who: &Actor, args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&says(app, who, &args).await).unwrap()
}

#[tokio::test]
async fn a_key_is_made_found_changed_renewed_and_ended_on_the_command_line() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &["premium-users"]).await;
    let made = json(
        &app,
        &ann,
        &["create", "--name", "ci", "--label", "team=web", "--limit", "9 requests / 1h", "--model", "fake"],
    )
    .await;
    let id = made["id"].as_str().unwrap().to_owned();
    assert_eq!((&made["labels"]["team"], &made["models"][0]), (&"web".into(), &"fake".into()));
    let shown_once = says(&app, &ann, &["create", "--ephemeral", "--expires", "10m"]).await;
    assert!(shown_once.starts_with("sk-mg_") && shown_once.lines().count() == 1, "{shown_once}");
    let found = json(&app, &ann, &["list", "--label", "team=web", "--status", "active", "--sort", "name"]).await;
    assert_eq!((found.as_array().unwrap().len(), found[0]["name"].as_str()), (1, Some("ci")));
    assert_eq!(json(&app, &ann, &["list", "--include-ephemeral"]).await.as_array().unwrap().len(), 3);
    let table = says(&app, &ann, &["list"]).await;
    assert!(table.contains("ci") && !table.contains("ephemeral-"), "{table}");
    let changed =
        says(&app, &ann, &["update", &id, "--name", "new", "--no-labels", "--no-limits", "--all-models"]).await;
    assert!(changed.contains("new") && changed.contains("those of the tier only"), "{changed}");
    assert!(says(&app, &ann, &["show", &id]).await.contains("all of the tier"));
    let text = says(&app, &ann, &["rotate", &id, "--grace", "0s"]).await;
    let renewed = ann.with_key(text.trim());
    assert_eq!(renewed.get("/v1/me").await.status, 200);
    assert_eq!(ann.with_key(made["key"].as_str().unwrap()).get("/v1/me").await.status, 401);
    assert_eq!(says(&app, &ann, &["revoke", &id]).await, "revoked new\n");
    let again = key(&app, &ann, &["revoke", &id]).await;
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("API key not found (404)"));
}

#[tokio::test]
async fn many_keys_are_ended_after_a_dry_run_and_an_administrator_reaches_everybodys() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    for name in ["one", "two"] {
        says(&app, &app.admin(), &["create", "--user", "ann", "--name", name, "--label", "run=7"]).await;
    }
    let dry = json(&app, &ann, &["bulk-revoke", "--label", "run=7", "--dry-run"]).await;
    assert_eq!((dry["count"].as_u64(), dry["dry_run"].as_bool()), (Some(2), Some(true)));
    let nothing = key(&app, &ann, &["bulk-revoke"]).await;
    assert!(!nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("say which keys"));
    assert!(!key(&app, &ann, &["bulk-revoke", "--all", "--label", "run"]).await.status.success());
    let table = says(&app, &app.admin(), &["bulk-revoke", "--all", "--label", "run"]).await;
    assert!(table.contains("one") && table.contains("two") && table.contains("ann"), "{table}");
    let left = json(&app, &app.admin(), &["list", "--all", "--user", "ann", "--status", "active"]).await;
    assert_eq!((left.as_array().unwrap().len(), left[0]["name"].as_str()), (1, Some("test")));
}

#[tokio::test]
async fn a_user_is_locked_out_let_in_again_or_deleted_and_hints_fit_what_is_missing() {
    let app = TestApp::new().start().await;
    let (admin, ann) = (app.admin(), app.user("ann", &["premium-users"]).await);
    for (command, status) in [("deactivate", 401), ("activate", 200)] {
        let done = millgate(&app, &admin, &["user", command, "ann"]).await;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(ann.get("/v1/me").await.status, status, "{command}");
    }
    let bob = app.user("bob", &[]).await;
    let gone = millgate(&app, &admin, &["user", "delete", "bob"]).await;
    assert_eq!(String::from_utf8_lossy(&gone.stdout), "bob is deleted, the keys are revoked\n");
    assert_eq!(bob.get("/v1/me").await.status, 401);
    for (args, hint) in [
        (&["user", "activate", "nobody"][..], "`millgate user list`"),
        (&["user", "delete", "nobody"], "`millgate user list`"),
        (&["key", "show", "nothing", "--all"], "`millgate key list`"),
        (&["model", "load", "nothing"], "`millgate model list`"),
        (&["token", "withdraw", "nothing"], "`millgate token keys`"),
    ] {
        let failed = millgate(&app, &admin, args).await;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && said.contains(&format!("hint: {hint}")), "{args:?}: {said}");
    }
    let child = says(&app, &ann, &["create", "--name", "child"]).await;
    assert!(child.starts_with("sk-mg_"));
    let table = says(&app, &ann, &["list"]).await;
    assert!(table.contains("made by key"), "{table}");
    let price = millgate(&app, &admin, &["price", "set", "fake", "--prompt", "0.12345678", "--completion", "1"]).await;
    let said = String::from_utf8_lossy(&price.stderr).into_owned();
    assert!(said.contains("at most six decimals"), "{said}");
}
