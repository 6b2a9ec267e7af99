//! Whether the host has room for a lab, asked before anything is started; and whose turn it is
//! where several want it.

mod boot_slots;
mod reservation;

pub use boot_slots::{BootSlot, BootSlots};
pub use reservation::{Ledger, Reservation, Turn, Want};

use super::spec::{Bytes, GIB, LabSpec, MIB};
use crate::error::{Context, Error, Kind, Result};
use crate::host::Memory;
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
        let memory = Memory::look(Path::new("/"))?.available;
        let disk = crate::fsutil::free_bytes(dir)
            .doing(Kind::Host, || format!("cannot ask for the free space of {}", dir.display()))?;
        Ok(Room { memory, disk })
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
}
