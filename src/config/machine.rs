//! How much memory there is: the machine's, and what control groups leave of it, as in a container
//! or under systemd's `MemoryMax`.

use std::path::Path;

/// Bytes of the machine; none where the system does not say.
pub(super) fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Bytes that the control groups of this process allow; none without a limit.
pub(super) fn group_memory() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    smallest_limit(&own, Path::new("/sys/fs/cgroup"))
}

/// The smallest limit of the groups that `own` lists, in the form of `/proc/self/cgroup`, and of
/// the groups above them. In a container the groups are mounted without their names outside, so
/// that only the mount itself is found.
fn smallest_limit(own: &str, mount: &Path) -> Option<u64> {
    let limits = own.lines().filter_map(|line| {
        let (_, controllers_and_path) = line.split_once(':')?;
        let (controllers, path) = controllers_and_path.split_once(':')?;
        // Version 2 has one hierarchy, version 1 one per controller.
        let (root, file) = if controllers.is_empty() {
            (mount.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (mount.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        let group = root.join(path.trim_start_matches('/'));
        let groups = group.ancestors().take_while(|at| at.starts_with(&root));
        groups.filter_map(|at| limit(&at.join(file))).min()
    });
    limits.min()
}

/// The number in a file; the word `max` means unlimited.
fn limit(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount with these files.
    fn mount(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            std::fs::write(path, text).expect("a file");
        }
        root
    }

    #[test]
    fn the_smallest_limit_of_a_group_and_those_above_it_applies() {
        let systemd = mount(&[
            ("system.slice/memory.max", "max\n"),
            ("system.slice/weir.service/memory.max", "1610612736\n"),
        ]);
        let own = "0::/system.slice/weir.service\n";
        assert_eq!(smallest_limit(own, systemd.path()), Some(1536 << 20));
        let narrower = mount(&[
            ("system.slice/memory.max", "1073741824\n"),
            ("system.slice/weir.service/memory.max", "1610612736\n"),
        ]);
        assert_eq!(smallest_limit(own, narrower.path()), Some(1 << 30));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_mount() {
        let version_2 = mount(&[("memory.max", "1073741824\n")]);
        assert_eq!(smallest_limit("0::/\n", version_2.path()), Some(1 << 30));
        let version_1 = mount(&[("memory/memory.limit_in_bytes", "1073741824\n")]);
        let own = "9:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/\n";
        assert_eq!(smallest_limit(own, version_1.path()), Some(1 << 30));
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let unlimited = mount(&[("memory.max", "max\n")]);
        for own in ["0::/\n", "", "no group\n", "3:cpu:/\n", "0::/../other\n"] {
            assert_eq!(smallest_limit(own, unlimited.path()), None, "{own}");
        }
    }
}
