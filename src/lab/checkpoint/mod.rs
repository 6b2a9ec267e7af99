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

#[cfg(test)]
mod tests;
