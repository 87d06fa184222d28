//! A watched folder of tiers: what it declares holds, a wrong file keeps the last good state, Kubernetes' swaps are followed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millgate::app::TierFolder;
use millgate::governance::records::TierOrigin;
use millgate::governance::{ServiceError, TierPatch};
use millgate::telemetry::{Metrics, PageFormat};
use tempfile::TempDir;

use crate::governance_house::House;

struct Followed {
    house: House,
    folder: TierFolder,
    metrics: Arc<Metrics>,
    dir: TempDir,
}

impl Followed {
    async fn new() -> Self {
        let (house, dir, metrics) = (House::new().await, TempDir::new().expect("dir"), Arc::new(Metrics::new()));
        let folder = TierFolder::new(dir.path().to_owned(), house.governor.clone(), metrics.clone());
        Self { house, folder, metrics, dir }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("written");
    }

    async fn names(&self) -> Vec<String> {
        let tiers = self.house.governor.tiers(&self.house.governor.operator()).await.expect("tiers");
        tiers.into_iter().map(|tier| tier.name).collect()
    }

    fn problem(&self) -> Option<String> {
        self.house.governor.tier_files_state().expect("a folder is watched").problem
    }

    fn is_failing(&self) -> bool {
        self.metrics.render(PageFormat::Prometheus, &[], false).contains("\nmillgate_tier_files_failing 1\n")
    }
}

#[tokio::test]
async fn a_wrong_file_keeps_the_last_good_state_and_says_where_it_is_wrong() {
    let mut followed = Followed::new().await;
    followed.folder.look().await;
    assert!(followed.problem().expect("an empty folder").contains("no file that declares tiers"));
    assert_eq!(followed.names().await, ["free", "premium", "enterprise"], "and no order to delete");
    followed.write("tiers.yaml", "tiers:\n  - {name: gold, level: 9, groups: [g]}\n");
    followed.folder.look().await;
    assert_eq!((followed.problem(), followed.is_failing()), (None, false));
    assert_eq!(followed.names().await, ["free", "premium", "enterprise", "gold"]);
    followed.write(
        "tiers.yaml",
        "tiers:\n  - {name: silver, level: 9, groups: [g]}\n  - {name: gold, level: high, groups: [g]}\n",
    );
    followed.folder.look().await;
    let problem = followed.problem().expect("reported");
    assert!(problem.starts_with("`tiers.yaml` line 3: cannot read the tiers"), "{problem}");
    assert!(followed.is_failing());
    assert_eq!(followed.names().await, ["free", "premium", "enterprise", "gold"]);
    followed.write("tiers.yaml", "tiers:\n  - {name: silver, level: 9, groups: [g]}\n");
    followed.folder.look().await;
    assert_eq!((followed.problem(), followed.is_failing()), (None, false));
    assert_eq!(
        followed.names().await,
        ["free", "premium", "enterprise", "silver"],
        "what it declared and no longer does"
    );
    followed.house.close().await;
}

