//! Virtual machines and the network between them. Knows no OpenStack and no engine.

pub mod outside;
pub mod switch;
pub mod wire;
