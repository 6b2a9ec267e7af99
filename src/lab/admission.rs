//! Whether the host has room for a lab, asked before anything is started; and whose turn it is
//! where several want it.

mod boot_slots;
mod reservation;

pub use boot_slots::{BootSlot, BootSlots};
pub use reservation::{Ledger, Reservation, Turn, Want};

use super::spec::{Bytes, GIB, LabSpec, MIB};
use crate::error::{Context, Error, Kind, Result};
use std::path::Path;

/// QEMU itself: code, device state, TCG's translation cache.
const PER_MACHINE: u64 = 300 * MIB;

/// Left for everything else on the host, and for ourselves.
const FOR_THE_HOST: u64 = 512 * MIB;

/// What a node writes in a run. Overlays are sparse: asking for the disks' full size would refuse
/// hosts that have ample room.
const WRITTEN_PER_NODE: u64 = 3 * GIB;

/// What the host has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// To be had without swapping, within our control group's limit.
    pub memory: u64,
    /// Free for us where the run directories are.
    pub disk: u64,
}

impl Room {
    /// `dir` must exist.
    pub fn look(dir: &Path) -> Result<Room> {
        let memory = memory_available(Path::new("/"))?;
        let stat = rustix::fs::statvfs(dir)
            .doing(Kind::Host, || format!("cannot ask for the free space of {}", dir.display()))?;
        Ok(Room { memory, disk: stat.f_bavail.saturating_mul(stat.f_frsize) })
    }
}

/// Refuses a lab that does not fit, with the numbers.
pub fn check(spec: &LabSpec, room: Room, dir: &Path) -> Result<()> {
    let nodes = spec.nodes.len() as u64;
    let memory = spec.memory() + nodes * PER_MACHINE + FOR_THE_HOST;
    if memory > room.memory {
        let each = spec.nodes.iter().map(|n| format!("{} {}", n.name, Bytes(n.memory)));
        let message = format!(
            "lab {} needs {} of memory, and {} are available",
            spec.name,
            Bytes(memory),
            Bytes(room.memory)
        );
        return Err(Error::host(message)
            .at(&spec.file, spec.nodes.first().map(|n| n.line))
            .evidence([format!(
                "{}; {} for each QEMU; {} for the host",
                each.collect::<Vec<_>>().join(", "),
                Bytes(PER_MACHINE),
                Bytes(FOR_THE_HOST)
            )])
            .hint(
                "stop other programs, or lower `memory` in a copy of the lab file (--lab FILE)",
            ));
    }
    let disk: u64 =
        spec.nodes.iter().map(|n| n.disk.unwrap_or(u64::MAX).min(WRITTEN_PER_NODE)).sum();
    if disk > room.disk {
        let message = format!(
            "lab {} needs {} of disk in {}, and {} are free",
            spec.name,
            Bytes(disk),
            dir.display(),
            Bytes(room.disk)
        );
        return Err(Error::host(message).hint("free some space there, or use another directory"));
    }
    Ok(())
}

/// The kernel's estimate, lowered to what our control group and its parents still allow. `root` is
/// `/`, or a test's.
fn memory_available(root: &Path) -> Result<u64> {
    let file = root.join("proc/meminfo");
    let text = std::fs::read_to_string(&file)
        .map_err(|e| Error::host("cannot read the memory available").at(&file, None).because(e))?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    let host =
        kib.ok_or_else(|| Error::host("no MemAvailable").at(&file, None))?.saturating_mul(1024);
    Ok(group_room(root).map_or(host, |group| group.min(host)))
}

/// What the (version 2) control groups that we are in leave us; None without a limit.
fn group_room(root: &Path) -> Option<u64> {
    let own = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let own = own.lines().find_map(|l| l.strip_prefix("0::/"))?.to_owned();
    let top = root.join("sys/fs/cgroup");
    let number = |file: std::path::PathBuf| -> Option<u64> {
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    let mut least = None;
    for group in Path::new(&own).ancestors() {
        let group = top.join(group);
        // `max` is no number: no limit here.
        let Some(limit) = number(group.join("memory.max")) else { continue };
        let used = number(group.join("memory.current")).unwrap_or(0);
        // Cached files count as used, and are given back when needed.
        let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|l| l.strip_prefix("inactive_file ")?.parse().ok());
        let room = limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0)));
        least = Some(least.map_or(room, |l: u64| l.min(room)));
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> LabSpec {
        let text = "name = \"x\"\n[networks.m]\nsubnet = \"10.0.0.0/24\"\noutside = \"10.0.0.1\"\n\
            [nodes.a]\nimage = \"i\"\nmemory = \"2GiB\"\ncpus = 1\ndisk = \"20GiB\"\n\
            [[nodes.a.nics]]\nnetwork = \"m\"\naddress = \"10.0.0.2\"\n";
        LabSpec::parse(Path::new("x.toml"), text).unwrap()
    }

    #[test]
    fn a_lab_that_fits_exactly_is_let_in_and_one_byte_less_is_not() {
        let dir = Path::new("/runs");
        let memory = 2 * GIB + PER_MACHINE + FOR_THE_HOST;
        let disk = WRITTEN_PER_NODE;
        check(&lab(), Room { memory, disk }, dir).unwrap();

        let error = check(&lab(), Room { memory: memory - 1, disk }, dir).unwrap_err();
        assert_eq!(error.kind(), Kind::Host);
        assert!(error.message().starts_with("lab x needs 2.8 GiB of memory, and 2.8"), "{error}");
        assert!(error.evidence_lines()[0].starts_with("a 2 GiB"), "{error:?}");
        assert!(error.hint_text().is_some());

        let error = check(&lab(), Room { memory, disk: disk - 1 }, dir).unwrap_err();
        assert!(error.message().contains("of disk in /runs"), "{error}");
    }

    #[test]
    fn this_host_has_some_room() {
        let room = Room::look(Path::new("/")).unwrap();
        assert!(room.memory > MIB && room.disk > 0, "{room:?}");
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let file = root.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        put("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    1048576 kB\n");
        assert_eq!(memory_available(root.path()).unwrap(), GIB);
        put("proc/self/cgroup", "0::/ci/job\n");
        put("sys/fs/cgroup/ci/job/memory.max", "max\n");
        assert_eq!(memory_available(root.path()).unwrap(), GIB);
        put("sys/fs/cgroup/ci/memory.max", "1000000\n");
        put("sys/fs/cgroup/ci/memory.current", "700000\n");
        put("sys/fs/cgroup/ci/memory.stat", "anon 1\ninactive_file 200000\n");
        assert_eq!(memory_available(root.path()).unwrap(), 500_000);
        put("proc/meminfo", "MemTotal: 9 kB\n");
        assert_eq!(memory_available(root.path()).unwrap_err().kind(), Kind::Host);
    }
}
