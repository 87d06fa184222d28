//! `millgate tier` against a running server: the documented file applied, what it does told, what is wrong in it found.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::process::Output;

use crate::cli_keys::millgate;
use crate::support::{Actor, TestApp};

async fn tier(app: &TestApp, who: &Actor, args: &[&str]) -> (bool, String, String) {
    let Output { status, stdout, stderr } = millgate(app, who, &[&["tier"], args].concat()).await;
    (status.success(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn the_documented_config_map_is_applied_on_the_command_line() {
    let app = TestApp::new().start().await;
    let (admin, bob) = (app.admin(), app.user("bob", &["gold-users"]).await);
    let documented = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/tier-to-group-mapping.yaml");
    let (is_done, told, noted) = tier(&app, &admin, &["apply", "-f", documented, "--dry-run"]).await;
    assert!(
        is_done && told.contains("  display name: Free -> Free Tier\n") && noted.contains("nothing was changed"),
        "{told}{noted}"
    );
    let (_, listed, _) = tier(&app, &admin, &["list"]).await;
    assert!(!listed.contains("Free Tier"), "a dry run changes nothing: {listed}");
    assert!(tier(&app, &admin, &["apply", "-f", documented]).await.0);
    let (_, listed, _) = tier(&app, &admin, &["list"]).await;
    assert!(listed.contains("Free Tier") && listed.contains("60 requests / 1m"), "limits stay: {listed}");
    let (is_done, told, _) = tier(&app, &admin, &["apply", "-f", documented]).await;
    assert_eq!((is_done, told.as_str()), (true, "nothing to change\n"));

    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let path = folder.path().join("tiers.yaml");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let gold = write("tiers:\n  - {name: gold, level: 9, groups: [gold-users], limits: [7 requests / 1m]}\n");
    let (_, told, _) = tier(&app, &admin, &["apply", "-f", &gold]).await;
    assert_eq!(told, "create gold: level 9, groups gold-users, 7 requests / 1m\n");
    let none = write("tiers: []\n");
    let (_, told, _) = tier(&app, &admin, &["apply", "-f", &none]).await;
    assert_eq!(told, "delete gold: 1 user is affected\n  bob falls to `free`\n");
    let wrong = write("tiers:\n  - {name: gold, level: 9, groups: []}\n");
    let (is_done, _, why) = tier(&app, &admin, &["apply", "-f", &wrong]).await;
    assert!(!is_done && why.contains(&wrong) && why.contains("line 2: tier `gold`"), "{why}");
    let (is_done, _, why) = tier(&app, &bob, &["apply", "-f", documented]).await;
    assert!(!is_done && why.contains("Only administrators may do this"), "{why}");
    app.stop().await;
}