#[tokio::test]
async fn whatever_lies_in_the_folder_is_named_and_deletes_no_tier() {
    let mut followed = Followed::new().await;
    followed.write("tiers.yaml", "tiers:\n  - {name: gold, level: 9, groups: [g]}\n");
    followed.folder.look().await;
    let before = followed.names().await;
    let map = |tiers: &str| format!("kind: ConfigMap\ndata:\n{tiers}");
    let bad: [(&str, Vec<u8>); 11] = [
        ("empty", Vec::new()),
        ("comments", b"# nothing\n---\n".to_vec()),
        ("null", b"null".to_vec()),
        ("latin", b"tiers:\n  - {name: gold, displayName: caf\xe9, level: 9, groups: [g]}\n".to_vec()),
        ("binary", vec![0, 159, 146, 150]),
        ("no-list", b"tiers:\n".to_vec()),
        ("map-without-data", b"kind: ConfigMap\n".to_vec()),
        ("map-without-tiers", map("  other: x\n").into_bytes()),
        ("map-with-nothing", map("  tiers: ''\n").into_bytes()),
        ("map-with-a-comment", map("  tiers: |\n    # nothing\n").into_bytes()),
        ("two-documents", b"tiers:\n  - {name: a, groups: [g]}\n---\ntiers: []\n".to_vec()),
    ];
    let path = followed.dir.path().join("tiers.yaml");
    for (what, bytes) in bad {
        fs::write(&path, bytes).expect("written");
        followed.folder.look().await;
        let problem = followed.problem().unwrap_or_else(|| panic!("{what} is taken for a declaration"));
        assert!(problem.contains("`tiers.yaml`"), "{what}: {problem}");
        assert_eq!(followed.names().await, before, "{what}");
    }
    fs::write(&path, vec![b'#'; (4 << 20) + 1]).expect("written");
    followed.folder.look().await;
    assert!(followed.problem().expect("too large").contains("has more than"));
    fs::remove_file(&path).expect("removed");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
    assert!(made.success());
    // Nobody ever writes into the pipe: reading it would wait for ever.
    tokio::time::timeout(Duration::from_secs(20), followed.folder.look()).await.expect("it does not wait");
    assert!(followed.problem().expect("a pipe").contains("it is not a file"));
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("made");
    followed.folder.look().await;
    assert!(followed.problem().expect("a folder").contains("it is not a file"));
    fs::remove_dir(&path).expect("removed");
    followed.write("tiers.yaml", "\u{feff}tiers:\r\n  - {name: gold, level: 9, groups: [g]}\r\n");
    followed.folder.look().await;
    assert_eq!(followed.problem(), None, "a byte order mark and line ends of Windows are no problem");
    assert_eq!(followed.names().await, before);
    followed.house.close().await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_through_swaps_of_its_link() {
    let mut followed = Followed::new().await;
    let version = |number: u32, level: u32| {
        let hidden = followed.dir.path().join(format!("..2026_{number}"));
        fs::create_dir(&hidden).expect("made");
        fs::write(
            hidden.join("tiers"),
            format!("- name: free\n  displayName: Free Tier\n  level: {level}\n  groups: ['system:authenticated']\n"),
        )
        .expect("written");
        swap(followed.dir.path(), &format!("..2026_{number}"), "..data");
    };
    version(1, 0);
    swap(followed.dir.path(), "..data/tiers", "tiers");
    followed.folder.look().await;
    let operator = followed.house.governor.operator();
    let free = followed.house.governor.tier(&operator, "free").await.expect("free");
    assert_eq!((free.display_name.as_str(), free.level, free.origin), ("Free Tier", 0, TierOrigin::ConfigMap));
    assert!(!free.limits.is_empty(), "limits are not the ConfigMap's");
    version(2, 5);
    followed.folder.look().await;
    assert_eq!(followed.house.governor.tier(&operator, "free").await.expect("free").level, 5);
    assert_eq!(followed.problem(), None);
    followed.house.close().await;
}

/// Points a link elsewhere in one step, as Kubernetes does.
fn swap(dir: &Path, target: &str, link: &str) {
    let fresh = dir.join("..tmp");
    std::os::unix::fs::symlink(target, &fresh).expect("linked");
    fs::rename(fresh, dir.join(link)).expect("swapped");
}

#[tokio::test]
async fn what_a_watched_file_owns_is_changed_there_and_the_rest_anywhere() {
    let mut followed = Followed::new().await;
    followed.write("tiers", "- {name: gold, level: 9, groups: [g]}\n");
    followed.folder.look().await;
    let (governor, operator) = (followed.house.governor.clone(), followed.house.governor.operator());
    let limits = TierPatch { limits: Some(Vec::new()), weight: Some(7), ..TierPatch::default() };
    governor.update_tier(&operator, "gold", limits).await.expect("limits and weight are free");
    let level = TierPatch { level: Some(8), ..TierPatch::default() };
    let refused = governor.update_tier(&operator, "gold", level).await.expect_err("declared");
    assert!(
        matches!(&refused, ServiceError::Conflict(why) if why.contains("`level`") && why.contains("`tiers`")),
        "{refused}"
    );
    let same = TierPatch { level: Some(9), ..TierPatch::default() };
    governor.update_tier(&operator, "gold", same).await.expect("what changes nothing");
    assert!(matches!(governor.delete_tier(&operator, "gold").await, Err(ServiceError::Conflict(_))));
    governor.delete_tier(&operator, "premium").await.expect("made by hand");
    followed.folder.look().await;
    let gold = governor.tier(&operator, "gold").await.expect("gold");
    assert_eq!((gold.limits.len(), gold.weight), (0, 7), "they survive");
    let page = governor.audit(&operator, Default::default()).await.expect("read");
    let made = page.rows.iter().find(|row| row.action == "tier.create" && row.target == "tier/gold").expect("told");
    assert_eq!(made.actor, "server");
    followed.house.close().await;
}
