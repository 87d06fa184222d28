//! The house rules a program can check: who may import whom, file sizes, and that everything public is documented.

use crate::source_text::{SourceFile, workspace_root, workspace_sources};

/// The import table of ARCHITECTURE.md: each module and the path prefixes it may name besides its own.
const IMPORTS: &[(&str, &[&str])] = &[
    ("telemetry", &[]),
    ("governance", &["telemetry"]),
    ("engine", &["millgate_models", "telemetry"]),
    ("store", &["governance", "telemetry"]),
    ("api", &["governance", "engine", "millgate_models::text", "telemetry"]),
    (
        "config",
        &[
            "api",
            "engine::Config",
            "governance::Config",
            "governance::Limit",
            "governance::LONGEST_TOKEN_LIFE",
            "governance::KubernetesCluster",
            "governance::OidcIssuer",
            "governance::TokenAlgorithm",
            "governance::SHORTEST_TOKEN_LIFE",
            "governance::Secret",
            "governance::limits",
            "governance::tiers",
            "store::Config",
            "telemetry",
            "millgate_models::DeviceChoice",
            "millgate_models::DeviceTextError",
            "millgate_models::HubOptions",
            "millgate_models::KvDtypeChoice",
            "millgate_models::QuantizeTo",
            "millgate_models::Source",
        ],
    ),
    ("app", &["api", "config", "engine", "governance", "store", "telemetry", "millgate_models", "millgate_kernels"]),
    (
        "cli",
        &["api", "app", "config", "engine", "governance", "store", "telemetry", "millgate_models", "millgate_kernels"],
    ),
];

/// External crates that belong to one module; everybody else must not see them.
const OWNED_CRATES: &[(&str, &[&str])] = &[
    ("axum", &["api"]),
    ("sqlx", &["store"]),
    ("rusqlite", &["store"]),
    ("clap", &["cli", "main"]),
    ("anyhow", &["app", "cli", "main"]),
];

/// The one file outside `kernels` that may say `unsafe`, and the mark it carries.
const UNSAFE_MARK: &str = "UNSAFE EXCEPTION";
const MAX_LINES: usize = 600;

fn check(rule: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{rule}\n  {}\n", offences.join("\n  "));
}

fn shipped(sources: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    sources.iter().filter(|file| !file.is_test())
}

#[test]
fn imports_point_down_the_table() {
    let sources = workspace_sources();
    let mut offences = Vec::new();
    for file in shipped(&sources).filter(|file| file.path.starts_with("src/")) {
        let module = file.module();
        let Some((own, allowed)) = IMPORTS.iter().find(|(name, _)| Some(*name) == module.first().map(String::as_str))
        else {
            continue;
        };
        for path in file.paths() {
            let named = path.join("::");
            let is_within = |prefix: &str| named == prefix || named.starts_with(&format!("{prefix}::"));
            let is_module = path[0].starts_with("millgate_") || IMPORTS.iter().any(|(name, _)| *name == path[0]);
            if is_module && !is_within(own) && !allowed.iter().any(|prefix| is_within(prefix)) {
                offences.push(format!("{}: {own} must not import `{named}`", file.path));
            }
        }
    }
    check("imports follow the table in ARCHITECTURE.md:", offences);
}

#[test]
fn packages_below_never_look_up() {
    let sources = workspace_sources();
    let mut offences = Vec::new();
    for file in shipped(&sources) {
        let forbidden: &[&str] = match file.path.split('/').next() {
            Some("kernels") => &["millgate_models", "millgate", "candle_core", "axum", "sqlx"],
            Some("models") => &["millgate", "axum", "sqlx"],
            _ => &[],
        };
        let named = forbidden.iter().filter(|name| names_crate(&file.code, name));
        offences.extend(named.map(|name| format!("{}: must not see `{name}`", file.path)));
    }
    check("kernels know no model, models know no request:", offences);
}

#[test]
fn each_foreign_crate_stays_where_it_belongs() {
    let sources = workspace_sources();
    let mut offences = Vec::new();
    for file in shipped(&sources).filter(|file| file.path.starts_with("src/")) {
        let module = file.module().first().cloned().unwrap_or_else(|| "main".into());
        for (name, owners) in OWNED_CRATES {
            if names_crate(&file.code, name) && !owners.contains(&module.as_str()) {
                offences.push(format!("{}: only {} may use `{name}`", file.path, owners.join(", ")));
            }
        }
    }
    check("each foreign crate has its modules:", offences);
}

#[test]
fn no_file_is_longer_than_the_wall() {
    let sources = workspace_sources();
    let long = |file: &SourceFile| {
        let lines = if file.is_test() { file.raw.lines().count() } else { file.lines_before_tests() };
        (lines > MAX_LINES).then(|| format!("{}: {lines} lines before tests", file.path))
    };
    check("at most 600 lines a file:", sources.iter().filter_map(long).collect());
}

