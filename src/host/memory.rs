//! The memory that this process can have: the machine's, lowered to what its control groups allow.
//!
//! Groups of version 2 and of version 1 count, wherever they are mounted. In a container the path in
//! /proc/self/cgroup may be the host's, and the mount may show the own group as its root: then the
//! root of the mount is what limits us.

use crate::error::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Bytes; of the control group, where that allows less than the machine has.
    pub total: u64,
    /// To be had without swapping. Cached files count as available.
    pub available: u64,
}

impl Memory {
    /// `root` is `/`, or a test's.
    pub fn look(root: &Path) -> Result<Memory> {
        let mut memory =
            Memory { total: meminfo(root, "MemTotal")?, available: meminfo(root, "MemAvailable")? };
        for group in groups(root) {
            memory.total = memory.total.min(group.limit);
            memory.available = memory.available.min(group.room());
        }
        Ok(memory)
    }
}

/// A field of /proc/meminfo, in bytes. `root` is `/`, or a test's.
pub fn meminfo(root: &Path, name: &str) -> Result<u64> {
    let file = root.join("proc/meminfo");
    let text = std::fs::read_to_string(&file)
        .map_err(|e| Error::host("cannot read the memory available").at(&file, None).because(e))?;
    let field = || {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        let kib = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?;
        Some(kib.saturating_mul(1024))
    };
    field().ok_or_else(|| Error::host(format!("no {name}")).at(&file, None))
}

/// A control group with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GroupLimit {
    limit: u64,
    used: u64,
    /// Of `used`: given back when it is needed.
    cached: u64,
}

impl GroupLimit {
    fn room(self) -> u64 {
        self.limit.saturating_sub(self.used.saturating_sub(self.cached))
    }
}

/// The files of a hierarchy.
struct GroupFiles {
    limit: &'static str,
    used: &'static str,
    cached: &'static str,
}

const VERSION_2: GroupFiles =
    GroupFiles { limit: "memory.max", used: "memory.current", cached: "inactive_file" };
const VERSION_1: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: "total_inactive_file",
};

/// All groups with a limit that this process is in.
fn groups(root: &Path) -> Vec<GroupLimit> {
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap_or_default();
    let (own, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut found = Vec::new();
    for mount in mounts.lines().filter_map(GroupMount::parse) {
        let Some(path) = own.lines().find_map(|line| mount.path_of(line)) else { continue };
        let top = root.join(mount.at.strip_prefix("/").unwrap_or(&mount.at));
        let mut group = top.join(mount.below(&path));
        if !group.is_dir() {
            // Another namespace's path: what is mounted is all that we see of our group.
            group = top.clone();
        }
        for group in group.ancestors().take_while(|g| g.starts_with(&top)) {
            found.extend(limit_of(group, &mount.files));
        }
    }
    found
}

fn limit_of(group: &Path, files: &GroupFiles) -> Option<GroupLimit> {
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
    };
    // `max` is no number, and version 1 says almost 2^63: no limit here.
    let limit = number(files.limit).filter(|limit| *limit < 1 << 62)?;
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|l| l.strip_prefix(files.cached)?.trim().parse().ok());
    Some(GroupLimit { limit, used: number(files.used).unwrap_or(0), cached: cached.unwrap_or(0) })
}

/// A hierarchy that limits memory, as /proc/self/mountinfo shows it.
struct GroupMount {
    /// The group that is mounted, and where.
    root: PathBuf,
    at: PathBuf,
    files: GroupFiles,
    is_v1: bool,
}

