//! Virtual machines and the network between them. Knows no OpenStack and no engine.

pub mod keys;
pub mod mac;
pub mod outside;
pub mod spec;
pub mod switch;
