//! Every check of the black-box list has a test that bears its id.

use crate::source_text::workspace_sources;

/// The ids of the list, by letter and number.
const IDS: [(char, u32); 9] =
    [('s', 4), ('k', 10), ('a', 7), ('l', 5), ('m', 2), ('t', 1), ('o', 1), ('u', 1), ('x', 21)];
#[test]
fn every_check_of_the_black_box_list_has_a_test_of_its_name() {
    let sources = workspace_sources();
    let tests: Vec<_> = sources.iter().filter(|file| file.path.starts_with("tests/blackbox/")).collect();
    let has_test = |id: &str| {
        let name = format!("fn {id}_");
        tests.iter().any(|file| {
            file.code.match_indices(&name).any(|(at, _)| {
                let before = file.code[..at].trim_end().trim_end_matches("async").trim_end();
                before.ends_with(']')
            })
        })
    };
    let ids = IDS.into_iter().flat_map(|(letter, last)| (1..=last).map(move |number| format!("{letter}{number}")));
    let missing: Vec<String> = ids.filter(|id| !has_test(id)).collect();
    assert!(missing.is_empty(), "no test in tests/blackbox bears the id: {}", missing.join(", "));
}