impl GroupMount {
    /// `36 25 0:31 /ROOT /AT rw - cgroup2 cgroup2 rw`
    fn parse(line: &str) -> Option<GroupMount> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1).unwrap_or_default();
        let is_v1 = kind == "cgroup" && options.split(',').any(|o| o == "memory");
        let files = match kind {
            "cgroup2" => VERSION_2,
            _ if is_v1 => VERSION_1,
            _ => return None,
        };
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?.into(), fields.next()?.into());
        Some(GroupMount { root, at, files, is_v1 })
    }

    /// The group's path, if this line of /proc/self/cgroup is of this hierarchy.
    fn path_of(&self, line: &str) -> Option<PathBuf> {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match self.is_v1 {
            true => controllers.split(',').any(|c| c == "memory"),
            false => number == "0" && controllers.is_empty(),
        };
        ours.then(|| path.into())
    }

    /// The group's path below the mount point.
    fn below<'a>(&self, path: &'a Path) -> &'a Path {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        path.strip_prefix("/").unwrap_or(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const GIB: u64 = 1 << 30;

    struct FakeHost(tempfile::TempDir);

    impl FakeHost {
        fn new(cgroup: &str, mountinfo: &str) -> FakeHost {
            let host = FakeHost(tempfile::tempdir().unwrap());
            host.put("proc/meminfo", "MemTotal: 4194304 kB\nMemAvailable:    1048576 kB\n");
            host.put("proc/self/cgroup", cgroup);
            host.put("proc/self/mountinfo", mountinfo);
            host
        }
        fn put(&self, file: &str, text: &str) {
            let file = self.0.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        fn memory(&self) -> (u64, u64) {
            let memory = Memory::look(self.0.path()).unwrap();
            (memory.total, memory.available)
        }
    }

    const V2: &str = "30 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "36 25 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      37 25 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    #[test]
    fn without_a_limit_the_machine_counts() {
        let host = FakeHost::new("0::/ci/job\n", V2);
        host.put("sys/fs/cgroup/ci/job/memory.max", "max\n");
        assert_eq!(host.memory(), (4 * GIB, GIB));
        let host = FakeHost::new("5:memory:/\n", V1);
        host.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(host.memory(), (4 * GIB, GIB));
        assert_eq!(FakeHost::new("", "").memory(), (4 * GIB, GIB));
    }

    #[test]
    fn the_tightest_group_counts_and_its_cache_is_available() {
        let host = FakeHost::new("0::/ci/job\n", V2);
        host.put("sys/fs/cgroup/ci/job/memory.max", "2000000\n");
        host.put("sys/fs/cgroup/ci/memory.max", "1000000\n");
        host.put("sys/fs/cgroup/ci/memory.current", "700000\n");
        host.put("sys/fs/cgroup/ci/memory.stat", "anon 1\ninactive_file 200000\n");
        assert_eq!(host.memory(), (1_000_000, 500_000));
    }

    #[test]
    fn groups_of_version_1_count() {
        let host = FakeHost::new("7:cpu:/\n5:hugetlb,memory:/t\n0::/\n", V1);
        host.put("sys/fs/cgroup/memory/t/memory.limit_in_bytes", "1000000\n");
        host.put("sys/fs/cgroup/memory/t/memory.usage_in_bytes", "900000\n");
        host.put(
            "sys/fs/cgroup/memory/t/memory.stat",
            "inactive_file 1\ntotal_inactive_file 400000\n",
        );
        assert_eq!(host.memory(), (1_000_000, 500_000));
    }

    #[test]
    fn a_container_sees_its_group_as_the_root() {
        // `--cgroupns=host`: a path that the container's mount does not have.
        let host = FakeHost::new("0::/docker/abc\n", V2);
        host.put("sys/fs/cgroup/memory.max", "1000000\n");
        assert_eq!(host.memory().0, 1_000_000);
        // The mount's root says which part of the path it shows.
        let mount = V2.replace(" / /sys", " /docker/abc /sys");
        let host = FakeHost::new("0::/docker/abc/sub\n", &mount);
        host.put("sys/fs/cgroup/sub/memory.max", "500000\n");
        assert_eq!(host.memory().0, 500_000);
        // A private namespace.
        let host = FakeHost::new("0::/\n", V2);
        host.put("sys/fs/cgroup/memory.max", "700000\n");
        assert_eq!(host.memory().0, 700_000);
    }

    #[test]
    fn a_host_that_does_not_say_is_an_error() {
        let host = FakeHost::new("", "");
        host.put("proc/meminfo", "MemTotal: 9 kB\n");
        assert_eq!(Memory::look(host.0.path()).unwrap_err().kind(), Kind::Host);
    }
}
