//! Checkpoints: a running lab in a folder, from which it goes on in a second or two, as often as
//! wanted.
//!
//! ```text
//! NAME/manifest.json          what is here and what it needs; written last
//!      login.key
//!      NODE/memory            memory and devices, a file of QEMU's (mapped-ram)
//!      NODE/disk.0.qcow2 …    the layers of its disk, links to those of the lab
//!      NODE/seed.img host.key
//! ```

mod fingerprint;
mod folder;
mod manifest;
mod mapped;
mod platform;
mod restore;
mod save;

pub use fingerprint::Fingerprint;
pub use folder::sweep;
pub use manifest::{ImageRecord, LabText, Manifest, NodeRecord, Notes, Original, VERSION};
pub use platform::{HostProcessor, Platform, hardware};
pub use restore::{Checkpoint, Restored};
pub use save::After;

/// A script for every node, run as root before a checkpoint: what it keeps and does not need is
/// given back. Memory that was freed leaves the machine a few seconds later by itself.
pub const SLIM: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; \
                        if command -v fstrim >/dev/null; then fstrim -a || :; fi";

/// The same for the nodes of a lab that was restored ([`Lab::keeps_what_is_freed`]), after [`SLIM`]:
/// their free memory is filled with zeros, which take no room, but for a part that they may need
/// meanwhile.
///
/// [`Lab::keeps_what_is_freed`]: super::Lab::keeps_what_is_freed
pub const BLANK: &str = "\
d=/run/stackproof-blank; m=$(sed -n 's/^MemFree: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo)
m=$((m * 9 / 10 - 65536)); [ $m -gt 0 ] || exit 0
mkdir -p $d && mount -t tmpfs -o size=${m}k,huge=always,mode=700 blank $d || exit
dd if=/dev/zero of=$d/zeros bs=2M 2>/dev/null
umount $d && rmdir $d";

#[cfg(test)]
mod tests;
