//! Reads Rust source just well enough for the house rules: comments, strings and test modules blanked out.

use std::path::{Path, PathBuf};

/// One source file with the views the rules need; all views keep the line numbers of the original.
pub(crate) struct SourceFile {
    pub(crate) path: String,
    pub(crate) raw: String,
    /// Comments and string contents blanked, `#[cfg(test)]` items removed.
    pub(crate) code: String,
    /// Comments blanked and `#[cfg(test)]` items removed, strings kept.
    pub(crate) code_with_strings: String,
}

impl SourceFile {
    fn parse(path: String, raw: String) -> Self {
        let (code, code_with_strings) = blank(&raw);
        let tests = test_items(&code);
        let code = blank_ranges(&code, &tests);
        let code_with_strings = blank_ranges(&code_with_strings, &tests);
        Self { path, raw, code, code_with_strings }
    }

    /// True for a file that holds only tests, so that the rules for shipped code do not apply.
    pub(crate) fn is_test(&self) -> bool {
        let in_tests = self.path.split('/').any(|part| part == "tests" || part == "benches");
        in_tests || self.path.ends_with("tests.rs") || self.path.ends_with("_test.rs")
    }

    /// Lines before tests: those that hold something besides `#[cfg(test)]` items.
    pub(crate) fn lines_before_tests(&self) -> usize {
        let tests = test_items(&blank(&self.raw).0);
        let in_tests: usize = tests.iter().map(|&(from, to)| self.raw[from..to].lines().count()).sum();
        self.raw.lines().count().saturating_sub(in_tests)
    }

    /// The module path of the file inside its package: `src/api/mod.rs` is `[api]`, `src/api/auth.rs` `[api, auth]`.
    pub(crate) fn module(&self) -> Vec<String> {
        let inside = self.path.split_once("src/").map_or(self.path.as_str(), |(_, rest)| rest);
        let mut parts: Vec<String> = inside.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts
    }

    /// Every path the code names from the crate root or from one of our packages, as its segments
    /// (`crate::store::sqlite` is `[store, sqlite]`, `millgate_models::text` is `[millgate_models, text]`).
    pub(crate) fn paths(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for root in ["crate", "millgate_kernels", "millgate_models"] {
            for (start, _) in self.code.match_indices(&format!("{root}::")) {
                if is_word_start(&self.code, start) {
                    let prefix = if root == "crate" { vec![] } else { vec![root.to_owned()] };
                    collect_paths(&self.code[start + root.len() + 2..], &prefix, &mut found);
                }
            }
        }
        found.extend(self.paths_through_super());
        found
    }

    /// `super::super::x` counts as `crate::...::x`, so that climbing does not hide an edge.
    fn paths_through_super(&self) -> Vec<Vec<String>> {
        let module = self.module();
        let mut found = Vec::new();
        for (start, _) in self.code.match_indices("super::") {
            let is_first = is_word_start(&self.code, start) && !self.code[..start].ends_with("super::");
            if !is_first {
                continue;
            }
            let mut rest = &self.code[start..];
            let mut depth = module.len();
            while let Some(after) = rest.strip_prefix("super::") {
                rest = after;
                depth = depth.saturating_sub(1);
            }
            if depth == 0 {
                collect_paths(rest, &[], &mut found);
            }
        }
        found
    }

    /// The string literals of the shipped code, with their line numbers.
    pub(crate) fn strings(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (number, line) in self.code_with_strings.lines().enumerate() {
            let mut pieces = line.split('"');
            pieces.next();
            while let Some(inside) = pieces.next() {
                found.push((number + 1, inside.to_owned()));
                if pieces.next().is_none() {
                    break;
                }
            }
        }
        found
    }
}

/// All Rust files of the workspace, build outputs aside.
pub(crate) fn workspace_sources() -> Vec<SourceFile> {
    let root = workspace_root();
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "kernels", "models"] {
        walk(&root.join(folder), &mut files);
    }
    files.sort();
    let read = |path: PathBuf| {
        let raw = std::fs::read_to_string(&path).expect("a source file is readable text");
        let shown = path.strip_prefix(&root).expect("it was found under the root").display().to_string();
        SourceFile::parse(shown, raw)
    };
    files.into_iter().map(read).collect()
}