#[test]
fn every_file_says_what_it_is_in_its_first_line() {
    let sources = workspace_sources();
    let silent = |file: &&SourceFile| !file.raw.starts_with("//! ");
    check("the first line is a `//!` sentence:", sources.iter().filter(silent).map(|file| file.path.clone()).collect());
}

#[test]
fn module_files_are_tables_of_contents() {
    let sources = workspace_sources();
    let mut offences = Vec::new();
    for file in shipped(&sources).filter(|file| file.path.ends_with("/mod.rs")) {
        for statement in file.code.split(';') {
            let words =
                statement.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join(" ");
            let mut words = words.split_whitespace().filter(|word| !word.starts_with("pub"));
            if let Some(first) = words.next().filter(|first| !matches!(*first, "mod" | "use")) {
                offences.push(format!("{}: `{first} ...` is logic", file.path));
            }
        }
    }
    check("mod.rs holds docs, `mod` and `pub use` only:", offences);
}

#[test]
fn shipped_code_never_unwraps() {
    let sources = workspace_sources();
    let mut offences = Vec::new();
    for file in shipped(&sources) {
        let lines = file.code.lines().enumerate().filter(|(_, line)| line.contains(".unwrap()"));
        offences.extend(lines.map(|(number, _)| format!("{}:{}", file.path, number + 1)));
    }
    check("`expect` says why it cannot fail; `unwrap` does not:", offences);
}

#[test]
fn unsafe_lives_in_kernels() {
    let sources = workspace_sources();
    let mut marked = 0;
    let mut offences = Vec::new();
    for file in shipped(&sources).filter(|file| !file.path.starts_with("kernels/")) {
        let count = words(&file.code).filter(|word| *word == "unsafe").count();
        if count == 1 && file.path.starts_with("models/") && file.raw.contains(UNSAFE_MARK) {
            marked += 1;
        } else if count > 0 {
            offences.push(format!("{}: {count} times", file.path));
        }
    }
    check("unsafe lives in kernels (and in one marked mapping of weights):", offences);
    assert!(marked <= 1, "one marked exception, not {marked}");
}

#[test]
fn every_route_is_in_the_api_guide() {
    let guide = read("docs/api.md");
    let sources = workspace_sources();
    let mut offences = Vec::new();
    for file in shipped(&sources).filter(|file| file.path.starts_with("src/api/")) {
        for (_, text) in file.strings() {
            let is_route = text.starts_with('/')
                && text.len() > 1
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "/{}_-.*".contains(c));
            if is_route && !guide.contains(&text) {
                offences.push(format!("{}: `{text}`", file.path));
            }
        }
    }
    check("docs/api.md names every route:", offences);
}

#[test]
fn every_reason_of_a_refusal_is_in_the_api_guide() {
    let guide = read("docs/api.md");
    let sources = workspace_sources();
    let (mut reasons, mut offences) = (0, Vec::new());
    for file in shipped(&sources).filter(|file| file.path.starts_with("src/")) {
        let strings = file.strings();
        for (nth, (line, text)) in strings.iter().enumerate() {
            let is_word = text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let follows_its_name = nth > 0 && strings[nth - 1] == (*line, "reason".to_owned());
            if is_word && (text.ends_with("_exceeded") || (follows_its_name && file.path.starts_with("src/api/"))) {
                reasons += 1;
                if !guide.contains(&format!("`{text}`")) {
                    offences.push(format!("{}: `{text}`", file.path));
                }
            }
        }
    }
    check("docs/api.md names every reason:", offences);
    assert!(reasons > 8, "only {reasons} reasons were found");
}

#[test]
fn every_metric_is_in_the_operations_guide() {
    let guide = read("docs/operations.md");
    let sources = workspace_sources();
    let mut offences = Vec::new();
    for file in shipped(&sources).filter(|file| file.path.starts_with("src/telemetry/")) {
        for (_, text) in file.strings() {
            let is_metric =
                ["millgate_", "vllm:", "authorized_", "limited_"].iter().any(|start| text.starts_with(start));
            if is_metric && !guide.contains(&text) {
                offences.push(format!("{}: `{text}`", file.path));
            }
        }
    }
    check("docs/operations.md names every metric:", offences);
}

#[test]
fn the_architecture_page_stays_one_sitting_and_shows_the_import_table() {
    let page = read("ARCHITECTURE.md");
    assert!(page.lines().count() < 200, "ARCHITECTURE.md has {} lines", page.lines().count());
    for (module, _) in IMPORTS {
        assert!(
            page.contains(&format!("| `{module}`")),
            "ARCHITECTURE.md has no row for `{module}` in its import table"
        );
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace_root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

fn names_crate(code: &str, name: &str) -> bool {
    let pattern = format!("{name}::");
    code.match_indices(&pattern)
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}
