//! Images: what they are ([`manifest`]), where they are kept ([`store`]), how they come in
//! ([`fetch`]) and what they are made of ([`inspect`], [`qcow2`]).
//!
//! Nothing enters without its digest, and nothing that entered is opened by QEMU before its header
//! has been read here and found harmless.

pub mod build;
pub mod digest;
pub mod fetch;
pub mod inspect;
pub mod manifest;
pub mod qcow2;
pub mod store;
pub mod sums;