pub(crate) fn workspace_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_ours = !matches!(name, "target" | "node_modules") && !name.starts_with('.');
        if path.is_dir() && is_ours {
            walk(&path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

fn is_word_start(code: &str, at: usize) -> bool {
    !code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
}

/// Follows one path or use-tree from just behind a `::` and adds each leaf's segments.
fn collect_paths(text: &str, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let text = text.trim_start();
    if let Some(inside) = text.strip_prefix('{') {
        for branch in split_branches(inside) {
            collect_paths(branch, prefix, found);
        }
        return;
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let mut path = prefix.to_vec();
    path.push(text[..end].to_owned());
    match text[end..].strip_prefix("::") {
        Some(rest) if !rest.starts_with('<') => collect_paths(rest, &path, found),
        _ => found.push(path),
    }
}

/// The comma-separated branches of a use-tree, given the text behind its opening brace.
fn split_branches(inside: &str) -> Vec<&str> {
    let (mut depth, mut start, mut branches) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                branches.push(&inside[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    branches.retain(|branch| !branch.trim().is_empty());
    branches
}

/// Blanks comments in both results and string and character literals in the first; line breaks stay.
fn blank(raw: &str) -> (String, String) {
    let bytes = raw.as_bytes();
    let (mut code, mut with_strings) = (bytes.to_vec(), bytes.to_vec());
    let wipe = |target: &mut Vec<u8>, from: usize, to: usize| {
        target[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &raw.as_bytes()[at..];
        let previous_is_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let end = if rest.starts_with(b"//") {
            let end = at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            wipe(&mut with_strings, at, end);
            end
        } else if rest.starts_with(b"/*") {
            let end = at + block_comment_len(rest);
            wipe(&mut with_strings, at, end);
            end
        } else if let Some(len) = (!previous_is_word).then(|| raw_string_len(rest)).flatten() {
            at + len
        } else if rest[0] == b'"' {
            at + string_len(rest)
        } else if let Some(len) = char_len(rest) {
            at + len
        } else {
            at += 1;
            continue;
        };
        wipe(&mut code, at, end);
        at = end;
    }
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("only whole literals and comments were blanked");
    (text(code), text(with_strings))
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at.min(rest.len())
}

fn raw_string_len(rest: &[u8]) -> Option<usize> {
    let marker = usize::from(rest.starts_with(b"br")) + 1;
    if !(rest.starts_with(b"r") || rest.starts_with(b"br")) {
        return None;
    }
    let hashes = rest[marker..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(marker + hashes) != Some(&b'"') {
        return None;
    }
    let closing = format!("\"{}", "#".repeat(hashes));
    let body = marker + hashes + 1;
    let end = rest[body..].windows(closing.len()).position(|window| window == closing.as_bytes())?;
    Some(body + end + closing.len())
}

fn string_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of a character literal, or nothing for a lifetime.
fn char_len(rest: &[u8]) -> Option<usize> {
    if rest[0] != b'\'' || rest.len() < 3 {
        return None;
    }
    if rest[1] == b'\\' {
        return Some(3 + rest[3..].iter().position(|byte| *byte == b'\'')?);
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .or_else(|error| std::str::from_utf8(&rest[1..=error.valid_up_to()]));
    let first = text.ok()?.chars().next()?;
    (rest.get(1 + first.len_utf8()) == Some(&b'\'')).then_some(2 + first.len_utf8())
}

/// Byte ranges of the items under `#[cfg(test)]`, in blanked code.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for (start, attribute) in code.match_indices("#[cfg(test)]") {
        if ranges.last().is_some_and(|&(_, end)| start < end) {
            continue;
        }
        let mut depth = 0;
        let mut end = code.len();
        for (at, c) in code[start + attribute.len()..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => {
                    end = start + attribute.len() + at + 1;
                    break;
                }
                '}' => depth -= 1,
                ';' if depth == 0 => {
                    end = start + attribute.len() + at + 1;
                    break;
                }
                _ => {}
            }
        }
        ranges.push((start, end));
    }
    ranges
}

fn blank_ranges(text: &str, ranges: &[(usize, usize)]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for &(from, to) in ranges {
        bytes[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    String::from_utf8(bytes).expect("ranges end at character borders")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> SourceFile {
        SourceFile::parse("src/api/openai/chat.rs".into(), raw.into())
    }

    #[test]
    fn comments_strings_and_tests_do_not_count_as_code() {
        let file = parse(
            "fn a() { b(\"x.unwrap()\"); } // .unwrap()\n/* unsafe */ let c = '\"'; let l: &'a str;\n#[cfg(test)]\nmod t { fn f() { x.unwrap() } }\nfn z() {}\n",
        );
        assert!(!file.code.contains("unwrap"), "{}", file.code);
        assert!(!file.code.contains("unsafe"));
        assert!(file.code.contains("fn z()") && file.code.contains("&'a str"));
        assert_eq!(file.strings()[0].1, "x.unwrap()");
        assert_eq!(file.lines_before_tests(), 3);
    }

    #[test]
    fn use_trees_full_paths_and_super_all_become_edges() {
        let file = parse(
            "use crate::{store::{a, b}, engine::c::D};\nfn f() { crate::telemetry::g::<u8>() }\nuse super::super::super::config::X;\nuse super::super::near;",
        );
        let paths: Vec<String> = file.paths().iter().map(|path| path.join("::")).collect();
        assert_eq!(paths, ["store::a", "store::b", "engine::c::D", "telemetry::g", "config::X"]);
    }
}
