//! Virtual machines and the network between them. Knows no OpenStack and no engine.

pub mod accel;
pub mod admission;
pub mod agent;
pub mod checkpoint;
pub mod clock;
mod cluster;
pub mod console;
pub mod disk;
pub mod hypervisor;
pub mod keys;
pub mod mac;
pub mod outside;
pub mod process;
pub mod qemu;
pub mod qmp;
mod removal;
pub mod rundir;
pub mod seed;
pub(crate) mod sparse;
pub mod spec;
pub mod switch;
pub mod vm;
pub mod wire;

pub use cluster::{BOOTS, BootImage, Lab, LabOptions, Node};
