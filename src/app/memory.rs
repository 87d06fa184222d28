//! How much memory this process may still take: what the machine has free, under the control group's limit.

use std::fs;
use std::path::Path;

/// Memory that can still be taken, in bytes; `None` when the system does not tell.
pub(super) fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| field_bytes(&text, "MemAvailable:"));
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group_room(&text));
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// What the control group leaves, the tightest of its ancestors deciding; `None` without a limit.
fn group_room(membership: &str) -> Option<u64> {
    let unified = membership.lines().find_map(|line| line.strip_prefix("0::"));
    let legacy = membership.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    let (root, path, limit, usage) = match (legacy, unified) {
        (Some(path), _) => ("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes"),
        (None, Some(path)) => ("/sys/fs/cgroup", path, "memory.max", "memory.current"),
        (None, None) => return None,
    };
    let read = |folder: &Path, file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    Path::new(path)
        .ancestors()
        .filter_map(|folder| {
            let folder = Path::new(root).join(folder.strip_prefix("/").unwrap_or(folder));
            // The word `max`, and version 1's huge number, mean no limit: the former does not parse, the latter loses.
            Some(read(&folder, limit)?.saturating_sub(read(&folder, usage)?))
        })
        .min()
}

/// The value of a `/proc/meminfo` line, which counts in kibibytes.
fn field_bytes(text: &str, field: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meminfo_line_is_read_in_bytes() {
        let text = "MemTotal:       24689544 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(field_bytes(text, "MemAvailable:"), Some(1 << 20));
        assert_eq!(field_bytes(text, "MemFree:"), None);
        assert_eq!(field_bytes("MemAvailable: lots kB", "MemAvailable:"), None);
    }

    #[test]
    fn a_membership_without_a_memory_group_sets_no_limit() {
        assert_eq!(group_room(""), None);
        assert_eq!(group_room("1:cpu:/x\n"), None);
    }
}
