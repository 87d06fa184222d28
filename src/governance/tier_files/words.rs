//! What the readers of YAML and TOML say about a wrong kind of value, in the words of whoever wrote the file.

/// The reader's message without its jargon; one that holds none stays as it is.
pub(super) fn plain(message: &str) -> String {
    if let Some((found, wanted)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    {
        return format!("{} belongs here, not {}", wanted_words(wanted), found_words(found));
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("{field} is missing");
    }
    if message.starts_with("data did not match any variant") {
        return "a limit is a text like `100000 tokens / 1m`, or a table with `resource`, `amount` and `window`".into();
    }
    if message.starts_with("cannot deserialize null into string") {
        return "there is nothing where a text belongs".into();
    }
    if let Some(rest) = message.strip_prefix("duplicate mapping key: ") {
        return format!("`{}` is there twice", rest.split(',').next().unwrap_or_default());
    }
    match message.strip_prefix("expected ") {
        Some("sequence start") => "a list belongs here".into(),
        Some("mapping start") => "a table of fields belongs here".into(),
        Some("string scalar" | "scalar") => "a text belongs here".into(),
        _ => message.to_owned(),
    }
}

fn found_words(found: &str) -> String {
    let (kind, value) = found.split_once(['"', '`']).map_or((found, ""), |(kind, value)| (kind, value));
    let value = value.trim_end_matches(['"', '`']);
    match kind.trim() {
        "string" if value.is_empty() => "a text".into(),
        "string" => format!("`{value}`"),
        "sequence" => "a list".into(),
        "map" => "a table".into(),
        "integer" | "floating point" | "boolean" => format!("`{value}`"),
        "unit value" | "Option value" | "null" => "nothing".into(),
        _ => found.to_owned(),
    }
}

fn wanted_words(wanted: &str) -> &str {
    match wanted {
        "a sequence" => "a list",
        "a string" => "a text",
        "a map" => "a table of fields",
        _ if wanted.starts_with("struct ") => "a table of fields",
        _ => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Declaration;

    fn yaml(text: &str) -> String {
        Declaration::from_yaml(text).expect_err("wrong").to_string()
    }

    fn toml(text: &str) -> String {
        Declaration::from_toml(text).expect_err("wrong").to_string()
    }

    #[test]
    fn a_wrong_kind_of_value_is_told_in_the_words_of_the_file_with_its_line() {
        let told = [
            yaml("tiers:\n- name: a\n  groups: staff\n"),
            yaml("tiers:\n- name: a\n  groups: {staff: 1}\n"),
            yaml("tiers:\n- name: [a]\n  groups: [g]\n"),
            yaml("tiers:\n- just a text\n"),
            yaml("tiers: 5\n"),
            yaml("tiers:\n- name: a\n"),
            yaml("tiers:\n- name: a\n  groups: [g]\n  level: high\n"),
            yaml("tiers:\n- name: a\n  groups: [g]\n  limits: [[1]]\n"),
            yaml("- name: a\n  groups: staff\n"),
            toml("[[tiers]]\nname = \"a\"\ngroups = \"staff\"\n"),
            toml("[[tiers]]\nname = 5\ngroups = [\"g\"]\n"),
        ];
        insta::assert_snapshot!(told.join("\n"), @r"
        line 3: cannot read the tiers: a list belongs here
        line 3: cannot read the tiers: a list belongs here
        line 2: cannot read the tiers: a text belongs here
        line 2: cannot read the tiers: a table of fields belongs here
        line 1: cannot read the tiers: a list belongs here
        line 2: cannot read the tiers: `groups` is missing
        line 4: cannot read the tiers: a whole number belongs here, not `high`
        line 4: cannot read the tiers: a limit is a text like `100000 tokens / 1m`, or a table with `resource`, `amount` and `window`
        line 2: cannot read the tiers: a list belongs here
        line 3: cannot read the tiers: a list belongs here, not `staff`
        line 2: cannot read the tiers: a text belongs here, not `5`
        ");
    }
}
